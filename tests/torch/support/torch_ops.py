"""`weigh.ghost.ops` in real PyTorch: the same names with the same arguments, so that a program can be written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that everyone uses
from support.expert_programs import TorchExpertOps
from support.family_programs import TorchFamilyOps
from support.matrix_programs import TorchMatrixOps
from support.recurrent_programs import TorchRecurrentOps
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
Tensor = torch.Tensor


class TorchOps(TorchExpertOps, TorchFamilyOps, TorchMatrixOps, TorchRecurrentOps):
    """The ops of one device."""

    def __init__(self, device: str) -> None:
        self.device = device

    # -- what the two libraries spell differently
    dtype = staticmethod(lambda name: getattr(torch, name))
    no_grad = staticmethod(torch.no_grad)

    def autocast(self, dtype: torch.dtype | None) -> Any:
        return torch.autocast(self.device, dtype, enabled=dtype is not None)

    @staticmethod
    def checkpoint(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        return checkpoint(function, *args, use_reentrant=False)

    @staticmethod
    def selective_checkpoint(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        def contexts() -> Any:
            products = {True: 0, False: 0}

            def policy(ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
                kept = op is aten._scaled_dot_product_flash_attention.default
                if op is aten.mm.default:
                    products[ctx.is_recompute] += 1
                    kept = products[ctx.is_recompute] % 2 == 1
                return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

            return create_selective_checkpoint_contexts(policy)

        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

    @staticmethod
    def reentrant_checkpoint(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        return checkpoint(function, *args, use_reentrant=True)

    # -- creation
    def arange(self, length: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.arange(length, dtype=dtype, device=self.device)

    def eye(self, length: int, dtype: torch.dtype) -> Tensor:
        return torch.eye(length, dtype=dtype, device=self.device)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def ones(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=self.device)

    def full(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, 1, dtype=dtype, device=self.device)

    def scalar_tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.scalar_tensor(1, dtype=dtype, device=self.device)

    ones_like = staticmethod(torch.ones_like)

    # -- arithmetic
    add, sub, mul, div = map(staticmethod, (torch.add, torch.sub, torch.mul, torch.div))
    pow, neg, rsqrt, sqrt = map(staticmethod, (torch.pow, torch.neg, torch.rsqrt, torch.sqrt))
    reciprocal, exp, cos, sin = map(staticmethod, (torch.reciprocal, torch.exp, torch.cos, torch.sin))
    tanh, sigmoid, relu = map(staticmethod, (torch.tanh, torch.sigmoid, torch.relu))
    silu, gelu = map(staticmethod, (F.silu, F.gelu))
    less_equal, tril, logical_and = map(staticmethod, (torch.less_equal, torch.tril, torch.bitwise_and))
    add_ = staticmethod(lambda a, b: a.add_(b))
    absolute, log, full_like = map(staticmethod, (torch.abs, torch.log, lambda x: torch.full_like(x, 1)))
    expm1, floor = map(staticmethod, (torch.expm1, torch.floor))
    isinf, minimum, power, greater = map(staticmethod, (torch.isinf, torch.minimum, torch.pow, torch.greater))
    greater_equal, clamp_between = map(staticmethod, (torch.greater_equal, torch.clamp))
    zeros_as, stack_last = map(staticmethod, (torch.zeros_like, lambda tensors: torch.stack(tensors, -1)))
    to = staticmethod(lambda x, dtype: x.to(dtype))
    clamp = staticmethod(lambda x: torch.clamp(x.detach(), max=1.0))

    # -- network
    embedding, linear = map(staticmethod, (F.embedding, F.linear))
    cross_entropy, nll_loss = map(staticmethod, (F.cross_entropy, F.nll_loss))
    layer_norm = staticmethod(lambda x, weight, bias: F.layer_norm(x, (x.shape[-1],), weight, bias))
    dropout = staticmethod(F.dropout)
    softmax = staticmethod(lambda x, dtype=None: F.softmax(x, -1, dtype=dtype))
    log_softmax = staticmethod(lambda x: F.log_softmax(x, -1))
    safe_softmax = staticmethod(lambda x: aten._safe_softmax(x, -1))

    # -- products
    mm, addmm, bmm, matmul = map(staticmethod, (torch.mm, torch.addmm, torch.bmm, torch.matmul))

    # -- picking
    where = staticmethod(torch.where)
    argmax = staticmethod(lambda x: x.argmax(-1))
    topk = staticmethod(lambda x, k: tuple(torch.topk(x, k)))
    stack = staticmethod(lambda tensors: torch.stack(tensors, 1))
    index_select = staticmethod(lambda x, index: x.index_select(0, index))
    index_copy_ = staticmethod(lambda x, index, source: x.index_copy_(0, index, source))
    repeat_interleave = staticmethod(lambda x, repeats: x.detach().repeat_interleave(repeats, 0))
    gather = staticmethod(lambda x, index, _: x.gather(1, index))

    # -- views and copies
    view = staticmethod(lambda x, shape: x.view(*shape))
    reshape = staticmethod(lambda x, shape: x.reshape(*shape))
    expand = staticmethod(lambda x, shape: x.expand(*shape))
    narrow = staticmethod(lambda x, dim, length, start=0: x.narrow(dim, start, length))
    select = staticmethod(lambda x, dim: x.select(dim, 0))
    split = staticmethod(lambda x, sizes, dim=0: list(x.split(sizes, dim)))
    transpose, permute, unsqueeze = map(staticmethod, (torch.transpose, torch.permute, torch.unsqueeze))
    squeeze, cat, clone = map(staticmethod, (torch.squeeze, torch.cat, torch.clone))
    contiguous = staticmethod(lambda x: x.contiguous())
    clone_contiguous = staticmethod(lambda x: x.clone(memory_format=torch.contiguous_format))
    pad = staticmethod(lambda x, amount: F.pad(x, (0, amount)))

    # -- reductions
    sum = staticmethod(lambda x, dims, keepdim=False: x.sum(dims, keepdim))
    sum_to_size = staticmethod(lambda x, shape: x.sum_to_size(tuple(shape)))
    mean = staticmethod(lambda x, dim, keepdim=False: x.mean(dim, keepdim))
    cumsum = staticmethod(lambda x: x.cumsum(-1))
    vector_norm = staticmethod(lambda x, dim=None: torch.linalg.vector_norm(x.detach(), dim=dim))

    # -- lists
    foreach = staticmethod(lambda op, tensors: list(getattr(torch, op.removeprefix("aten::"))(list(tensors))))
    foreach_norm = staticmethod(lambda tensors: list(torch._foreach_norm(list(tensors))))
    stack_scalars = staticmethod(lambda scalars, _: torch.stack(scalars))
    zeros_like = staticmethod(lambda x, _, dtype=None: torch.zeros_like(x.detach(), dtype=dtype))

    @staticmethod
    def in_place(op: str, tensors: Sequence[Tensor]) -> None:
        getattr(torch, op.removeprefix("aten::"))(list(tensors), 2.0)

    # -- attention
    flash_attention = staticmethod(
        lambda q, k, v, causal: aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]
    )
    cudnn_attention = staticmethod(
        lambda q, k, v: aten._scaled_dot_product_cudnn_attention(q, k, v, None, _wants_grad(q, k, v), 0.0, True)[0]
    )
    flash_attention_cpu = staticmethod(
        lambda q, k, v, bias: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)[0]
    )

    @staticmethod
    def efficient_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
        keep = _wants_grad(query, key, value)
        return aten._scaled_dot_product_efficient_attention(query, key, value, bias, keep, 0.0, causal)[0]

    def scaled_dot_product_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, dropout: float, causal: bool, grouped: bool
    ) -> Tensor:
        if self.device == "cuda":
            return cuda_attention(query, key, value, mask, dropout, causal, grouped)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, enable_gqa=grouped)


def _wants_grad(*tensors: Tensor) -> bool:
    """`should_compute_logsumexp`."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def cuda_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
) -> Tensor:
    """`scaled_dot_product_attention` as CUDA runs it, which a build without CUDA cannot: it knows the math kernel only.

    Follows sdp_utils.cpp (`select_sdp_backend`) and attention.cpp (`scaled_dot_product_attention`) on capability 8.0.
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        value_, key_, query_ = value.to(dtype), key.to(dtype), query.to(dtype)
        with torch.autocast("cuda", enabled=False):
            return cuda_attention(query_, key_, value_, mask, dropout, causal, grouped)
    width, half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
    square = not causal or query.shape[-2] == key.shape[-2]
    if half and mask is None and width == key.shape[-1] == value.shape[-1] and width <= 256 and square:
        short = -width % 8
        if short:
            query, key, value = (F.pad(t, (0, short)) for t in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=width**-0.5)[0]
        return out[..., :width] if short else out
    if not (grouped and query.shape[1] != key.shape[1]):
        keep = _wants_grad(query, key, value)
        if mask is not None:
            if mask.dtype is torch.bool:
                mask = torch.where(mask, torch.scalar_tensor(0.0, dtype=query.dtype, device=mask.device), -torch.inf)
            length = mask.shape[-1]
            if length % 16:
                mask = F.pad(mask, (0, 16 - length % 16))[..., :length]
            mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], length)
        return aten._scaled_dot_product_efficient_attention(query, key, value, mask, keep, dropout, causal)[0]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, enable_gqa=grouped)
