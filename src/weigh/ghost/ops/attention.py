"""The attention kernels behind `scaled_dot_product_attention`. Which one runs is the kernels' choice, not made here.

Queries are (batch, heads, length, width); keys and values may have fewer heads.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size, round_up
from weigh.dtypes import FLOAT32, INT64, UINT64
from weigh.ghost.ops.creation import new_like
from weigh.ghost.ops.network import Softmax, SoftmaxBackward
from weigh.ghost.ops.table import LOWER, Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty, normalise


def attention_flops(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Size:
    """Two products of queries and keys, each 2 * length * length * width; a causal kernel skips half."""
    rows = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    flops = rows * (2 * (query.shape[3] + value.shape[3]))
    return flops // 2 if causal and query.shape[2] == key.shape[2] else flops


def _by_position(x: Tensor, op: str, width: Size | None = None) -> Tensor:
    """A tensor in the logical shape of `x`, stored position by position: (batch, length, heads, width)."""
    batch, heads, length, own = x.shape
    width = own if width is None else width
    strides = (length * heads * width, width, heads * width, 1)
    shape = (batch, heads, length, width)
    return empty(shape, x.dtype, op, normalise(shape, strides))


def _like_transposed(x: Tensor, op: str) -> Tensor:
    """`empty_like(x.transpose(1, 2)).transpose(1, 2)`."""
    return new_like(x.alias().transpose(1, 2), op).transpose(1, 2)


class FlashAttention(Op):
    """FlashAttention-2. Saves query, key, value, output, the log-sum-exp and the state of the random numbers."""

    name = "aten::_scaled_dot_product_flash_attention"
    source = "derivatives.yaml: _scaled_dot_product_flash_attention; cuda/attention.cu"
    autocast = LOWER

    @classmethod
    def forward(cls, ctx: Any, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> list[Tensor]:
        out = _like_transposed(query, cls.name)
        lse = empty(query.shape[:3], FLOAT32, cls.name)
        seed = empty((2,), UINT64, cls.name)
        offset = empty((), UINT64, cls.name)
        outputs = [out, lse, seed, offset]
        if ctx:
            cls.keep(ctx, query, key, value, outputs, causal)
        return outputs

    @staticmethod
    def keep(ctx: Any, query: Tensor, key: Tensor, value: Tensor, outputs: list[Tensor], causal: bool) -> None:
        """What is saved for the backward pass."""
        ctx.save(query, key, value)
        ctx.meta = causal
        for saved in outputs:
            ctx.save_output(saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        query, key, value, *_ = ctx.unpack()
        return apply(FlashAttentionBackward, grad, query, key, value, causal=ctx.meta)[:3]  # type: ignore[no-any-return]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[0], tensors[1], tensors[2], causal=True)


class FlashAttentionBackward(Op):
    """The three gradients, stored position by position."""

    name = "aten::_scaled_dot_product_flash_attention_backward"

    @classmethod
    def forward(
        cls, ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *, causal: bool
    ) -> list[Tensor]:
        return [_like_transposed(t, cls.name) for t in (query, key, value)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[1], tensors[2], tensors[3], causal=True) * 5 // 2


class EfficientAttention(Op):
    """The memory-efficient kernel (cutlass). Its log-sum-exp is padded to 32 rows; a bias is saved."""

    name = "aten::_scaled_dot_product_efficient_attention"
    source = "derivatives.yaml: _scaled_dot_product_efficient_attention; cuda/attention.cu, kAlignLSE = 32"

    @classmethod
    def forward(
        cls, ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, causal: bool, keep: bool
    ) -> list[Tensor]:
        if ctx:
            ctx.save(query, key, value, bias)
            ctx.meta = causal
        out = _by_position(query, cls.name, value.shape[3])
        lse = empty((*query.shape[:2], round_up(query.shape[2], 32) if keep else 0), FLOAT32, cls.name)
        seed = empty((), INT64, cls.name)
        offset = empty((), INT64, cls.name)
        if ctx:
            for saved in (out, lse, seed, offset):
                ctx.save_output(saved)
        return [out, lse, seed, offset]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        query, key, value, bias, *_ = ctx.unpack()
        if not ctx.needs[3]:
            bias = None
        return apply(EfficientAttentionBackward, grad, query, key, value, bias)  # type: ignore[no-any-return]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[0], tensors[1], tensors[2], causal=True)


class EfficientAttentionBackward(Op):
    """The three gradients, stored position by position; the bias's for every head, its rows padded to 16 elements."""

    name = "aten::_scaled_dot_product_efficient_attention_backward"

    @classmethod
    def forward(
        cls, ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> list[Tensor | None]:
        gradients: list[Tensor | None] = [_by_position(t, cls.name) for t in (query, key, value)]
        if bias is None:
            return [*gradients, None]
        length = bias.shape[-1]
        padded = empty((*bias.shape[:-1], round_up(length, 16)), bias.dtype, cls.name)
        return [*gradients, padded.narrow(-1, length)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[1], tensors[2], tensors[3], causal=True) * 5 // 2


class CudnnAttention(Op):
    """cuDNN's kernel."""

    name = "aten::_scaled_dot_product_cudnn_attention"
    source = "derivatives.yaml: _scaled_dot_product_cudnn_attention"
    autocast = LOWER

    @classmethod
    def forward(cls, ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if ctx:
            ctx.save(query, key, value)
        out = new_like(query.alias(), cls.name)
        lse = empty((*query.shape[:3], 1), FLOAT32, cls.name)
        seed = empty((), INT64, cls.name)
        offset = empty((), INT64, cls.name)
        if ctx:
            for saved in (out, lse, seed, offset):
                ctx.save_output(saved)
        return [out, lse, seed, offset]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        query, key, value, *_ = ctx.unpack()
        return apply(CudnnAttentionBackward, grad, query, key, value)[:3]  # type: ignore[no-any-return]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[0], tensors[1], tensors[2], causal=True)


class CudnnAttentionBackward(Op):
    """The three gradients, in the inputs' layouts."""

    name = "aten::_scaled_dot_product_cudnn_attention_backward"

    @classmethod
    def forward(cls, ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        return [new_like(t.alias(), cls.name) for t in (query, key, value)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[1], tensors[2], tensors[3], causal=True) * 5 // 2


class FlashAttentionCpu(Op):
    """The CPU's fused kernel."""

    name = "aten::_scaled_dot_product_flash_attention_for_cpu"
    source = "derivatives.yaml: _scaled_dot_product_flash_attention_for_cpu"
    autocast = LOWER

    @classmethod
    def forward(cls, ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> list[Tensor]:
        if ctx:
            ctx.save(query, key, value, bias)
        out = new_like(query.alias(), cls.name)
        batch, heads, length, _ = query.shape
        lse = empty((batch, heads, length), FLOAT32, cls.name, (length * heads, 1, heads))
        if ctx:
            ctx.save_output(out)
            ctx.save_output(lse)
        return [out, lse]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        query, key, value, *_ = ctx.unpack()
        return [*apply(FlashAttentionCpuBackward, grad, query, key, value)[:3], None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[0], tensors[1], tensors[2], causal=True)


class FlashAttentionCpuBackward(Op):
    """The three gradients, stored position by position."""

    name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"

    @classmethod
    def forward(cls, ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        return [_by_position(t, cls.name) for t in (query, key, value)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return attention_flops(tensors[1], tensors[2], tensors[3], causal=True) * 5 // 2


class SafeSoftmax(Op):
    """`_safe_softmax`: zeros where a whole row is masked. Saves its output."""

    name = "aten::_safe_softmax"
    source = "derivatives.yaml: _safe_softmax"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        out = empty(x.shape, x.dtype, cls.name)
        if ctx:
            ctx.meta = x.dtype
            ctx.save_output(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (output,) = ctx.unpack()
        return [apply(SoftmaxBackward, grad, output, dtype=ctx.meta)]

    flops = Softmax.flops


class FlashRotary(Op):
    """flash-attn's Triton rotation of (batch, length, heads, width): a new tensor laid out alike, forward and back."""

    name = "flash_attn::apply_rotary"
    source = "flash_attn 2.3.4, layers/rotary.py (ApplyRotaryEmb) and ops/triton/rotary.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, cos: Tensor, sin: Tensor) -> Tensor:
        if ctx:
            ctx.meta = cos, sin
        return new_like(x, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        return [new_like(grad, cls.name)]


def flash_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`flash_attn.layers.rotary.apply_rotary_emb_func(x, cos, sin)`."""
    return apply(FlashRotary, x, cos=cos, sin=sin)  # type: ignore[no-any-return]


def flash_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """FlashAttention-2: (batch, heads, length, width), 16-bit, no mask."""
    return apply(FlashAttention, query, key, value, causal=causal)[0]  # type: ignore[no-any-return]


def efficient_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """The memory-efficient kernel. The log-sum-exp is made only where a backward pass will want it."""
    keep = _wants_grad(query, key, value, bias)
    return apply(EfficientAttention, query, key, value, bias, causal=causal, keep=keep)[0]  # type: ignore[no-any-return]


def _wants_grad(*tensors: Tensor | None) -> bool:
    return state.grad_enabled and any(t is not None and t.requires_grad for t in tensors)


def cudnn_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernel of cuDNN."""
    return apply(CudnnAttention, query, key, value)[0]  # type: ignore[no-any-return]


def flash_attention_cpu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The CPU's fused kernel."""
    return apply(FlashAttentionCpu, query, key, value, bias)[0]  # type: ignore[no-any-return]


def safe_softmax(x: Tensor) -> Tensor:
    """`_safe_softmax(x, -1)`."""
    return apply(SafeSoftmax, x)  # type: ignore[no-any-return]


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
) -> Tensor:
    """`F.scaled_dot_product_attention`: runs the kernel that the kernels in use choose (see `weigh.kernels`).

    `grouped` is `enable_gqa`: keys and values have fewer heads than queries.
    """
    choose = state.overrides.get("scaled_dot_product_attention")
    if choose is None:
        raise AssertionError("no kernels are in use: run inside `recording(kernels)`")
    return choose(query, key, value, mask, dropout, causal, grouped)  # type: ignore[no-any-return]
