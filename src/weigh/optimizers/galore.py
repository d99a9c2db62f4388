"""GaLore, as `galore_torch` (1.0) does it: AdamW, bitsandbytes' 8-bit AdamW and Adafactor over projected gradients.

`galore` (transformers' `galore_adamw`) keeps the two averages of a projected gradient, and the projection.
`galore_adamw_8bit` keeps the averages as bitsandbytes does; for its turn a projected parameter is a small one of
zeros, and its weights are copied aside: the copy is the parameter afterwards. `galore_adafactor` projects in fp32.
"""

from __future__ import annotations

from weigh.dims import Shape
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.adafactor import Adafactor
from weigh.optimizers.bitsandbytes import BitsAndBytes
from weigh.optimizers.projected import Projected
from weigh.trace.events import OPTIMIZER_STATE, TEMPORARY, WEIGHT


class GaLore(Projected):
    """`galore_torch.GaLoreAdamW`."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The averages of the projected gradient."""
        shape = self.low_shape(param)
        return [ops.kept_beside(param, shape, param.dtype, OPTIMIZER_STATE, "aten::zeros_like") for _ in range(2)]

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            if id(param) in self.projected:
                grad = self.project(param, grad)
            exp_avg, exp_avg_sq = self.state_of(param)
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            denom = ops.sqrt(exp_avg_sq)  # this, the update and the gradient live into the next parameter's turn
            norm_grad = ops.div(exp_avg, denom)
            if id(param) in self.projected:
                norm_grad = self.project_back(param, norm_grad)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
        del grad, denom, norm_grad


class GaLoreAdafactor(Projected, Adafactor):
    """`galore_torch.GaLoreAdafactor`, with a learning rate from outside, as transformers' Trainer gives it."""

    relative_step = False

    def seen_gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        return self.project(param, grad) if id(param) in self.projected else grad

    def whole_update(self, param: Tensor, update: Tensor) -> Tensor:
        return self.project_back(param, update) if id(param) in self.projected else update

    def kept_shape(self, param: Tensor) -> Shape:
        return self.low_shape(param)


class GaLoreAdamW8bit(Projected, BitsAndBytes):
    """`galore_torch.GaLoreAdamW8bit`."""

    keeps_norm = True  # its `percentile_clipping=100` is bitsandbytes' `max_unorm` since release 0.49

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            if id(param) not in self.projected:
                self.update(param, param)
                continue
            grad = self.project(param, grad)
            path = param.storage.path
            saved_data = ops.clone(param)
            saved_data.storage.relabel(WEIGHT, path)
            data = ops.clone(grad)
            data.storage.relabel(TEMPORARY, path)
            param.storage = data.storage
            param.grad = grad
            self.update(param, data)
            self.project_back(param, data)
            ops.in_place("aten::add_", [saved_data], reads=2)
            param.storage = saved_data.storage
            del saved_data, data
        del grad
