"""What every target says (layout, from shapes alone) and does (arithmetic, slab by slab)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from weigh import dtypes, formats
from weigh.formats.base import LINEAR, Weight
from weigh.quant.checkpoint.layout import SPELLED, Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from weigh.quant.checkpoint.layout import File
    from weigh.quant.checkpoint.plan import Decision
    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.weights import Weights

    Files = tuple[File, ...]

Array = Any
"""A numpy array."""


class Encoder(ABC):
    """The arithmetic of one tensor. Slabs come in order, each of whole cuts but the last."""

    surveys: ClassVar[bool] = False
    """Whether all slabs have to be seen once before the first is encoded."""

    def survey(self, slab: Array) -> None:
        """Take note of a slab."""
        raise NotImplementedError

    @abstractmethod
    def encode(self, slab: Array) -> dict[str, Array]:
        """What a slab adds to the stored tensors, by the ends of their names."""

    def finish(self) -> dict[str, Array]:
        """What is known when all slabs were seen, by the ends of names."""
        return {}


class Target(ABC):
    """A format with its settings: a frozen dataclass."""

    name: ClassVar[str]
    """What its writer is called."""

    @abstractmethod
    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` of a checkpoint in which the modules `kept` stayed as they were."""

    @abstractmethod
    def cut(self, tensor: StoredTensor) -> int:
        """Slabs are of a multiple of so many elements."""

    def of(self, weights: Weights, config: Mapping[str, Any] | None) -> Target:
        """What it is for this source, where that matters."""
        return self

    def refuses(self, tensor: StoredTensor) -> str | None:
        """Why a matrix cannot be stored so; None where it can."""
        return None

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that stay in memory from the first slab to the last."""
        return 0

    def outputs(self, tensor: StoredTensor) -> tuple[Output, ...]:
        """What a matrix is stored as: what `weigh.formats` reads from our own `quantization_config`."""
        form = formats.read({"quantization_config": self.config(())})
        assert form is not None
        rows, columns = tensor.shape
        weight = Weight(tensor.name, rows, columns, dtypes.get(tensor.dtype), LINEAR)
        return tuple(Output(s.name, s.shape, s.dtype, SPELLED[s.dtype.name]) for s in form.store(weight))

    def keep(self, tensor: StoredTensor) -> tuple[Output, ...]:
        """How a tensor is stored that is not quantized: as it is."""
        return (Output(tensor.name, tensor.shape, dtypes.get(tensor.dtype), tensor.dtype),)

    def files(self, decisions: Sequence[Decision], weights: Weights, config: Mapping[str, Any] | None) -> Files:
        """Where the format is no safetensors: its files."""
        return ()

    @abstractmethod
    def encoder(self, tensor: StoredTensor) -> Encoder:
        """The arithmetic of one matrix."""

    def caster(self, tensor: StoredTensor, output: Output) -> Encoder:
        """That of a tensor which is kept in another number format, or was quantized before."""
        return Cast(output)


class Cast(Encoder):
    """Values in the number format of the output."""

    def __init__(self, output: Output) -> None:
        from weigh.quant.arrays import numpy_dtype

        self.dtype = numpy_dtype(output.dtype)

    def encode(self, slab: Array) -> dict[str, Array]:
        return {"": slab.astype(self.dtype, copy=False)}


class Rows(Encoder):
    """Whole rows through a quantizer; each of its parts is a stored tensor."""

    def __init__(self, name: str, tensor: StoredTensor, names: Mapping[str, str], **settings: Any) -> None:
        """`name` and `settings` choose the quantizer, `names` says the end of the name of each of its parts."""
        from weigh import quant

        self.quantizer: Any = quant.get(name, **settings)
        self.columns = tensor.shape[-1]
        self.names = names

    def encode(self, slab: Array) -> dict[str, Array]:
        parts = self.quantizer.quantize(slab.reshape(-1, self.columns)).parts
        return {self.names[name]: part for name, part in parts.items() if name in self.names}


def kept_modules(kept: Iterable[str]) -> list[str]:
    """The list of modules that loaders are to leave alone. The output layer is one of them even where it is tied.

    >>> kept_modules(["model.embed_tokens"])
    ['lm_head', 'model.embed_tokens']
    """
    return sorted({"lm_head", *kept})
