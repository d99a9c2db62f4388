"""A run seen through fake tensors: the rows that differ from a real CUDA run.

Recorded witnesses are real PyTorch steps run on fake CUDA tensors under a dispatch mode. Fake tensors take the
composite formula of some kernels, whose temporaries a GPU never allocates, and every tensor counts as a subclass
there, so that nothing is summed in place (`state.traced`; see `weigh.ghost.autograd`). Predictions for a GPU do not use
this set; comparisons with a witness do.
"""

from __future__ import annotations

from typing import Any

from weigh.ghost import ops
from weigh.ghost.ops.pointwise import SiluBackward, elementwise, like
from weigh.ghost.ops.recurrent import SoftplusBackward
from weigh.ghost.tensor import Tensor


class TracedSiluBackward(SiluBackward):
    """`math_silu_backward`: five temporaries that live to the end of the expression (Activation.cpp)."""

    @classmethod
    def forward(cls, ctx: Any, grad: Tensor, saved: Tensor) -> Tensor:
        sigmoid = ops.sigmoid(saved)
        complement = like("aten::empty_like", sigmoid)
        product = ops.mul(saved, complement)
        total = ops.add(product, 1)
        inner = ops.mul(sigmoid, total)
        return ops.mul(grad, inner)


class TracedSoftplusBackward(SoftplusBackward):
    """`where` over a comparison of what was saved, whose layout the result has (torch/_decomp/decompositions.py)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, saved: Tensor) -> Tensor:
        return elementwise("aten::softplus_backward", saved, grad)


TRACED: dict[str, Any] = {
    "aten::silu_backward": TracedSiluBackward,
    "aten::softplus_backward": TracedSoftplusBackward,
}
