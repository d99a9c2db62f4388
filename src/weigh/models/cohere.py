"""Command R, as `transformers/models/cohere/modeling_cohere.py` (5.23) writes it.

Llama whose layers do attention and MLP side by side, with layer norms made of single ops, neighbouring dimensions
turned in fp32, and logits that are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, RotaryEmbedding
from weigh.models.gptj import rotate_every_two
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaMLP, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("cohere",)


@dataclass(frozen=True)
class CohereConfig(DecoderConfig):
    """The settings of `CohereConfig` that shape memory."""

    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    use_qk_norm: bool = False


class CohereLayerNorm(nn.Module):
    role = nn.NORM

    def __init__(self, hidden_size: int | tuple[int, int], dtype: DType) -> None:
        super().__init__()
        shape = hidden_size if isinstance(hidden_size, tuple) else (hidden_size,)
        self.weight = nn.parameter(shape, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        mean = hidden_states.mean(-1, keepdim=True)
        variance = (hidden_states - mean).pow(2).mean(-1, keepdim=True)
        hidden_states = (hidden_states - mean) * ops.rsqrt(variance + 1e-5)
        hidden_states = self.weight.to(FLOAT32) * hidden_states
        return hidden_states.to(input_dtype)


class CohereRotaryEmbedding(RotaryEmbedding):
    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with no_grad():
            freqs = positions.unsqueeze(-1).float() * self.inv_freq
            emb = _repeat_interleave(freqs)
            cos = ops.cos(emb) * 1.0
            sin = ops.sin(emb) * 1.0
            return cos.to(x.dtype), sin.to(x.dtype)


def _repeat_interleave(x: Tensor) -> Tensor:
    """`torch.repeat_interleave(x, 2, dim=-1)`: an expanded view, copied."""
    width = x.shape[-1]
    x = x.unsqueeze(-1).expand(*x.shape, 2)
    return ops.clone_contiguous(x).view(*x.shape[:-2], 2 * width)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring dimensions turned, in fp32."""
    dtype = q.dtype
    q = q.float()
    k = k.float()
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    q_embed = (q * cos) + (rotate_every_two(q) * sin)
    k_embed = (k * cos) + (rotate_every_two(k) * sin)
    return q_embed.to(dtype), k_embed.to(dtype)


class CohereAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.use_qk_norm = isinstance(config, CohereConfig) and config.use_qk_norm
        if self.use_qk_norm:
            self.q_norm = CohereLayerNorm((self.num_heads, self.head_dim), dtype)
            self.k_norm = CohereLayerNorm((self.num_kv_heads, self.head_dim), dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys may be normed head by head, each head with its own weights."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(*hidden_shape)
        key_states = self.k_proj(hidden_states).view(*hidden_shape)
        value_states = self.v_proj(hidden_states).view(*hidden_shape)
        if self.use_qk_norm:
            query_states = self.q_norm(query_states)
            key_states = self.k_norm(key_states)
        query_states = query_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)
        value_states = value_states.transpose(1, 2)
        return query_states, key_states, value_states

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Neighbours, in fp32."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class CohereDecoderLayer(nn.Module):
    role = nn.BLOCK
    attention_class: ClassVar[type[Any]] = CohereAttention

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = self.attention_class(config, dtype, layer_idx)
        self.mlp = LlamaMLP(config, dtype)
        self.input_layernorm = CohereLayerNorm(config.hidden_size, dtype)

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
        hidden_states_attention, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states_mlp = self.mlp(hidden_states)
        hidden_states = residual + hidden_states_attention + hidden_states_mlp
        return hidden_states


class CohereModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = CohereDecoderLayer
    norm_class = CohereLayerNorm

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """Of neighbours."""
        return CohereRotaryEmbedding(config.head_dim)


class CohereForCausalLM(LlamaForCausalLM):
    model_class: ClassVar[type[LlamaModel]] = CohereModel

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Scaled."""
        return logits * 0.0625


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return CohereForCausalLM(CohereConfig.read(config, where), dtype)
