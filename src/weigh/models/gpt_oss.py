"""gpt-oss, as `transformers/models/gpt_oss/modeling_gpt_oss.py` (5.23) writes it.

Windows in every other layer, one more column of scores for each head (the sinks), experts with biases and a clamped
gate. It has no sdpa. Leaves out: what `from_pretrained` keeps in fp32 (the norms, of a model in fp16), and MXFP4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, SLIDING, Cache, CausalModel, RotaryEmbedding, repeat_kv
from weigh.models.config import DERIVED, Keys
from weigh.models.experts import Experts
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.olmo2 import Olmo2RMSNorm
from weigh.records import dataclass

MODEL_TYPES = ("gpt_oss",)


@dataclass(frozen=True)
class GptOssConfig(DecoderConfig):
    """The settings of `GptOssConfig` that shape memory."""

    num_hidden_layers: int = 36
    num_local_experts: int = 128
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int | None = 128
    num_experts_per_tok: int = 4
    layer_types: tuple[str, ...] = DERIVED
    attention_bias: bool = True

    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer has a window, the second none, and so on."""
        super().settle(keys, found)
        keys.cannot_run("output_router_logits", "the routers' own loss")
        if found["layer_types"] is None:
            found["layer_types"] = tuple(FULL if i % 2 else SLIDING for i in range(found["num_hidden_layers"]))
        keys.check_layer_types(found)


class GptOssExperts(Experts):
    """Transposed weights, biases, gate and up interleaved."""

    is_transposed = True

    def __init__(self, config: GptOssConfig, dtype: DType) -> None:
        nn.Module.__init__(self)
        experts, width, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.num_experts = experts
        self.active_share = Fraction(config.num_experts_per_tok, experts)
        self.gate_up_proj = nn.parameter((experts, width, 2 * inner), dtype)
        self.gate_up_proj_bias = nn.parameter((experts, 2 * inner), dtype)
        self.down_proj = nn.parameter((experts, inner, width), dtype)
        self.down_proj_bias = nn.parameter((experts, width), dtype)

    def apply_gate(self, gate_up: Tensor) -> Tensor:
        """(S, 2F) -> (S, F)."""
        gate, up = ops.every_other(gate_up), ops.every_other(gate_up)
        gate = ops.clamp_numbers(gate, both=False)
        up = ops.clamp_numbers(up, both=True)
        glu = gate * ops.sigmoid(gate * 1.702)
        gated_output = (up + 1) * glu
        return gated_output


class GptOssTopKRouter(nn.Module):
    def __init__(self, config: GptOssConfig, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.parameter((config.num_local_experts, config.hidden_size), dtype)
        self.bias = nn.parameter((config.num_local_experts,), dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.linear(hidden_states, self.weight, self.bias)
        router_top_value, router_indices = ops.topk(router_logits, self.top_k)
        router_scores = ops.softmax(router_top_value, router_top_value.dtype)
        return router_logits, router_scores, router_indices


class GptOssMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GptOssConfig, dtype: DType) -> None:
        super().__init__()
        self.router = GptOssTopKRouter(config, dtype)
        self.experts = GptOssExperts(config, dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, hidden_dim)
        _, router_scores, router_indices = self.router(hidden_states)
        hidden_states = self.experts(hidden_states, router_indices, router_scores)
        hidden_states = hidden_states.reshape(batch_size, sequence_length, hidden_dim)
        return hidden_states, router_scores


class GptOssRotaryEmbedding(RotaryEmbedding):
    """Every frequency once."""

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with no_grad():
            freqs = positions.unsqueeze(-1).float() * self.inv_freq
            emb = freqs
            cos = ops.cos(emb) * 1.0
            sin = ops.sin(emb) * 1.0
            return cos.to(x.dtype), sin.to(x.dtype)


def _apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first_half, second_half = x.split([x.shape[-1] // 2] * 2, -1)
    first_ = first_half * cos - second_half * sin
    second_ = second_half * cos + first_half * sin
    return ops.cat((first_, second_), -1)


class GptOssAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.sinks = nn.parameter((config.num_attention_heads,), dtype)

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Halves of a head turned by one table."""
        cos, sin = position_embeddings
        cos = cos.unsqueeze(1)
        sin = sin.unsqueeze(1)
        q_embed = _apply_rotary_emb(query, cos, sin)
        k_embed = _apply_rotary_emb(key, cos, sin)
        return q_embed, k_embed

    def eager(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, groups: int
    ) -> tuple[Tensor, Tensor]:
        """`eager_attention_forward`: the softmax has one more column, and is in the scores' own dtype."""
        key_states = repeat_kv(key, groups)
        value_states = repeat_kv(value, groups)
        attn_weights = query.matmul(key_states.transpose(2, 3)) * 0.125
        if mask is not None:
            attn_weights = attn_weights + mask
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(query.shape[0], query.shape[1], query.shape[2], 1)
        combined_logits = ops.cat([attn_weights, sinks], -1)
        combined_logits = combined_logits - ops.max_last(combined_logits)[0]
        probs = ops.softmax(combined_logits, combined_logits.dtype)
        scores = probs.narrow(-1, probs.shape[-1] - 1)
        attn_weights = ops.dropout(scores, dropout, self.training).to(value_states.dtype)
        attn_output = attn_weights.matmul(value_states)
        attn_output = attn_output.transpose(1, 2).contiguous()
        return attn_output, attn_weights


class GptOssDecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = GptOssAttention
    mlp_class: ClassVar[type[Any]] = GptOssMLP
    norm_class: ClassVar[type[Any]] = Olmo2RMSNorm

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states, _ = self.mlp(hidden_states)  # the scores
        hidden_states = residual + hidden_states
        return hidden_states


class GptOssModel(LlamaModel):
    layer_class = GptOssDecoderLayer
    norm_class = Olmo2RMSNorm

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """Every frequency once."""
        return GptOssRotaryEmbedding(config.head_dim)

    def mask_types(self) -> Iterable[str]:
        """Both masks, always."""
        return (FULL, SLIDING)


class GptOssForCausalLM(LlamaForCausalLM):
    model_class = GptOssModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GptOssForCausalLM(GptOssConfig.read(config, where), dtype)
