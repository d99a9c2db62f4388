"""Liger's Triton kernels inside a model: norms, rotations, gated MLPs, and the loss with the output layer.

Read: liger-kernel 0.8.5, ops/{rms_norm,rope,swiglu,fused_linear_cross_entropy}.py, transformers/model/loss_utils.py,
transformers/monkey_patch.py. A norm keeps its input and a number a row, and writes the input's gradient over the
incoming one; queries and keys are turned where they lie; a gated MLP keeps gate and up, over which their gradients are
written. The loss goes through the tokens in chunks whose logits lie in one buffer, in which they become their
gradients; those of the hidden states and of the weight are complete when the forward pass is.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, INT64
from weigh.ghost import ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels.liger import chunks
from weigh.trace.events import TEMPORARY

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Families that upstream patches and whose classes here have all that it replaces."""

MULTIPROCESSORS = {"7.0": 80, "7.5": 40, "8.0": 108, "8.6": 84, "8.9": 128, "9.0": 132, "10.0": 148, "12.0": 170}
"""Of a device of each compute capability (the largest where there are several): rows of a norm's partial sums."""

AMPERE = " 8.0"


class LigerRMSNorm(Op):
    """A norm over the last dimension."""

    name = "LigerRMSNormFunction"
    source = "liger_kernel/ops/rms_norm.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        shape = x.shape
        x = x.contiguous()
        x = x.view(-1, shape[-1])
        out = empty(x.shape, x.dtype, cls.name)
        inverse = empty(x.shape[:1], FLOAT32, cls.name)
        if ctx:
            ctx.save(x, weight, inverse)
        return out.view(*shape)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        _, weight, _ = ctx.unpack()
        grad = grad.contiguous()
        gradient = None
        if ctx.needs[1]:
            partial = empty((_multiprocessors(), weight.shape[0]), FLOAT32, cls.name)
            gradient = ops.sum(partial, (0,)).to(weight.dtype)
            del partial
        return [grad.view(-1, grad.shape[-1]).view(*grad.shape), gradient]


class LigerRope(Op):
    """Queries and keys (batch, heads, length, width), turned in place."""

    name = "LigerRopeFunction"
    source = "liger_kernel/ops/rope.py"
    view = True
    differentiable = 2

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, *, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if ctx:
            ctx.save(*tables)
        return _turned(q, k)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> list[Any]:
        ctx.unpack()
        return [*_turned(dq, dk)]


def _turned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    q = q.contiguous()
    k = k.contiguous()
    return q.transpose(1, 2), k.transpose(1, 2)


class LigerSiLUMul(Op):
    """`silu(gate) * up`. The gradients of both are written over them."""

    name = "LigerSiLUMulFunction"
    source = "liger_kernel/ops/swiglu.py"

    @classmethod
    def forward(cls, ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = empty(gate.shape, gate.dtype, cls.name)
        if ctx:
            ctx.save(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        gate, up = ctx.unpack()
        grad.contiguous()
        return [gate.alias(), up.alias()]


class LigerFusedLinearLoss(Op):
    """The loss of hidden states (n, width) under a head (vocabulary, width), () in fp32. Saves both' gradients."""

    name = "LigerFusedLinearCrossEntropyFunction.chunks"
    source = "liger_kernel/ops/fused_linear_cross_entropy.py"

    @classmethod
    def forward(cls, ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        rows, width = hidden.shape
        lengths = chunks(rows, weight.shape[0], width)
        reused = hidden.dtype is weight.dtype and (state.autocast is None or state.autocast.dtype is hidden.dtype)
        with no_grad():
            grad_input = ops.zeros_like(hidden, TEMPORARY)
            trained = hidden.requires_grad and weight.requires_grad
            grad_weight = ops.zeros_like(weight, TEMPORARY) if trained else None
            loss_1d = ops.zeros((rows,), FLOAT32)
            target_mask = empty(target.shape, BOOL, "aten::ne")
            empty((), INT64, "aten::sum")  # .item()
            storage = empty((lengths[0], weight.shape[0]), hidden.dtype, cls.name) if reused else None
            for length in lengths:
                chunk = hidden.narrow(0, length)
                grad_logits = storage.narrow(0, length) if storage is not None else chunk.matmul(weight.t())
                if storage is None and hidden.requires_grad:
                    grad_logits.matmul(weight)
                if grad_weight is not None:
                    cls.add(grad_weight, grad_logits, chunk)
                del grad_logits, chunk
            del storage
            loss: Tensor = ops.sum(loss_1d, (0,))
        del target_mask, loss_1d
        if ctx:
            ctx.save(grad_input, grad_weight)
        return loss

    @staticmethod
    def add(grad_weight: Tensor, grad_logits: Tensor, chunk: Tensor) -> None:
        """The gradient of the weight of one chunk is added: by the product itself, in fp32 through a matrix."""
        if grad_logits.dtype in (FLOAT16, BFLOAT16) and _capability() >= AMPERE:
            if chunk.dtype is not grad_logits.dtype:
                chunk = chunk.to(grad_logits.dtype)
            return
        product = empty(grad_weight.shape, grad_logits.dtype, "aten::mm")
        product.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        grad_input, grad_weight = ctx.unpack()
        return [grad_input.alias(), None if grad_weight is None else grad_weight.alias(), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        hidden, weight = tensors[:2]
        return 6 * hidden.numel * weight.shape[0]  # type: ignore[no-any-return]


def _capability() -> str:
    found: str = state.overrides.get("compute_capability", AMPERE)
    return found.rjust(4)


def _multiprocessors() -> int:
    return MULTIPROCESSORS.get(_capability().strip(), max(MULTIPROCESSORS.values()))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """`LigerRMSNorm`."""
    return apply(LigerRMSNorm, x, weight)  # type: ignore[no-any-return]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`LigerSwiGLUMLP`, between its linear layers."""
    return apply(LigerSiLUMul, gate, up)  # type: ignore[no-any-return]


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`liger_rotary_pos_emb`."""
    tables = cos.contiguous(), sin.contiguous()
    q, k = apply(LigerRope, q, k, tables=tables)
    return q, k


def linear_causal_lm_loss(hidden_states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """`LigerForCausalLMLoss`."""
    labels = ops.pad(labels, 1)
    shift_labels = labels.narrow(-1, labels.shape[-1] - 1).contiguous()
    hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
    shift_labels = shift_labels.view(-1)
    return apply(LigerFusedLinearLoss, hidden_states, weight, shift_labels)  # type: ignore[no-any-return]


KERNELS: dict[str, Any] = {
    "rms_norm": rms_norm,
    "apply_rotary_pos_emb": apply_rotary_pos_emb,
    "swiglu": swiglu,
}
