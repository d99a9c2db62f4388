"""Embedding, norm, dropout, softmax and the loss."""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL, FLOAT16, FLOAT32, DType
from weigh.ghost.ops.pointwise import like, mul, to
from weigh.ghost.ops.table import CUDA_FP32, FP32, Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty


class Embedding(Op):
    """`F.embedding`. Saves the indices; the gradient is dense, of the weight's size."""

    name = "aten::embedding"
    source = "derivatives.yaml: embedding"

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor) -> Tensor:
        if ctx:
            ctx.save(indices)
        return empty((*indices.shape, weight.shape[1]), weight.dtype, "aten::embedding")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (indices,) = ctx.unpack()
        return [apply(EmbeddingDenseBackward, grad, indices, rows=ctx.inputs[0][0][0]), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class EmbeddingDenseBackward(Op):
    """Zeros of the weight's size with the gradients added in."""

    name = "aten::embedding_dense_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, indices: Tensor, *, rows: Size) -> Tensor:
        return empty((rows, grad.shape[-1]), grad.dtype, "aten::embedding_dense_backward")


class NativeLayerNorm(Op):
    """`F.layer_norm`. Saves input, weight, bias, mean and rstd (both fp32 on CUDA)."""

    name = "aten::native_layer_norm"
    source = "derivatives.yaml: native_layer_norm"
    autocast = CUDA_FP32

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> list[Tensor]:
        if ctx:
            ctx.save(x, weight, bias)
        out = empty(x.shape, x.dtype, "aten::native_layer_norm")
        mean = empty((*x.shape[:-1], 1), FLOAT32, "aten::native_layer_norm")
        rstd = empty((*x.shape[:-1], 1), FLOAT32, "aten::native_layer_norm")
        if ctx:
            ctx.save_output(mean)
            ctx.save_output(rstd)
        return [out, mean, rstd]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> list[Any]:
        x, weight, bias, _mean, _rstd = ctx.unpack()
        grads = apply(NativeLayerNormBackward, grad, x, weight, bias, needs=ctx.needs)
        return grads  # type: ignore[no-any-return]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * 5


class NativeLayerNormBackward(Op):
    """The three gradients that are wanted, in one kernel's output."""

    name = "aten::native_layer_norm_backward"

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, needs: list[bool]
    ) -> Any:
        op = "aten::native_layer_norm_backward"
        return [
            empty(t.shape, t.dtype, op) if need and t is not None else None
            for t, need in zip((x, weight, bias), needs, strict=True)
        ]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel * 10  # type: ignore[no-any-return]


class NativeDropout(Op):
    """`F.dropout` on CUDA while training. Saves a boolean mask."""

    name = "aten::native_dropout"
    source = "Dropout.cpp, is_fused_kernel_acceptable; derivatives.yaml: native_dropout"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> list[Tensor]:
        out = like("aten::native_dropout", x)
        mask = like("aten::native_dropout", x, BOOL)
        if ctx:
            ctx.save_output(mask)
        return [out, mask]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (mask,) = ctx.unpack()
        return [apply(NativeDropoutBackward, grad, mask)]


class NativeDropoutBackward(Op):
    """`grad * mask / (1 - p)`."""

    name = "aten::native_dropout_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, mask: Tensor) -> Tensor:
        return like("aten::native_dropout_backward", grad)


class Bernoulli(Op):
    """The noise of dropout on the CPU: `empty_like(x).bernoulli_(p).div_(p)`."""

    name = "aten::bernoulli_"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::empty_like", x)


class Softmax(Op):
    """`_softmax`: contiguous, whatever its input is. Saves its output; half_to_float reads fp16 and writes fp32."""

    name = "aten::_softmax"
    source = "derivatives.yaml: _softmax"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, dtype: DType) -> Tensor:
        out = empty(x.shape, dtype, cls.name)
        if ctx:
            ctx.meta = x.dtype
            ctx.save_output(out)
        return out

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        (output,) = ctx.unpack()
        return [apply(_SOFTMAX_BACKWARDS[cls.name], grad, output, dtype=ctx.meta)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * 5


class LogSoftmax(Softmax):
    """`_log_softmax`. Saves its output."""

    name = "aten::_log_softmax"
    source = "derivatives.yaml: _log_softmax"


class SoftmaxBackward(Op):
    """`_softmax_backward_data`: one tensor of the input's dtype."""

    name = "aten::_softmax_backward_data"

    @classmethod
    def forward(cls, ctx: Any, grad: Tensor, output: Tensor, *, dtype: DType) -> Tensor:
        return empty(grad.shape, dtype, cls.name)

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * 4


class LogSoftmaxBackward(SoftmaxBackward):
    """`_log_softmax_backward_data`: one tensor of the input's dtype."""

    name = "aten::_log_softmax_backward_data"


_SOFTMAX_BACKWARDS: dict[str, type[Op]] = {"aten::_softmax": SoftmaxBackward, "aten::_log_softmax": LogSoftmaxBackward}


class NllLoss(Op):
    """`nll_loss_forward`: the loss and the total weight. Saves its input, the target and the total weight."""

    name = "aten::nll_loss_forward"
    source = "derivatives.yaml: nll_loss_forward"
    autocast = FP32

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor) -> list[Tensor]:
        if ctx:
            ctx.save(x, target)
        loss = empty((), x.dtype, "aten::nll_loss_forward")
        weight = empty((), x.dtype, "aten::nll_loss_forward")
        if ctx:
            ctx.save_output(weight)
        return [loss, weight]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        x, target, _weight = ctx.unpack()
        return [apply(NllLossBackward, grad, x, target), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[1].numel  # type: ignore[no-any-return]


class NllLossBackward(Op):
    """`nll_loss_backward`: zeros of the input's shape, one entry a row set."""

    name = "aten::nll_loss_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
        return empty(x.shape, x.dtype, "aten::nll_loss_backward")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[2].numel  # type: ignore[no-any-return]


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """`F.embedding(indices, weight)`: (..., ) -> (..., width)."""
    return apply(Embedding, weight, indices)  # type: ignore[no-any-return]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`F.layer_norm` over the last dimension."""
    return apply(NativeLayerNorm, x, weight, bias)[0]  # type: ignore[no-any-return]


def native_dropout(x: Tensor) -> Tensor:
    """The fused dropout of CUDA."""
    return apply(NativeDropout, x)[0]  # type: ignore[no-any-return]


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout(x, p, training)`: itself where nothing is dropped."""
    if not p or not training:
        return x
    return state.overrides.get("dropout", native_dropout)(x)  # type: ignore[no-any-return]


def cpu_dropout(x: Tensor) -> Tensor:
    """The CPU's dropout: noise of the input's dtype, and a product that saves it (Dropout.cpp, `_dropout`)."""
    noise = apply(Bernoulli, x.alias())
    return mul(x, noise)


def softmax(x: Tensor, dtype: DType | None = None) -> Tensor:
    """`F.softmax(x, dim=-1, dtype=...)`."""
    return _softmax(Softmax, x, dtype)


def log_softmax(x: Tensor) -> Tensor:
    """`F.log_softmax(x, dim=-1)`."""
    return _softmax(LogSoftmax, x, None)


def _softmax(op: type[Op], x: Tensor, dtype: DType | None) -> Tensor:
    """SoftMax.cpp: on CUDA fp16 goes to fp32 inside the kernel, bf16 by a copy; autocast there only sets the dtype."""
    on_cuda = state.overrides.get("device") != "cpu"
    if state.autocast is not None and dtype is None and x.dtype.kind == "float" and on_cuda:
        dtype = FLOAT32
    if dtype is None or dtype is x.dtype:
        return apply(op, x, dtype=x.dtype)  # type: ignore[no-any-return]
    if x.dtype is FLOAT16 and dtype is FLOAT32 and on_cuda:
        return apply(op, x, dtype=dtype)  # type: ignore[no-any-return]
    return apply(op, to(x, dtype), dtype=dtype)  # type: ignore[no-any-return]


def nll_loss(x: Tensor, target: Tensor) -> Tensor:
    """`F.nll_loss(x, target)`, shape ()."""
    return apply(NllLoss, x, target)[0]  # type: ignore[no-any-return]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`F.cross_entropy(logits, target)`: (n, classes), (n,) -> (). Autocast on the CPU makes the logits fp32 first.

    On CUDA it leaves the log-softmax alone, which is given the logits' own dtype (LossNLL.cpp, `cross_entropy_loss`).
    Kernels may have their own.
    """
    other = state.overrides.get("cross_entropy")
    if other is not None:
        return other(logits, target)  # type: ignore[no-any-return]
    if state.autocast is not None and state.overrides.get("device") == "cpu":
        return nll_loss(log_softmax(to(logits, FLOAT32)), target)
    return nll_loss(_softmax(LogSoftmax, logits, logits.dtype), target)
