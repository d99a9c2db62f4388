"""What layers with quantized weights share, whoever quantized them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from weigh.dims import Shape, Size
from weigh.dtypes import DType
from weigh.errors import WeighError
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.state import inside_unit


class PackedLinear(nn.Linear):
    """A linear layer whose weight is stored otherwise than it is used: packed, or in whole numbers."""

    def __init__(self, shape: Shape, dtype: DType) -> None:
        Module.__init__(self)
        self.shape = shape
        """(out, in) of the weight."""
        self.dtype = dtype
        """That of the weight when it is made whole."""

    def elements_of(self, parameter: str) -> Size:
        """Several weights may share an element."""
        return prod(self.shape) if parameter == "weight" else super().elements_of(parameter)


def replace_linear(model: Module, make: Callable[[nn.Linear], PackedLinear]) -> None:
    """Put packed layers in place of plain linear ones; the output layer, which is none, stays as it is.

    Raises:
        WeighError: the model has no linear layers.
    """
    found = 0
    for parent in list(model.modules()):
        for name, child in list(parent.children()):
            if child.__class__ is nn.Linear:
                with inside_unit(child.weight.storage.unit):
                    setattr(parent, name, make(child))
                found += 1
    if not found:
        raise WeighError("quantization found no linear layers", hint="It looks for modules like nn.Linear.")
