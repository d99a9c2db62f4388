"""What the header of a checkpoint says: names, shapes, dtypes and bytes of its tensors, and never their values.

The readers of every format (`safetensors`, `gguf`, `pytorch`) return a `Checkpoint`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.records import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    Format = Literal["safetensors", "gguf", "pytorch"]


SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf")
"""How files end that are checkpoints, those that are taken first in front."""


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint. A tuple, because a checkpoint can have tens of thousands of them."""

    name: str
    """Its name in the checkpoint."""
    shape: tuple[int, ...]
    """Its sizes in PyTorch's order (GGUF's are turned round)."""
    dtype: str
    """Its format as the file spells it: "BF16", "F8_E4M3", "Q4_K"; `weigh.dtypes.get` knows the names."""
    num_bytes: int
    """Bytes that it adds to the file: 0 where it lies in the storage of a tensor before it (PyTorch's tied weights).

    Packed formats hold more elements than the shape says; the `quantization_config` says how many.
    """
    file: str
    """The file that holds it, by the name it has in `Checkpoint.files`."""
    start: int | None = None
    """Its first byte in the file; None where its bytes do not lie in one piece (PyTorch's archives)."""

    @property
    def num_elements(self) -> int:
        """The product of its sizes; 1 for a scalar."""
        product = 1
        for size in self.shape:
            product *= size
        return product


_FLOATS = frozenset("f16 bf16 f32 f64 float16 bfloat16 float32 float64".split())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Checkpoint:
    """The tensors of a checkpoint, whatever its format.

    >>> weight = StoredTensor("wte.weight", (50257, 768), "F32", 154389504, "model.safetensors")
    >>> checkpoint = Checkpoint({weight.name: weight}, "safetensors", files=(("model.safetensors", 154389600),))
    >>> checkpoint.num_bytes, checkpoint.bytes_by_dtype()
    (154389504, {'F32': 154389504})
    """

    tensors: Mapping[str, StoredTensor]
    """By name, in the order of the files."""
    format: Format
    """How it is stored."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of itself: safetensors' `__metadata__`, GGUF's key-value pairs."""
    files: tuple[tuple[str, int], ...] = ()
    """Name and bytes of every file; bytes include the header and the padding."""
    where: str = "checkpoint"
    """What errors name: the path or the address."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, without headers and padding."""
        return sum(t.num_bytes for t in self.tensors.values())

    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of the tensors in each dtype, in order of appearance."""
        found: dict[str, int] = {}
        for t in self.tensors.values():
            found[t.dtype] = found.get(t.dtype, 0) + t.num_bytes
        return found

    @property
    def float_dtype(self) -> str | None:
        """The plain float that most bytes are in; None where the weights are in packed or block formats alone.

        >>> Checkpoint({"w": StoredTensor("w", (2,), "BF16", 4, "f")}, "gguf").float_dtype
        'BF16'
        """
        found = {name: size for name, size in self.bytes_by_dtype().items() if name.lower() in _FLOATS}
        return max(found, key=found.__getitem__, default=None)

    def __repr__(self) -> str:
        return f"<{self.where}: {self.format}, {len(self.tensors):,} tensors, {self.num_bytes:,} bytes>"
