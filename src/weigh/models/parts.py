"""Parts of models that are counted and not run: modules and parameters under upstream's names.

A part says nothing about how it runs. `Make` makes the usual ones in one dtype, `Counted` is a whole model of them.
"""

from __future__ import annotations

from weigh.dtypes import INT64, DType
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, LayerCache
from weigh.records import dataclass


class Parts(Module):
    """Modules, parameters and buffers under the names they are given (those that are None are left out)."""

    def __init__(self, /, **parts: Module | Tensor | None) -> None:
        super().__init__()
        self.add(**parts)

    def add(self, /, **parts: Module | Tensor | None) -> None:
        """More parts, after those that are there."""
        self.__dict__.update({name: part for name, part in parts.items() if part is not None})


class AttentionParts(Parts):
    role = nn.ATTENTION


class MlpParts(Parts):
    role = nn.MLP


class BlockParts(Parts):
    role = nn.BLOCK


class HeadParts(Parts):
    role = nn.HEAD


class Counted(CausalModel):
    """A model of parts; `name` is upstream's class."""

    cache_layers = 0

    def __init__(self, name: str, layout: tuple[LayerCache, ...] = (), /, **parts: Module | Tensor | None) -> None:
        super().__init__()
        self.__dict__.update({part: module for part, module in parts.items() if module is not None})
        self._name, self._layout = name, layout

    @property
    def name(self) -> str:
        return self._name

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return self._layout


@dataclass(frozen=True, slots=True)
class Make:
    """The usual parts, every parameter in `dtype`."""

    dtype: DType

    def linear(self, width_in: int, width_out: int, bias: bool = True) -> nn.Linear:
        """A weight (out, in) and a bias."""
        return nn.Linear(width_in, width_out, self.dtype, bias)

    def linears(self, width_in: int, width_out: int, *names: str, bias: bool = True) -> dict[str, Module]:
        """Alike linear layers by name."""
        return {name: self.linear(width_in, width_out, bias) for name in names}

    def norm(self, width: int, bias: bool = True) -> nn.LayerNorm:
        """A layer norm; without the bias also an RMS norm."""
        return nn.LayerNorm(width, self.dtype, bias)

    def norms(self, width: int, *names: str, bias: bool = True) -> dict[str, Module]:
        """Alike norms by name."""
        return {name: self.norm(width, bias) for name in names}

    def embedding(self, rows: int, width: int) -> nn.Embedding:
        """A table (rows, width)."""
        return nn.Embedding(rows, width, self.dtype)

    def tensor(self, *shape: int) -> Tensor:
        """A parameter of its own."""
        return nn.parameter(shape, self.dtype)

    def conv(self, width_in: int, width_out: int, *kernel: int, groups: int = 1, bias: bool = True) -> Parts:
        """A convolution: a weight (out, in / groups, *kernel) and a bias."""
        return Parts(
            weight=self.tensor(width_out, width_in // groups, *kernel), bias=self.tensor(width_out) if bias else None
        )

    def head(self, tied_to: nn.Embedding | None, width: int, vocabulary: int, bias: bool = False) -> nn.Head:
        """The output layer, whose weight may be an embedding's."""
        return nn.Head(tied_to, width, vocabulary, self.dtype, bias)


def positions(length: int) -> Tensor:
    """A buffer of one number a position, (1, length)."""
    return nn.buffer((1, length), INT64)
