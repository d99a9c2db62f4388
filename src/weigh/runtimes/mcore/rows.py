"""The fused operations that Megatron-LM runs, as rows of the op table: what each saves and what its backward makes.

Read: Transformer Engine 2.11 (`pytorch/module`, `pytorch/attention`, `pytorch/cross_entropy.py`) and Megatron Core 0.17
(`tensor_parallel/layers.py`, `tensor_parallel/cross_entropy.py`, `fusions`). All are modelled: stated from source, not
traced. Tensors are (S sequence, B batch, H hidden). Collectives that write into their input allocate nothing; a gather
or a scattered sum makes its result.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import BOOL, FLOAT32, INT32, INT64, DType
from weigh.ghost import ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor, empty
from weigh.trace.events import WORKSPACE

Scratch = dict[tuple[Any, ...], Tensor]
"""Buffers that outlive the operation that made them, by what they are for."""


def first(x: Tensor, length: Size) -> Shape:
    """The shape of `x` with another first dimension."""
    return (length, *x.shape[1:])


def note(op: str, flops: Size, *read: Tensor) -> None:
    """That a backward pass computes: rows are noted on their way forward only."""
    moved: Size = 0
    for x in read:
        moved = moved + x.num_bytes
    state.ledger.call(f"{op}_backward", flops, moved, read[0].num_bytes)


class Norm(Op):
    """LayerNorm or RMSNorm in one kernel. Saves the input and one or two fp32 statistics a row."""

    name = "te::norm"
    source = "transformer_engine/pytorch/module/layernorm.py, rmsnorm.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = empty(x.shape, x.dtype, cls.name)
        statistics = [empty(x.shape[:-1], FLOAT32, cls.name) for _ in range(1 if bias is None else 2)]
        if ctx:
            ctx.save(x, weight)
            for each in statistics:
                ctx.save_output(each)
        return out

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        x, weight = ctx.unpack()[:2]
        return [ops.new_like(t, cls.name) for t in (x, weight)] + [
            ops.new_like(weight, cls.name) if len(ctx.needs) > 2 and ctx.needs[2] else None
        ]


class Deferred:
    """Inputs of a layer and gradients of its outputs, kept until there is time for the products of both.

    `limit` is for how many micro-batches; 0 is all of them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[tuple[Tensor, Tensor]] = []

    def takes(self, x: Tensor, grad: Tensor) -> bool:
        """Keep them, unless there are enough."""
        if self.limit and len(self.kept) >= self.limit:
            return False
        self.kept.append((x, grad))
        return True

    def drain(self, gathers: int, scratch: Scratch) -> None:
        """Let go of them in order; whole inputs are gathered into two buffers that stay."""
        for number, (x, _) in enumerate(self.kept):
            if gathers > 1:
                memory_buffer(first(x, x.shape[0] * gathers), x, scratch, f"mpu_{number % 2}")
        self.kept.clear()


class Linear(Op):
    """A linear layer over tensor ranks. Saves its input as it came: under sequence parallelism this rank's share.

    `gathers`: the ranks whose shares of the sequence make its whole input (a column-parallel layer); `scatters`: those
    among which the sum of the outputs is scattered (a row-parallel one). With `fused`, the product for the weight's
    gradient is added to the main gradient, and autograd is handed a tensor that stands for it: one for each shape of a
    weight, which stays (`cached`: Transformer Engine is there, and Megatron Core is 0.14 or later), else a new one.
    `overlapped`: gathers, and sums before they are scattered, are in user buffers outside of PyTorch's allocator.
    `own`: Megatron's own layer, which gathers into a buffer that stays, and may defer its weight's gradients.
    """

    name = "te::linear"
    source = "module/linear.py, layernorm_linear.py; tensor_parallel/layers.py: LinearWithGradAccumulation..."

    @classmethod
    def forward(
        cls,
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        *,
        gathers: int,
        scatters: int,
        fused: bool,
        cached: bool,
        scratch: Scratch,
        own: bool,
        deferred: Deferred | None,
        overlapped: bool,
    ) -> Tensor:
        if ctx:
            ctx.save(x, weight)
            ctx.meta = gathers, scatters, fused, cached, scratch, own, deferred, overlapped
        total = None if overlapped else _gather(x, gathers, scratch, own)
        shape = (x.shape[0] * gathers, *x.shape[1:-1], weight.shape[0])
        out = None if overlapped and scatters > 1 else empty(shape, x.dtype, cls.name)
        del total
        if out is not None and scatters == 1:
            return out
        return empty((shape[0] // scatters, *shape[1:]), x.dtype, "nccl::reduce_scatter")

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        x, weight = ctx.unpack()
        gathers, scatters, fused, cached, scratch, own, deferred, overlapped = ctx.meta
        tokens = grad.numel // grad.shape[-1] * scatters
        if not overlapped:
            grad = _gather(grad, scatters, scratch, own)
        later = deferred is not None and deferred.takes(x, grad)
        total = _gather(x, gathers, scratch, own) if ctx.needs[1] and not later and not overlapped else x
        dgrad = None
        for needed in ctx.needs[:2]:
            if needed:
                note(cls.name, 2 * tokens * weight.numel, grad, weight)
        if ctx.needs[0]:
            if not (overlapped and gathers > 1):
                dgrad = empty((tokens // grad.shape[1], grad.shape[1], weight.shape[1]), x.dtype, cls.name)
            if gathers > 1:
                dgrad = empty(x.shape, x.dtype, "nccl::reduce_scatter")
        wgrad = None
        if ctx.needs[1]:
            wgrad = (
                stand_in(weight.shape, weight, scratch)
                if fused and cached
                else empty(weight.shape, weight.dtype, cls.name)
            )
        del total
        return [dgrad, wgrad]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[0].shape[-1])  # type: ignore[no-any-return]


def _gather(x: Tensor, ranks: int, scratch: Scratch, own: bool) -> Tensor:
    """The whole sequence; Megatron's own layer gathers into a buffer that it keeps (`GlobalMemoryBuffer`)."""
    if ranks == 1:
        return x
    shape = first(x, x.shape[0] * ranks)
    if not own:
        return empty(shape, x.dtype, "nccl::all_gather")
    return memory_buffer(shape, x, scratch)


def memory_buffer(shape: Shape, x: Tensor, scratch: Scratch, name: str = "mpu") -> Tensor:
    """`GlobalMemoryBuffer.get_tensor(shape, dtype, name)`: grows to the largest that was asked for, and stays."""
    numel: Size = 1
    for size in shape:
        numel = numel * size
    key = name, x.dtype.name
    kept = scratch.get(key)
    if kept is None or kept.numel < numel:
        with inside_unit(None):
            scratch[key] = kept = empty((numel,), x.dtype, f"{name} buffer", purpose=WORKSPACE)
    return Tensor(kept.storage, shape, None, x.dtype, numel)


def stand_in(shape: Shape, weight: Tensor, scratch: Scratch) -> Tensor:
    """`get_dummy_wgrad`: one for every shape of a weight."""
    key = "dummy_wgrad", shape
    if key not in scratch:
        with inside_unit(None):
            scratch[key] = empty(shape, weight.dtype, "get_dummy_wgrad", purpose=WORKSPACE)
    return scratch[key].alias()


class GroupedLinear(Op):
    """One product for each local expert, over tokens sorted by expert. Saves its input; weights (E, out, in)."""

    name = "te::grouped_linear"
    source = "transformer_engine/pytorch/module/grouped_linear.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, weight: Tensor, *, fused: bool, scratch: Scratch) -> Tensor:
        if ctx:
            ctx.save(x, weight)
            ctx.meta = fused, scratch
        return empty((x.shape[0], weight.shape[1]), x.dtype, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        x, weight = ctx.unpack()
        fused, scratch = ctx.meta
        dgrad = empty(x.shape, x.dtype, cls.name)
        for _ in range(2):
            note(cls.name, 2 * grad.numel * weight.shape[2], grad, weight)
        if not fused:
            return [dgrad, empty(weight.shape, weight.dtype, cls.name)]
        one = stand_in(weight.shape[1:], weight, scratch)  # each expert's weight is a parameter of its own
        return [dgrad, Tensor(one.storage, weight.shape, None, weight.dtype, weight.numel)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[0].shape[-1])  # type: ignore[no-any-return]


class BiasDropoutAdd(Op):
    """`bias_dropout_add_fused_train`, compiled: out = residual + dropout(x + bias). Saves one byte an element."""

    name = "megatron::bias_dropout_add"
    source = "megatron/core/fusions/fused_bias_dropout.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, bias: Tensor | None, residual: Tensor, *, dropout: float) -> Tensor:
        out = empty(residual.shape, residual.dtype, cls.name)
        if ctx and dropout:
            ctx.save_output(empty(x.shape, BOOL, cls.name))
        if ctx:
            ctx.meta = bias
        return out

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        dx = ops.new_like(grad, cls.name) if ctx.saved else grad
        bias = ctx.meta
        ctx.meta = None
        return [dx, None if bias is None else ops.new_like(bias, cls.name), grad]


class Activation(Op):
    """GELU, SwiGLU (of both halves at once) or either with a bias or a weight for each token. Saves its inputs."""

    name = "megatron::activation"
    source = "megatron/core/fusions/fused_bias_gelu.py, fused_bias_swiglu.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, bias: Tensor | None, weights: Tensor | None, *, gated: bool) -> Tensor:
        if ctx:
            ctx.save(x, bias, weights)
        width = x.shape[-1] // 2 if gated else x.shape[-1]
        return empty((*x.shape[:-1], width), x.dtype, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        x, bias, weights = ctx.unpack()
        dx = empty(x.shape, x.dtype, cls.name)
        return [dx, *(None if t is None else ops.new_like(t, cls.name) for t in (bias, weights))]


class Split(Op):
    """`SplitAlongDim`: views of the input; where the gradients lie in one storage, its gradient is that storage."""

    name = "te::split_along_dim"
    source = "transformer_engine/pytorch/attention/dot_product_attention/utils.py, class SplitAlongDim"
    view = True
    differentiable = 3

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, sizes: list[Size]) -> list[Tensor]:
        if ctx:
            ctx.meta = x.shape, x.dtype
        return x.alias().split(sizes, -1)

    @classmethod
    def backward(cls, ctx: Any, *gradients: Tensor) -> list[Any]:
        shape, dtype = ctx.meta
        storages = {id(g.storage) for g in gradients}
        if len(storages) == 1:
            numel: Size = 1
            for size in shape:
                numel = numel * size
            return [Tensor(gradients[0].storage, shape, None, dtype, numel)]
        return [empty(shape, dtype, "aten::cat")]


class Rotary(Op):
    """Rotary positions in one kernel; saves the frequencies, which are kept anyway."""

    name = "te::fused_rope"
    source = "transformer_engine/pytorch/attention/rope.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape, x.dtype, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        return [empty(grad.shape, grad.dtype, cls.name)]


class Copy(Op):
    """A new tensor of a shape that nothing is saved for: a permutation, a sort, an exchange between ranks."""

    name = "megatron::copy"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, shape: Shape, label: str) -> Tensor:
        if ctx:
            ctx.meta = x.shape, label
        return empty(shape, x.dtype, label)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        shape, label = ctx.meta
        return [empty(shape, grad.dtype, label)]


def exchanged(x: Tensor, label: str, shape: Shape | None = None) -> Tensor:
    """`x` in a new tensor, its gradient in another."""
    return apply(Copy, x, shape=x.shape if shape is None else shape, label=label)  # type: ignore[no-any-return]


class CoreAttention(Op):
    """FlashAttention or cuDNN's kernel over (s, b, heads, width). Saves q, k, v, the output and fp32 statistics.

    The backward pass has an fp32 sum of the queries' gradients and one number a row of the scores as its workspace.
    """

    name = "te::attention"
    source = "transformer_engine/pytorch/attention/dot_product_attention/backends.py"

    @classmethod
    def forward(cls, ctx: Any, q: Tensor, k: Tensor, v: Tensor, *, ranks: int = 1) -> Tensor:
        length, batch, heads, _ = q.shape
        out = empty((length, batch, heads, v.shape[-1]), q.dtype, cls.name)
        lse = empty((batch, heads, length, 1), FLOAT32, cls.name)
        random = empty((2,), INT64, cls.name)
        if ctx:
            ctx.save(q, k, v)
            for each in (out, lse, random):
                ctx.save_output(each)
        return out

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        q, k, v = ctx.unpack()[:3]
        note(cls.name, cls.flops(grad, q, k, v) * 5 // 2, grad, q, k, v)
        if q.storage is k.storage and k.storage is v.storage:
            whole = empty((q.numel + k.numel + v.numel,), q.dtype, cls.name)
            made = [Tensor(whole.storage, t.shape, t.strides, t.dtype, t.numel) for t in (q, k, v)]
        else:
            made = [empty(t.shape, t.dtype, cls.name) for t in (q, k, v)]
        workspace = [empty(q.shape, FLOAT32, cls.name), empty(q.shape[:-1], FLOAT32, cls.name)]
        del workspace
        return made

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[1].shape[0])  # type: ignore[no-any-return]  # half of the square


class Scores(Op):
    """`baddbmm` of queries and keys into (b x heads, s, s); saves both."""

    name = "megatron::scores"
    source = "megatron/core/transformer/dot_product_attention.py"

    @classmethod
    def forward(cls, ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        if ctx:
            ctx.save(q, k)
        return empty((q.shape[1] * q.shape[2], q.shape[0], k.shape[0]), q.dtype, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        q, k = ctx.unpack()
        return [empty(t.shape, t.dtype, cls.name) for t in (q, k)]


class MaskedSoftmax(Op):
    """`ScaledUpperTriangMaskedSoftmax`: saves its output, and writes the gradient over the incoming one."""

    name = "megatron::scaled_upper_triang_masked_softmax"
    source = "megatron/core/fusions/fused_softmax.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        out = empty(x.shape, x.dtype, cls.name)
        if ctx:
            ctx.save_output(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad]


class TorchSoftmax(Op):
    """`FusedScaleMaskSoftmax.forward_torch_softmax`: cast, scale, fill the mask in place, softmax, and cast back.

    Saves the softmax, in fp32 where it is computed so.
    """

    name = "megatron::torch_softmax"
    source = "megatron/core/fusions/fused_softmax.py"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, fp32: bool) -> Tensor:
        dtype = FLOAT32 if fp32 else x.dtype
        scores = x
        for op in ("aten::_to_copy", "aten::mul") if fp32 else ():
            scores = empty(x.shape, dtype, op)
        probs = empty(x.shape, dtype, "aten::_softmax")
        del scores
        if ctx:
            ctx.meta = x.dtype
            ctx.save_output(probs)
        return empty(x.shape, x.dtype, "aten::_to_copy") if fp32 else probs

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        kept = ctx.unpack()[0]
        if kept.dtype is not ctx.meta:
            grad = empty(kept.shape, kept.dtype, "aten::_to_copy")
        grad = empty(kept.shape, kept.dtype, "aten::_softmax_backward_data")
        grad = empty(kept.shape, kept.dtype, "aten::masked_fill")
        if kept.dtype is not ctx.meta:
            grad = empty(kept.shape, kept.dtype, "aten::mul")
            grad = empty(kept.shape, ctx.meta, "aten::_to_copy")
        return [grad]


class Context(Op):
    """`bmm` of the probabilities and the values into (b x heads, s, width); saves both."""

    name = "megatron::context"
    source = "megatron/core/transformer/dot_product_attention.py"

    @classmethod
    def forward(cls, ctx: Any, probs: Tensor, v: Tensor) -> Tensor:
        if ctx:
            ctx.save(probs, v)
        return empty((probs.shape[0], probs.shape[1], v.shape[-1]), v.dtype, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        probs, v = ctx.unpack()
        return [empty(probs.shape, probs.dtype, cls.name), empty(v.shape, v.dtype, cls.name)]


class VocabParallelLoss(Op):
    """Cross entropy over a cut vocabulary (s, b, v) -> (s, b), in four forms.

    "vocab_parallel": the logits in fp32, made a softmax in place and saved; its gradient is written over it, and cast.
    "vocab_parallel_copied" (before Core 0.8): the softmax is a second fp32 tensor beside the logits in fp32.
    "fused": the same compiled, where the exponentials are a second fp32 tensor beside the first, and the gradient is
    made in bf16. "te_fused" (Transformer Engine 2.x up to 2.11): the gradient is written over the logits at once.
    """

    name = "megatron::vocab_parallel_cross_entropy"
    source = "tensor_parallel/cross_entropy.py, fusions/fused_cross_entropy.py; TE pytorch/triton/cross_entropy.py"

    @classmethod
    def forward(cls, ctx: Any, logits: Tensor, labels: Tensor, *, form: str) -> Tensor:
        rows = logits.shape[:-1]
        if form == "te_fused":
            if ctx:
                ctx.meta = form
                ctx.save(logits.alias())
            losses = empty(rows, FLOAT32, cls.name)
            statistics = empty((*rows, 3), FLOAT32, cls.name)
            del statistics
            return losses
        upcast = empty(logits.shape, FLOAT32, "aten::_to_copy")
        exp_logits = upcast if form == "vocab_parallel" else empty(logits.shape, FLOAT32, cls.name)
        target_mask, masked_target = empty(rows, BOOL, cls.name), empty(rows, INT64, cls.name)
        if ctx:
            ctx.meta = form
            for each in (exp_logits, target_mask, masked_target):
                ctx.save_output(each)
        return empty(rows, FLOAT32, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        kept = ctx.unpack()[0]
        if ctx.meta == "fused":
            return [empty(kept.shape, ctx.inputs[0][1], cls.name), None]
        return [kept.alias(), None]


class LossAutoScaler(Op):
    """`MTPLossAutoScaler`: the input as it is; on the way back the loss gets a gradient of its own."""

    name = "megatron::loss_auto_scaler"
    source = "megatron/core/transformer/multi_token_prediction.py"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        if ctx:
            ctx.save(loss)
        return x.alias()

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        return [grad, ops.new_like(ctx.unpack()[0], "aten::ones_like")]


class Route(Op):
    """The router's product, scores and choice: (s, b, H) to probabilities (T, E). Saves its input and scores."""

    name = "megatron::router"
    source = "megatron/core/transformer/moe/router.py, moe_utils.py: RouterGatingLinearFunction, topk_routing_..."

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, weight: Tensor, *, dtype: DType) -> Tensor:
        shape = (x.shape[0] * x.shape[1], weight.shape[0])
        if ctx:
            ctx.save(x, weight)
            ctx.meta = dtype
        logits = empty(shape, dtype, cls.name)
        scores = empty(shape, FLOAT32, cls.name)
        routing_map = empty(shape, BOOL, cls.name)
        probs = empty(shape, dtype, cls.name)
        if ctx:
            ctx.save_output(scores)
            ctx.save_output(routing_map)
        del logits
        return probs

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        x, weight = ctx.unpack()[:2]
        if ctx.meta is x.dtype:
            return [ops.new_like(x, cls.name), ops.new_like(weight, cls.name)]
        whole = empty(x.shape, ctx.meta, cls.name)
        cast = empty(x.shape, ctx.meta, "aten::_to_copy")
        del cast
        made = [empty(x.shape, x.dtype, "aten::_to_copy"), ops.new_like(weight, cls.name)]
        del whole
        return made


class Permute(Op):
    """Tokens (T, H) in the order of their experts (K, H), and the weight of each.

    Saves the place of each chosen token, or Transformer Engine's map of int32 (`fused`).
    """

    name = "megatron::permute"
    source = "megatron/core/transformer/moe/moe_utils.py, permute; transformer_engine/pytorch/permutation.py"
    differentiable = 2

    @classmethod
    def forward(cls, ctx: Any, tokens: Tensor, probs: Tensor, *, places: Size, fused: bool) -> list[Tensor]:
        if fused:
            places_of = empty((tokens.shape[0], 2 * probs.shape[1] + 1), INT32, cls.name)
        else:
            places_of = empty((places,), INT64, cls.name)
        if ctx:
            ctx.meta = tokens.shape, probs.shape
            ctx.save_output(places_of)
        return [empty((places, tokens.shape[1]), tokens.dtype, cls.name), empty((places,), probs.dtype, cls.name)]

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor | None, probs_grad: Tensor | None) -> list[Any]:
        tokens, probs = ctx.meta
        (_, tokens_dtype), (_, probs_dtype) = ctx.inputs[:2]
        return [empty(tokens, tokens_dtype, cls.name), empty(probs, probs_dtype, cls.name)]


class GatherTokens(Op):
    """The tokens of all ranks (T * ranks, H), in a buffer that is never given back."""

    name = "megatron::gather_tokens"
    source = "megatron/core/tensor_parallel/mappings.py: gather_from_sequence_parallel_region, use_global_buffer"
    view = True

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, ranks: int, scratch: Scratch) -> Tensor:
        if ctx:
            ctx.meta = x.shape
        return memory_buffer((x.shape[0] * ranks, *x.shape[1:]), x, scratch)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        return [empty(ctx.meta, grad.dtype, "nccl::reduce_scatter")]


class JoinKey(Op):
    """Keys of latent attention: what every head has of its own, and the rotated part that all heads share."""

    name = "megatron::join_key"
    source = "megatron/core/transformer/multi_latent_attention.py: torch.cat([k_no_pe, k_pos_emb])"

    @classmethod
    def forward(cls, ctx: Any, own: Tensor, shared: Tensor) -> Tensor:
        if ctx:
            ctx.meta = own.shape, shared.shape
        return empty((*own.shape[:-1], own.shape[-1] + shared.shape[-1]), own.dtype, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        return [empty(shape, grad.dtype, cls.name) for shape in ctx.meta]


class EpilogueBias(Op):
    """A bias added by the matrix product itself: no new tensor, and a gradient for the bias."""

    name = "te::epilogue_bias"
    source = "transformer_engine/pytorch/module/layernorm_linear.py: general_gemm(..., bias=bias)"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        if ctx:
            ctx.meta = bias.shape, bias.dtype
        return x.alias()

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        shape, dtype = ctx.meta
        return [grad, empty(shape, dtype, cls.name)]


class RingAttention(CoreAttention):
    """Attention over a ring of ranks: keys and values of the next rank come while those at hand are used.

    Every step makes an output of its own, and they are put together at the end. Causal sequences are cut in two for
    each rank, so that some steps see half of the queries.
    """

    name = "te::ring_attention"
    source = "transformer_engine/pytorch/attention/dot_product_attention/context_parallel.py, AttnFuncWithCPAndKVP2P"

    @classmethod
    def forward(cls, ctx: Any, q: Tensor, k: Tensor, v: Tensor, *, ranks: int = 1) -> Tensor:
        steps = []
        for _ in range(2):
            steps += [empty(t.shape, t.dtype, "nccl::send_recv") for t in (k, v)]
        for _ in range(ranks):
            steps.append(empty((*q.shape[:-1], v.shape[-1]), q.dtype, cls.name))
        out = super().forward(ctx, q, k, v)
        del steps
        return out

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        _, k, v = ctx.unpack()[:3]
        steps = []
        for _ in range(2):
            steps += [empty(t.shape, t.dtype, "nccl::send_recv") for t in (k, v, k, v)]
        made = super().backward(ctx, grad)
        del steps
        return made
