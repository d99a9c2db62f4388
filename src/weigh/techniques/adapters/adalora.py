"""AdaLoRA: thin matrices with a factor for each of their rows, whose number is cut while training goes on.

Read: peft (0.21), tuners/adalora/{layer,model}.py. The loss has a term for how far the matrices are from orthogonal
ones, which makes a small matrix for each of them. Not run: `update_and_allocate`, which a script calls by itself after
each step, and which keeps three numbers for every number of the adapters.
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
class AdaLora(LayerAdapter):
    """Two thin matrices and a vector beside each of the layers that are named."""

    kind: ClassVar[str] = "adalora"
    keys: ClassVar[Mapping[str, str]] = {"rank": "init_r", "dropout": "lora_dropout"}
    harmless: ClassVar[tuple[str, ...]] = (
        *("r", "lora_alpha", "alpha_pattern", "init_lora_weights", "loftq_config", "runtime_config", "use_rslora"),
        *("qalora_group_size", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "total_step"),
        "orth_reg_weight",
    )

    rank: int = 12
    """Width of the adapters at first (`init_r`)."""
    dropout: float = 0.0
    """On the adapters' input."""

    @property
    def uneven(self) -> bool:
        """The loss's term goes over all layers at once."""
        return True

    def as_peft(self) -> dict[str, Any]:
        """As for every method; peft wants to know how long it will be trained."""
        return LayerAdapter.as_peft(self) | {"total_step": 1000, "target_r": 1}

    def place(self, model: Module) -> None:
        """As every method; and let the loss have its term."""
        LayerAdapter.place(self, model)
        model.wrap_in(_orthogonal(model))

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its matrices."""
        return SVDLinear(layer, self)


class SVDLinear(AdaptedLayer):
    """`adalora.SVDLinear`."""

    def __init__(self, base_layer: Any, settings: AdaLora) -> None:
        super().__init__(base_layer)
        dtype = settings.dtype_beside(base_layer)
        width_in, width_out = widths(base_layer)
        self.p = settings.dropout
        self.lora_A = nn.parameter((settings.rank, width_in), dtype)
        self.lora_B = nn.parameter((width_out, settings.rank), dtype)
        self.lora_E = nn.parameter((settings.rank, 1), dtype)
        self.ranknum = nn.parameter((1,), dtype)  # trained, though its class means to freeze it

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        ranknum = self.ranknum + 1e-5
        x = x.to(self.lora_A.dtype)
        return ops.add_(
            result,
            ops.dropout(x, self.p, self.training).matmul((self.lora_A * self.lora_E).t()).matmul(self.lora_B.t())
            * 2.0
            / ranknum,
        )


def _orthogonal(model: Module) -> Any:
    """`AdaLoraModel.forward`."""

    def outer(forward: Any, *args: Any) -> Any:
        outputs = forward(*args)
        if outputs.loss is None:
            return outputs
        regu_loss: Tensor | None = None
        for module in model.modules():
            if not isinstance(module, SVDLinear):
                continue
            for matrix, turned in ((module.lora_A, False), (module.lora_B, True)):
                para_cov = matrix.t().matmul(matrix) if turned else matrix.matmul(matrix.t())
                identity = ops.empty_like(para_cov)
                term = ops.norm(para_cov - identity)
                regu_loss = term + 0.0 if regu_loss is None else ops.add_(regu_loss, term)
                del term
        assert regu_loss is not None
        regu_loss = regu_loss / 2.0
        outputs.loss = ops.add_(outputs.loss, 0.5 * regu_loss)
        return outputs

    return outer
