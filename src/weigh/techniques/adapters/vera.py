"""VeRA: two random matrices that all layers share, and vectors between and behind them that are trained.

Read: peft (0.21), tuners/vera/{model,layer}.py. The matrices are as large as the widest of the adapted layers needs,
and in the adapters' dtype; each layer takes a slice of them, which no product copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Vera(LayerAdapter):
    """Two vectors for each of the layers that are named."""

    kind: ClassVar[str] = "vera"
    keys: ClassVar[Mapping[str, str]] = {"dropout": "vera_dropout"}
    harmless: ClassVar[tuple[str, ...]] = ("projection_prng_key", "save_projection", "d_initial")

    rank: int = 256
    """Width of the shared matrices."""
    dropout: float = 0.0
    """On the adapters' input."""

    def shared(self, model: Module, layers: list[Any]) -> tuple[Tensor, Tensor]:
        """The two matrices, which are the model's."""
        dtype = self.dtype_beside(layers[0])
        sizes = [widths(layer) for layer in layers]
        model.vera_A = nn.buffer((self.rank, max(size[0] for size in sizes)), dtype)  # type: ignore[attr-defined]
        model.vera_B = nn.buffer((max(size[1] for size in sizes), self.rank), dtype)  # type: ignore[attr-defined]
        return model.vera_A, model.vera_B  # type: ignore[attr-defined]

    def adapter(self, layer: Any, shared: tuple[Tensor, Tensor]) -> Module:
        """The layer with its vectors."""
        return VeraLinear(layer, self, shared)


class VeraLinear(AdaptedLayer):
    """`vera.Linear`."""

    def __init__(self, base_layer: Any, settings: Vera, shared: tuple[Tensor, Tensor]) -> None:
        super().__init__(base_layer)
        dtype = settings.dtype_beside(base_layer)
        self.widths = widths(base_layer)
        self.matrices = shared
        self.p = settings.dropout
        self.vera_lambda_b = nn.parameter((self.widths[1],), dtype)
        self.vera_lambda_d = nn.parameter((settings.rank,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        previous_dtype = x.dtype
        result: Tensor = self.base_layer(x)
        orig_dtype = result.dtype
        vera_A, vera_B = self.matrices
        sliced_A = vera_A.narrow(1, self.widths[0])
        sliced_B = vera_B.narrow(0, self.widths[1])
        x = x.to(self.vera_lambda_d.dtype)
        result = result + self.vera_lambda_b * ops.linear(
            self.vera_lambda_d * ops.linear(ops.dropout(x, self.p, self.training), sliced_A), sliced_B
        )
        result = result.to(orig_dtype)
        result = result.to(previous_dtype)
        return result
