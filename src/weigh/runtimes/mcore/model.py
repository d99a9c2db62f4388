"""Megatron Core's GPT model, as far as one pipeline stage of one rank has it.

Mirrors `models/gpt/gpt_model.py`, `transformer/transformer_layer.py`, `attention.py`, `mlp.py`,
`multi_latent_attention.py` and `moe/` (Megatron Core 0.17) with Transformer Engine's layers, or Megatron's own
(`Setup.local`). Tensors are (S sequence, B batch, H hidden). Weights are named as Megatron names them.
"""

from __future__ import annotations

from functools import partial

from weigh.dims import Size
from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import apply
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.records import dataclass, field
from weigh.runtimes.mcore import rows
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.techniques.checkpointing import reentrant_checkpoint

FLASH, FUSED, UNFUSED = "flash", "cudnn", "math"


@dataclass(frozen=True, slots=True)
class Setup:
    """How a rank runs its share of the model."""

    tensor: int = 1
    sequence_parallel: bool = False
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    context_exchange: str = "p2p"
    """How attention sees the whole sequence: "p2p" (a ring) or "a2a" (the heads are shared instead)."""
    local: bool = False
    """Megatron's own layers instead of Transformer Engine's."""
    fused_wgrad: bool = True
    """`gradient_accumulation_fusion`."""
    own_stand_ins: bool = True
    """Megatron's own output layer keeps a stand-in for its gradient."""
    attention: str = FUSED
    recompute_attention: bool = False
    """Selective recomputation of the core of attention."""
    loss: str = "vocab_parallel"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    capacity_factor: float | None = None
    """Every expert takes so many times its even share of the tokens; None: what comes, taken as even."""
    dispatcher: str = "alltoall"
    """How tokens come to their experts: "alltoall", or "allgather" (every rank of the experts sees all tokens)."""
    scratch: rows.Scratch = field(default_factory=dict)

    @property
    def sequence_ranks(self) -> int:
        """Tensor ranks that have different parts of the sequence outside of the linear layers."""
        return self.tensor if self.sequence_parallel else 1


class ParallelLinear(nn.Module):
    """`ColumnParallelLinear` (cut by outputs), `RowParallelLinear` (by inputs), or a layer that every rank has."""

    def __init__(self, setup: Setup, inputs: int, outputs: int, dtype: DType, kind: str, bias: bool = False) -> None:
        super().__init__()
        column, row = kind == "column", kind == "row"
        self.setup, self.own = setup, setup.local
        inputs, outputs = inputs // (setup.tensor if row else 1), outputs // (setup.tensor if column else 1)
        self.gathers = setup.sequence_ranks if column else 1
        self.scatters = setup.sequence_ranks if row else 1
        self.weight = nn.parameter((outputs, inputs), dtype)
        self.bias = nn.parameter((outputs,), dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Without the bias, which whoever called adds (`skip_bias_add`)."""
        out: Tensor = apply(
            rows.Linear,
            x,
            self.weight,
            gathers=self.gathers,
            scatters=self.scatters,
            fused=self.setup.fused_wgrad,
            cached=not self.setup.local and (self.setup.own_stand_ins or not self.own),
            scratch=self.setup.scratch,
            own=self.own,
        )
        return out


class Norm(nn.Module):
    """`TENorm`, or the part of a linear layer that stands for it."""

    role = nn.NORM

    def __init__(self, config: MegatronConfig, width: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)
        self.bias = nn.parameter((width,), dtype) if config.normalization.lower() == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        out: Tensor = apply(rows.Norm, x.contiguous(), self.weight, self.bias)
        return out


class CoreAttention(nn.Module):
    """`TEDotProductAttention`, or `DotProductAttention` where it is unfused."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(s, b, heads, width) each -> (s, b, heads x width)."""
        kind = self.setup.attention
        if kind == UNFUSED:
            return self._unfused(q, k, v)
        if kind == FLASH:  # flash-attn wants the batch first; the tensors say (s, b, ...) all the same
            q, k, v = (_batch_first(t) for t in (q, k, v))
            out = self._over_ranks(q, k, v)
            out = exchanged_batch(out)
        else:
            if not _layout_supported(q, k, v):
                q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            out = self._over_ranks(q, k, v)
        return out.view(*out.shape[:2], out.shape[2] * out.shape[3])

    def _over_ranks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.setup.context == 1:
            return apply(rows.CoreAttention, q, k, v)  # type: ignore[no-any-return]
        ranks = self.setup.context
        if self.setup.context_exchange == "a2a":
            q, k, v = (
                rows.exchanged(t, "nccl::all_to_all", (t.shape[0] * ranks, t.shape[1], t.shape[2] // ranks, t.shape[3]))
                for t in (q, k, v)
            )
            out: Tensor = apply(rows.CoreAttention, q, k, v)
            shape = out.shape
            return rows.exchanged(out, "nccl::all_to_all", (shape[0] // ranks, shape[1], shape[2] * ranks, shape[3]))
        return apply(rows.RingAttention, q, k, v, ranks=ranks)  # type: ignore[no-any-return]

    def _unfused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        setup = self.setup
        length, batch, heads, _ = q.shape
        rows.memory_buffer((batch * heads, length, k.shape[0]), q, setup.scratch)
        probs = apply(rows.MaskedSoftmax, apply(rows.Scores, q, k))
        probs = ops.dropout(probs, setup.attention_dropout, True)
        context = apply(rows.Context, probs, v)
        return rows.exchanged(context, "aten::contiguous", (length, batch, heads * v.shape[-1]))


def _batch_first(t: Tensor) -> Tensor:
    """`t.transpose(0, 1).contiguous()`: a copy, unless there is one sequence and the tensor is contiguous."""
    if t.shape[1] == 1 and t.strides is None:
        return t
    return rows.exchanged(t, "aten::contiguous")


def exchanged_batch(t: Tensor) -> Tensor:
    """The same for the output, on the way back."""
    return t if t.shape[1] == 1 else rows.exchanged(t, "aten::contiguous")


def _layout_supported(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """`get_qkv_layout`: all in one storage head by head (`sbh3d`), or each contiguous on its own."""
    if q.storage is k.storage and k.storage is v.storage:
        return q.shape == k.shape and k.shape == v.shape
    return q.strides is None and k.strides is None and v.strides is None


class SelfAttention(nn.Module):
    """Attention with one layer for queries, keys and values, the norm before it in one with that layer."""

    role = nn.ATTENTION

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        width, ranks = config.kv_channels, setup.tensor
        self.groups = max(1, config.num_query_groups // ranks)
        self.heads = config.num_attention_heads // ranks
        both = (config.num_attention_heads + 2 * max(config.num_query_groups, ranks)) * width
        self.input_layernorm = Norm(config, config.hidden_size, dtype)
        self.linear_qkv = ParallelLinear(setup, config.hidden_size, both, dtype, "column", config.add_qkv_bias)
        inside = config.num_attention_heads * width
        self.linear_proj = ParallelLinear(setup, inside, config.hidden_size, dtype, "row", config.add_bias_linear)
        self.q_layernorm = Norm(config, width, dtype) if config.qk_layernorm else None
        self.k_layernorm = Norm(config, width, dtype) if config.qk_layernorm else None
        self.core_attention = CoreAttention(setup)

    def forward(self, hidden_states: Tensor) -> Tensor:
        width, ratio = self.config.kv_channels, self.heads // self.groups
        mixed_qkv = with_bias(self.linear_qkv(self.input_layernorm(hidden_states)), self.linear_qkv.bias)
        mixed_qkv = mixed_qkv.view(*mixed_qkv.shape[:2], self.groups, (ratio + 2) * width)
        query, key, value = apply(rows.Split, mixed_qkv, sizes=[ratio * width, width, width])
        del mixed_qkv
        query = query.reshape(*query.shape[:2], self.heads, width)
        if self.q_layernorm is not None and self.k_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        if self.config.position_embedding_type == "rope":
            query, key = apply(rows.Rotary, query), apply(rows.Rotary, key)
        if self.setup.recompute_attention:
            out = reentrant_checkpoint(self.core_attention, query, key, value, positional=3)
        else:
            out = self.core_attention(query, key, value)
        del query, key, value
        projected: Tensor = self.linear_proj(out)
        return projected


def with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """A bias that the product adds as it goes: it costs a gradient, and no tensor."""
    return x if bias is None else apply(rows.EpilogueBias, x, bias)


class MLASelfAttention(nn.Module):
    """Multi-latent attention: queries, and keys with values, out of latents that are normed on the way up."""

    role = nn.ATTENTION

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.heads = heads // setup.tensor
        head = config.qk_head_dim + config.qk_pos_emb_head_dim
        self.input_layernorm = Norm(config, hidden, dtype)
        if config.q_lora_rank:
            self.linear_q_down_proj = ParallelLinear(setup, hidden, config.q_lora_rank, dtype, "all")
            self.q_layernorm = Norm(config, config.q_lora_rank, dtype)
        self.linear_q_up_proj = ParallelLinear(setup, config.q_lora_rank or hidden, heads * head, dtype, "column")
        latent = config.kv_lora_rank + config.qk_pos_emb_head_dim
        self.linear_kv_down_proj = ParallelLinear(setup, hidden, latent, dtype, "all")
        self.kv_layernorm = Norm(config, config.kv_lora_rank, dtype)
        up = heads * (config.qk_head_dim + config.v_head_dim)
        self.linear_kv_up_proj = ParallelLinear(setup, config.kv_lora_rank, up, dtype, "column")
        self.linear_proj = ParallelLinear(setup, heads * config.v_head_dim, hidden, dtype, "row")
        self.core_attention = CoreAttention(setup)

    def forward(self, hidden_states: Tensor) -> Tensor:
        config = self.config
        rotary, plain = config.qk_pos_emb_head_dim, config.qk_head_dim
        x = self.input_layernorm(hidden_states)
        q = self.q_layernorm(self.linear_q_down_proj(x)) if config.q_lora_rank else x
        kv_combined = self.linear_kv_down_proj(x)
        del x
        compressed, k_pos_emb = apply(rows.Split, kv_combined, sizes=[config.kv_lora_rank, rotary])
        del kv_combined
        q = self.linear_q_up_proj(q)
        kv = self.linear_kv_up_proj(self.kv_layernorm(compressed))
        del compressed
        q = q.view(*q.shape[:2], self.heads, plain + rotary)
        kv = kv.view(*kv.shape[:2], self.heads, plain + config.v_head_dim)
        k_no_pe, value = apply(rows.Split, kv, sizes=[plain, config.v_head_dim])
        del kv
        query = rows.exchanged(q, "aten::cat")
        del q
        key = apply(rows.JoinKey, k_no_pe, k_pos_emb)
        del k_no_pe, k_pos_emb
        value = value.contiguous()
        if self.setup.recompute_attention:
            out = reentrant_checkpoint(self.core_attention, query, key, value, positional=3)
        else:
            out = self.core_attention(query, key, value)
        del query, key, value
        projected: Tensor = self.linear_proj(out)
        return projected


class MLP(nn.Module):
    """Two layers with the activation, and the bias before it, in one kernel."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, width: int, norm: bool = True) -> None:
        super().__init__()
        self.config = config
        self.pre_mlp_layernorm = Norm(config, config.hidden_size, dtype) if norm else None
        outputs = width * (2 if config.gated_linear_unit else 1)
        self.linear_fc1 = ParallelLinear(setup, config.hidden_size, outputs, dtype, "column", config.add_bias_linear)
        self.linear_fc2 = ParallelLinear(setup, width, config.hidden_size, dtype, "row", config.add_bias_linear)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states if self.pre_mlp_layernorm is None else self.pre_mlp_layernorm(hidden_states)
        x = self.linear_fc1(x)
        x = apply(rows.Activation, x, self.linear_fc1.bias, None, gated=self.config.gated_linear_unit)
        return self.linear_fc2(x)  # type: ignore[no-any-return]


class TEGroupedMLP(nn.Module):
    """This rank's experts; their weights are parameters each, of which one tensor here stands for all of a kind."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        self.local = config.num_moe_experts // setup.expert
        width = config.moe_ffn_hidden_size // setup.expert_tensor
        outputs = width * (2 if config.gated_linear_unit else 1)
        self.weight1 = nn.parameter((self.local, outputs, config.hidden_size), dtype)
        self.weight2 = nn.parameter((self.local, config.hidden_size, width), dtype)

    def forward(self, tokens: Tensor, probs: Tensor) -> Tensor:
        linear = partial(apply, rows.GroupedLinear, fused=self.setup.fused_wgrad, scratch=self.setup.scratch)
        x = linear(tokens, self.weight1)
        del tokens
        x = apply(rows.Activation, x, None, probs, gated=self.config.gated_linear_unit)
        return linear(x, self.weight2)  # type: ignore[no-any-return]


class MoELayer(nn.Module):
    """Router, dispatch to the ranks that have the experts, experts, and back, in equal shares."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        self.pre_mlp_layernorm = Norm(config, config.hidden_size, dtype)
        self.router = Router(config, dtype)
        self.experts = TEGroupedMLP(config, setup, dtype)
        shared = config.moe_shared_expert_intermediate_size
        self.shared_experts = MLP(config, setup, dtype, shared, norm=False) if shared else None

    def places(self, tokens: Size) -> Size:
        """Rows that the experts of all ranks are sent of this rank's tokens."""
        config, factor = self.config, self.setup.capacity_factor
        wanted = tokens * config.moe_router_topk
        if factor is None:
            return wanted
        capacity = -(-(wanted * round(factor * 1000)) // (config.num_moe_experts * 1000))
        return capacity * config.num_moe_experts

    def forward(self, hidden_states: Tensor) -> Tensor:
        setup = self.setup
        x = self.pre_mlp_layernorm(hidden_states)
        shape = x.shape
        probs = self.router(x)
        flat = x.view(shape[0] * shape[1], shape[2])
        send = self._by_all_gather if setup.dispatcher == "allgather" else self._by_all_to_all
        whole = send(flat, probs).view(*shape)
        return whole if self.shared_experts is None else whole + self.shared_experts(x)

    def _by_all_to_all(self, flat: Tensor, probs: Tensor) -> Tensor:
        """`MoEAlltoAllTokenDispatcher`."""
        setup, local, shape = self.setup, self.experts.local, flat.shape
        places = self.places(flat.shape[0])
        tokens, weights = apply(rows.Permute, flat, probs, places=places)
        del probs, flat
        if setup.expert > 1:
            tokens = rows.exchanged(tokens, "nccl::all_to_all")
            weights = rows.exchanged(weights, "nccl::all_to_all")
        if setup.expert_tensor > 1:
            both = places * setup.expert_tensor
            tokens = rows.exchanged(tokens, "nccl::all_gather", (both, shape[1]))
            weights = rows.exchanged(weights, "nccl::all_gather", (both,))
        if local > 1 and setup.expert > 1:
            tokens, weights = rows.exchanged(tokens, "te::sort_chunks"), rows.exchanged(weights, "te::sort_chunks")
        out = self.experts(tokens, weights)
        del tokens, weights
        if local > 1 and setup.expert > 1:
            out = rows.exchanged(out, "te::sort_chunks")
        if setup.expert_tensor > 1:
            out = rows.exchanged(out, "nccl::reduce_scatter", (places, shape[1]))
        if setup.expert > 1:
            out = rows.exchanged(out, "nccl::all_to_all")
        return rows.exchanged(out, "te::moe_unpermute", shape)

    def _by_all_gather(self, flat: Tensor, probs: Tensor) -> Tensor:
        """`MoEAllGatherTokenDispatcher`: tokens of all ranks in a buffer that all layers share, and summed in fp32."""
        setup, local, shape, dtype = self.setup, self.experts.local, flat.shape, flat.dtype
        ranks = setup.expert * setup.expert_tensor
        every = shape[0] * ranks
        if ranks > 1:
            probs = rows.exchanged(probs, "nccl::all_gather", (every, probs.shape[1]))
            flat = apply(rows.GatherTokens, flat, ranks=ranks, scratch=setup.scratch)
        probs = rows.exchanged(probs, "aten::contiguous", (every, local))
        chosen = every * self.config.moe_router_topk // setup.expert
        tokens, weights = apply(rows.Permute, flat, probs, places=chosen)
        del probs, flat
        out = self.experts(tokens, weights)
        del tokens, weights
        out = rows.exchanged(out, "te::moe_unpermute", (every, shape[1]))
        if ranks > 1:
            out = rows.exchanged(out.to(FLOAT32), "nccl::reduce_scatter", shape).to(dtype)
        return out


class Router(nn.Module):
    """`TopKRouter`."""

    def __init__(self, config: MegatronConfig, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((config.num_moe_experts, config.hidden_size), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(s, b, H) -> probabilities (s x b, experts) in fp32."""
        return apply(rows.Route, x, self.weight)  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Attention and MLP, each added to what came in, with bias and dropout in the same kernel."""

    role = nn.BLOCK

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, number: int) -> None:
        super().__init__()
        self.dropout = setup.hidden_dropout
        latent = bool(config.kv_lora_rank)
        self.self_attention = (MLASelfAttention if latent else SelfAttention)(config, setup, dtype)
        self.mlp: nn.Module = (
            MoELayer(config, setup, dtype)
            if config.is_expert_layer(number)
            else MLP(config, setup, dtype, config.ffn_hidden_size)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        out = self.self_attention(hidden_states)
        bias = self.self_attention.linear_proj.bias
        hidden_states = apply(rows.BiasDropoutAdd, out, bias, residual, dropout=self.dropout)
        del out
        residual = hidden_states
        out = self.mlp(hidden_states)
        bias = self.mlp.linear_fc2.bias if isinstance(self.mlp, MLP) else None
        return apply(rows.BiasDropoutAdd, out, bias, residual, dropout=self.dropout)  # type: ignore[no-any-return]


class LanguageModelEmbedding(nn.Module):
    """Words, cut over the tensor ranks by rows, and learned positions."""

    role = nn.EMBEDDING

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.setup = setup
        self.word_embeddings = nn.Embedding(
            config.padded_vocab_size(setup.tensor) // setup.tensor, config.hidden_size, dtype
        )
        learned = config.position_embedding_type == "learned_absolute"
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size, dtype) if learned else None
        )

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(b, s) -> (s, b, H), under sequence parallelism this rank's share of the sequence."""
        setup = self.setup
        embeddings = self.word_embeddings(input_ids)
        if self.position_embeddings is not None:
            embeddings = embeddings + self.position_embeddings(position_ids)
        batch, length, width = embeddings.shape
        if batch == 1:  # the transposed tensor is contiguous
            embeddings = embeddings.view(length, batch, width)
        else:
            embeddings = rows.exchanged(embeddings, "aten::contiguous", (length, batch, width))
        if setup.sequence_ranks > 1:
            shape = (length // setup.sequence_ranks, batch, width)
            embeddings = rows.exchanged(embeddings, "nccl::reduce_scatter", shape)
        return ops.dropout(embeddings, setup.hidden_dropout, True)


class GPTStage(nn.Module):
    """`GPTModel` of one pipeline stage: some layers, the embedding on the first, norm and output layer on the last."""

    def __init__(
        self, config: MegatronConfig, setup: Setup, dtype: DType, layers: range, name: str, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.config, self.setup, self.layers = config, setup, layers
        self.first, self.last = first, last
        if first:
            self.embedding = LanguageModelEmbedding(config, setup, dtype)
        dense = config.num_moe_experts and min(max(config.first_dense - layers.start, 0), len(layers))
        self.decoder = nn.Stack(
            f"{name}decoder",
            len(layers),
            lambda number: TransformerLayer(config, setup, dtype, layers.start + number),
            lead=dense,
        )
        if last:
            self.final_layernorm = Norm(config, config.hidden_size, dtype)
            self.output_layer = ParallelLinear(
                setup, config.hidden_size, config.padded_vocab_size(setup.tensor), dtype, "column"
            )
            self.output_layer.own = True
            if first and config.share_embeddings:
                self.output_layer.weight = self.embedding.word_embeddings.weight

    def forward(self, hidden_states: Tensor | None, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Token ids (b, s) or a stage's output to this stage's output, or on the last stage the losses (s, b)."""
        if self.first:
            hidden_states = self.embedding(input_ids, input_ids)
        for layer in self.decoder:
            hidden_states = layer(hidden_states)
        assert hidden_states is not None
        if not self.last:
            return hidden_states
        hidden_states = self.final_layernorm(hidden_states)
        logits = self.output_layer(hidden_states)
        return apply(rows.VocabParallelLoss, logits, labels, form=self.setup.loss)  # type: ignore[no-any-return]


class GPTModel(CausalModel):
    """The stages that one pipeline rank has: one, or one for each virtual stage."""

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, stages: list[tuple[range, bool, bool]]):
        super().__init__()
        self.config, self.setup, self.dtype = config, setup, dtype
        for number, (layers, first, last) in enumerate(stages):
            name = f"chunk{number}" if len(stages) > 1 else "model"
            setattr(self, name, GPTStage(config, setup, dtype, layers, f"{name}.", first, last))

    @property
    def chunks(self) -> list[GPTStage]:
        """The stages, in the order of their layers."""
        return [module for _, module in self.children() if isinstance(module, GPTStage)]
