"""GGUF: one file with everything in it, from safetensors or from another GGUF file.

What is not quantized stays in its number format, vectors in fp32, as llama.cpp needs them. Names, sizes and the
tokenizer of the architectures in `llama_cpp` are llama.cpp's; of others the names stay as they are. A GGUF source keeps
its names and key-value pairs.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from weigh import dtypes
from weigh.dtypes import FLOAT32, GGML_TYPES
from weigh.errors import InputError
from weigh.quant.checkpoint.gguf_file import gguf_file, value
from weigh.quant.checkpoint.layout import Output
from weigh.quant.checkpoint.llama_cpp import Model, model_of, pairs_of
from weigh.quant.checkpoint.rules import module_of
from weigh.quant.checkpoint.targets.base import Cast, Encoder, Rows, Target
from weigh.records import dataclass, field, replace
from weigh.sources.gguf import read_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weigh.quant.checkpoint.layout import File
    from weigh.quant.checkpoint.plan import Decision
    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.weights import Weights

FILE_TYPES = {
    "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16,
    "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32, "tq1_0": 36, "tq2_0": 37,
}  # fmt: skip
"""`enum llama_ftype` (llama.h), the S variants; what most matrices are."""
_DTYPES = {"f16": "fp16"}


@dataclass(frozen=True, slots=True)
class Gguf(Target):
    """Its settings."""

    name: ClassVar[str] = "gguf"
    type: str = "q8_0"
    """The type of matrices that are quantized."""
    mix: tuple[tuple[str, str], ...] = ()
    """Types of modules by patterns of their names; the last that fits counts."""
    model: Model = field(default_factory=lambda: Model(None, "unknown"))
    """Whose names are given."""

    def of(self, weights: Weights, config: Mapping[str, Any] | None) -> Target:
        """The same, for the architecture of this source."""
        return self if weights.checkpoint.format == "gguf" else replace(self, model=model_of(config))

    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        return {}

    def cut(self, tensor: StoredTensor) -> int:
        return tensor.shape[-1] * self._turned(tensor)[1] if tensor.shape and tensor.shape[-1] else 1

    def _turned(self, tensor: StoredTensor) -> tuple[int, int]:
        """How many heads' rows are interleaved, and the rows of a head; 0 and 1 where they are not."""
        heads = self.model.turned(tensor.name)
        return (heads, tensor.shape[0] // heads) if heads else (0, 1)

    def refuses(self, tensor: StoredTensor) -> str | None:
        block, columns = dtypes.get(self.dtype(tensor)).elements_per_block, tensor.shape[-1]
        return f"has rows of {columns:,}, no whole blocks of {block}" if columns % block else None

    def type_of(self, tensor: StoredTensor) -> str:
        """The type that a matrix gets."""
        module = module_of(tensor.name)
        return next((kind for pattern, kind in reversed(self.mix) if fnmatchcase(module, pattern)), self.type)

    def dtype(self, tensor: StoredTensor) -> str:
        """Our name of it."""
        kind = self.type_of(tensor)
        return _DTYPES.get(kind, kind)

    def outputs(self, tensor: StoredTensor) -> tuple[Output, ...]:
        name = self.model.name(tensor.name)
        assert name is not None
        return (Output(name, tensor.shape, dtypes.get(self.dtype(tensor)), self.type_of(tensor).upper()),)

    def keep(self, tensor: StoredTensor) -> tuple[Output, ...]:
        name = self.model.name(tensor.name)
        if name is None:
            return ()
        dtype = dtypes.get(tensor.dtype)
        if dtype.kind == "float" and len(tensor.shape) < 2:
            return (Output(name, tensor.shape, FLOAT32, "F32"),)
        if dtype not in GGML_TYPES.values():
            raise InputError(f"is stored in {tensor.dtype}, which GGUF does not have", where=tensor.name)
        return (Output(name, tensor.shape, dtype, tensor.dtype),)

    def files(
        self, decisions: Sequence[Decision], weights: Weights, config: Mapping[str, Any] | None
    ) -> tuple[File, ...]:
        if weights.checkpoint.format == "gguf":
            pairs = read_pairs(weights.folder.open(weights.checkpoint.files[0][0]))
            pairs = {key: v for key, v in pairs.items() if not key.startswith("split.") and key != "general.alignment"}
        else:
            pairs = pairs_of(self.model, config, weights.folder)
        pairs["general.file_type"] = value("uint32", FILE_TYPES[self.type])
        pairs["general.quantization_version"] = value("uint32", 2)
        return (gguf_file("model.gguf", pairs, [o for d in decisions for o in d.outputs]),)

    def encoder(self, tensor: StoredTensor) -> Encoder:
        casts = {"f16": "cast_fp16", "bf16": "cast_bf16"}
        kind = self.type_of(tensor)
        name, part = casts.get(kind, kind), "values" if kind in casts else "blocks"
        return Turned(Rows(name, tensor, {part: ""}), tensor, self._turned(tensor)[1])

    def caster(self, tensor: StoredTensor, output: Output) -> Encoder:
        return Turned(Cast(output), tensor, self._turned(tensor)[1])


class Turned(Encoder):
    """Rows of each head interleaved before they are encoded: those of its first and of its second half in turn."""

    def __init__(self, inner: Encoder, tensor: StoredTensor, rows: int) -> None:
        self.inner, self.rows, self.width = inner, rows, tensor.shape[-1] if len(tensor.shape) > 1 else 1

    def encode(self, slab: Any) -> dict[str, Any]:
        if self.rows > 1:
            slab = slab.reshape(-1, 2, self.rows // 2, self.width).swapaxes(1, 2).reshape(-1)
        return self.inner.encode(slab)
