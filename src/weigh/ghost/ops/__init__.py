"""The ops that model code may call, as functions. Rows of the op table stand in the modules beside this one."""

from weigh.ghost.ops.attention import (
    cudnn_attention,
    efficient_attention,
    flash_attention,
    flash_attention_cpu,
    safe_softmax,
    scaled_dot_product_attention,
)
from weigh.ghost.ops.creation import arange, full, input_tensor, new_like, ones, ones_like, scalar_tensor, zeros
from weigh.ghost.ops.foreach import foreach, foreach_norm, in_place, scalar_state, stack_scalars, zeros_like
from weigh.ghost.ops.indexing import argmax, gather, index_copy_, index_select, repeat_interleave, topk, where
from weigh.ghost.ops.matmul import addmm, bmm, linear, matmul, mm
from weigh.ghost.ops.network import (
    cpu_dropout,
    cross_entropy,
    dropout,
    embedding,
    layer_norm,
    log_softmax,
    native_dropout,
    nll_loss,
    softmax,
)
from weigh.ghost.ops.pointwise import (
    add,
    clamp,
    cos,
    div,
    exp,
    gelu,
    less_equal,
    like,
    mul,
    neg,
    pow,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    silu,
    sin,
    sqrt,
    sub,
    tanh,
    to,
    tril,
)
from weigh.ghost.ops.reduction import mean, sum, sum_to_size, vector_norm
from weigh.ghost.ops.table import TABLE, Op, apply
from weigh.ghost.ops.views import (
    cat,
    clone,
    clone_contiguous,
    clone_like,
    contiguous,
    expand,
    narrow,
    pad,
    permute,
    reshape,
    select,
    split,
    squeeze,
    transpose,
    unsqueeze,
    view,
)

__all__ = [name for name in dir() if not name.startswith("_")]
