"""DeepSeek-V3, as `transformers/models/deepseek_v3/modeling_deepseek_v3.py` (5.23) writes it.

Latent attention: keys and values are kept compressed, with one rotated key for all heads. The first layers are dense,
the others have experts in groups and experts that are shared. Leaves out: that `from_pretrained` keeps the routers'
correction bias in fp32, and the layers that predict further tokens, which upstream does not build. Kimi K2 is one by
another `model_type`, for which upstream reads it too (`configuration_kimi_k25.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import BOOL, FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Attention,
    Cache,
    CausalModel,
    LayerCache,
    apply_rotary_pos_emb,
    attention_interface,
    eager_attention,
)
from weigh.models.config import Count, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import SPARSE, MoeConfig, check_groups, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("deepseek_v3", "kimi_k2")


@dataclass(frozen=True)
class LatentConfig(MoeConfig):
    """What the configs of decoders with latent attention share; the defaults are `DeepseekV3Config`'s."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    num_key_value_heads: int = 128
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    qk_nope_head_dim: int = 128
    n_group: int | None = 8
    topk_group: int | None = 4
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = True
    rope_interleave: bool = True
    attention_bias: bool = False

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @property
    def qk_head_dim(self) -> int:
        """The width of a query, and of a key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A head's width is that of its rotated part; every head has its own key."""
        found["head_dim"] = found["qk_rope_head_dim"]
        super().settle(keys, found)
        if found["num_key_value_heads"] != found["num_attention_heads"]:
            raise InputError(
                "differs from num_attention_heads",
                where=f"{keys.where}: num_key_value_heads",
                hint="Give the same: every head has its own key.",
            )
        check_groups(keys, found)


@dataclass(frozen=True)
class DeepseekV3Config(LatentConfig):
    """The settings of `DeepseekV3Config` that shape memory."""

    first_k_dense_replace: Count = 3

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The first layers are dense."""
        return first_dense(self.num_hidden_layers, self.first_k_dense_replace)


class DeepseekV3TopkRouter(nn.Module):
    bias_dtype: ClassVar[DType | None] = None
    """The correction bias's own dtype; None: the model's."""

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.n_routed_experts
        self.hidden_dim = config.hidden_size
        self.weight = nn.parameter((self.num_experts, self.hidden_dim), dtype)
        self.num_group = config.n_group
        self.topk_group = config.topk_group
        self.norm_topk_prob = config.norm_topk_prob
        self.e_score_correction_bias = nn.buffer((self.num_experts,), self.bias_dtype or dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.view(-1, self.hidden_dim)
        router_logits = ops.linear(hidden_states.to(FLOAT32), self.weight.to(FLOAT32))
        scores = ops.sigmoid(router_logits)
        scores_for_choice = scores + self.e_score_correction_bias
        tokens, in_group = scores.shape[0], self.num_experts // self.num_group
        group_scores = ops.sum(ops.topk(scores_for_choice.view(-1, self.num_group, in_group), 2)[0], (-1,))
        group_idx = ops.topk(group_scores, self.topk_group)[1]
        group_mask = ops.zeros_as(group_scores)
        ops.scatter_(group_mask, group_idx)
        score_mask = group_mask.unsqueeze(-1).expand(tokens, self.num_group, in_group).reshape(-1, self.num_experts)
        scores_for_choice = ops.masked_fill(scores_for_choice, ops.bitwise_not(score_mask.to(BOOL)))
        topk_indices = ops.topk(scores_for_choice, self.top_k)[1]
        topk_weights = ops.gather(scores, topk_indices, topk_indices.shape)
        if self.norm_topk_prob:
            denominator = ops.sum(topk_weights, (-1,), keepdim=True) + 1e-20
            topk_weights = ops.divide_(topk_weights, denominator)
        topk_weights = topk_weights * 2.5
        return router_logits, topk_weights, topk_indices


class DeepseekV3MoE(nn.Module):
    role = nn.MLP
    router_class: ClassVar[type[Any]] = DeepseekV3TopkRouter

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.experts = Experts(experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype)
        self.gate = self.router_class(config, dtype)
        self.shared_experts = GatedMLP(
            width, inner * config.n_shared_experts, config.hidden_act, dtype, config.mlp_bias
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        residuals = hidden_states
        orig_shape = hidden_states.shape
        _, topk_weights, topk_indices = self.gate(hidden_states)
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        hidden_states = self.experts(hidden_states, topk_indices, topk_weights).view(*orig_shape)
        hidden_states = hidden_states + self.shared_experts(residuals)
        return hidden_states


def apply_rotary_pos_emb_interleave(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours turned as pairs: the first half of the cosines and sines is enough."""
    cos = cos.narrow(-1, cos.shape[-1] // 2).unsqueeze(1)
    sin = sin.narrow(-1, sin.shape[-1] // 2).unsqueeze(1)
    q1, q2 = ops.every_other(q), ops.every_other(q)
    k1, k2 = ops.every_other(k), ops.every_other(k)
    q_embed = ops.cat([q1 * cos - q2 * sin, q2 * cos + q1 * sin], -1)
    k_embed = ops.cat([k1 * cos - k2 * sin, k2 * cos + k1 * sin], -1)
    return q_embed, k_embed


class DeepseekV3Attention(nn.Module):
    role = nn.ATTENTION
    eager: Attention = staticmethod(eager_attention)

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, bias, rank = config.hidden_size, config.attention_bias, config.kv_lora_rank
        self.num_heads, self.q_lora_rank, self.kv_lora_rank = config.num_attention_heads, config.q_lora_rank, rank
        self.qk_rope_head_dim, self.qk_nope_head_dim = config.qk_rope_head_dim, config.qk_nope_head_dim
        self.qk_head_dim, self.v_head_dim = config.qk_head_dim, config.v_head_dim
        self.rope_interleave = config.rope_interleave
        self.attention_dropout = config.attention_dropout
        if self.q_lora_rank is None:
            self.q_proj = nn.Linear(width, self.num_heads * self.qk_head_dim, dtype)
        else:
            self.q_a_proj = nn.Linear(width, self.q_lora_rank, dtype, bias)
            self.q_a_layernorm = nn.RMSNorm(self.q_lora_rank, dtype)
            self.q_b_proj = nn.Linear(self.q_lora_rank, self.num_heads * self.qk_head_dim, dtype)
        self.kv_a_proj_with_mqa = nn.Linear(width, rank + self.qk_rope_head_dim, dtype, bias)
        self.kv_a_layernorm = nn.RMSNorm(rank, dtype)
        self.kv_b_proj = nn.Linear(rank, self.num_heads * (self.qk_nope_head_dim + self.v_head_dim), dtype)
        self.o_proj = nn.Linear(self.num_heads * self.v_head_dim, width, dtype, bias)

    def expand_kv(self, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        """The latents (B, 1, T, rank) and the rotated keys (B, 1, T, width) to keys and values (B, N, T, width)."""
        batch_size, _, seq_length, _ = kv_nope.shape
        key_shape = (batch_size, seq_length, -1, self.qk_nope_head_dim + self.v_head_dim)
        kv_nope = self.kv_b_proj(kv_nope).view(*key_shape).transpose(1, 2)
        k_nope, value_states = kv_nope.split([self.qk_nope_head_dim, self.v_head_dim], -1)
        k_rot = k_rot.expand(batch_size, self.num_heads, seq_length, self.qk_rope_head_dim)
        key_states = ops.new_empty(kv_nope, (*kv_nope.shape[:-1], self.qk_head_dim))
        key_states = ops.copy_slice(key_states, k_nope, -1)
        key_states = ops.copy_slice(key_states, k_rot, -1)
        return key_states, value_states

    def rotate(self, q_rot: Tensor, k_rot: Tensor, position_embeddings: Any) -> tuple[Tensor, Tensor]:
        """What is to be turned of the queries, and of the one key of all heads."""
        cos, sin = position_embeddings
        if self.rope_interleave:
            return apply_rotary_pos_emb_interleave(q_rot, k_rot, cos, sin)
        return apply_rotary_pos_emb(q_rot, k_rot, cos, sin)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        batch_size, seq_length = hidden_states.shape[:-1]
        query_shape = (batch_size, seq_length, -1, self.qk_head_dim)
        if self.q_lora_rank is None:
            q_states = self.q_proj(hidden_states)
        else:
            q_states = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        q_states = q_states.view(*query_shape).transpose(1, 2)
        q_pass, q_rot = q_states.split([self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
        compressed_kv = self.kv_a_proj_with_mqa(hidden_states)
        kv_nope, k_rot = compressed_kv.split([self.kv_lora_rank, self.qk_rope_head_dim], -1)
        kv_nope = self.kv_a_layernorm(kv_nope)
        kv_nope = kv_nope.view(batch_size, 1, seq_length, self.kv_lora_rank)
        k_rot = k_rot.view(batch_size, 1, seq_length, self.qk_rope_head_dim)
        q_rot, k_rot = self.rotate(q_rot, k_rot, position_embeddings)
        if cache is not None:
            kv_nope, k_rot = cache.update(kv_nope, k_rot, self.path)
        query_states = ops.cat((q_pass, q_rot), -1)
        key_states, value_states = self.expand_kv(kv_nope, k_rot)
        attention = attention_interface(self.eager)
        dropout = self.attention_dropout if self.training else 0.0
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, 1)
        attn_output = attn_output.reshape(batch_size, seq_length, self.num_heads * self.v_head_dim).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class DeepseekV3DecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = DeepseekV3Attention
    moe_class: ClassVar[type[Any]] = DeepseekV3MoE

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.self_attn = self.attention_class(config, dtype, layer_idx)
        if config.mlp_layer_types[layer_idx] == SPARSE:
            self.mlp = self.moe_class(config, dtype)
        else:
            inner = config.intermediate_size
            self.mlp = GatedMLP(config.hidden_size, inner, config.hidden_act, dtype, config.mlp_bias)
        self.input_layernorm = self.norm_class(config.hidden_size, dtype)
        self.post_attention_layernorm = self.norm_class(config.hidden_size, dtype)


class DeepseekV3Model(LlamaModel):
    layer_class: ClassVar[type[Any]] = DeepseekV3DecoderLayer


class DeepseekV3ForCausalLM(LlamaForCausalLM):
    model_class: ClassVar[type[LlamaModel]] = DeepseekV3Model

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The latents, and one rotated key for all heads."""
        return (latent_cache(self.config),) * self.cache_layers


def latent_cache(config: Any, index_width: int = 0) -> LayerCache:
    """What a layer of latent attention keeps."""
    return LayerCache(
        layout.LATENT,
        config.num_attention_heads,
        config.qk_nope_head_dim + config.qk_rope_head_dim,
        config.v_head_dim,
        latent_width=config.kv_lora_rank + config.qk_rope_head_dim,
        index_width=index_width,
    )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return DeepseekV3ForCausalLM(DeepseekV3Config.read(config, where), dtype)
