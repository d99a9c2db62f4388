"""MiniMax-M2, as `transformers/models/minimax_m2/modeling_minimax_m2.py` (5.23) writes it.

Mixtral that norms all queries and keys at once, rotates a part of a head, and chooses experts by sigmoids with a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.experts import Experts
from weigh.models.gpt_neox import apply_rotary_pos_emb
from weigh.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.mixtral import MixtralConfig
from weigh.models.olmo2 import Olmo2Attention
from weigh.records import dataclass

MODEL_TYPES = ("minimax_m2",)


@dataclass(frozen=True)
class MiniMaxM2Config(MixtralConfig):
    """The settings of `MiniMaxM2Config` that shape memory."""

    vocab_size: int = 200064
    hidden_size: int = 3072
    intermediate_size: int = 1536
    num_hidden_layers: int = 62
    num_attention_heads: int = 48
    head_dim: int = 128
    num_experts_per_tok: int = 8
    num_local_experts: int = 256
    rotary_width: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """There are no windows; older configs give the rotated width as a number."""
        super().settle(keys, found)
        found["sliding_window"] = None
        width = keys.optional_size("rotary_dim") or found["head_dim"]
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=width / found["head_dim"])


class MiniMaxM2TopKRouter(nn.Module):
    def __init__(self, config: MiniMaxM2Config, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.hidden_dim = config.hidden_size
        self.weight = nn.parameter((config.num_local_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor, e_score_correction_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = ops.linear(hidden_states.to(self.weight.dtype), self.weight)
        routing_weights = ops.sigmoid(router_logits.float())
        scores_for_choice = routing_weights + e_score_correction_bias
        _, top_k_index = ops.topk(scores_for_choice, self.top_k)
        top_k_weights = ops.gather(routing_weights, top_k_index, top_k_index.shape)
        top_k_weights = ops.divide_(top_k_weights, ops.sum(top_k_weights, (-1,), keepdim=True))
        router_scores = top_k_weights
        return router_logits, router_scores, top_k_index


class MiniMaxM2SparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: MiniMaxM2Config, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate = MiniMaxM2TopKRouter(config, dtype)
        self.experts = Experts(experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype)
        self.e_score_correction_bias = nn.buffer((experts,), dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        _, top_k_weights, top_k_index = self.gate(hidden_states, self.e_score_correction_bias)
        hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)
        hidden_states = hidden_states.reshape(batch_size, sequence_length, hidden_dim)
        return hidden_states


class MiniMaxM2Attention(Olmo2Attention):
    norm_class = nn.RMSNorm

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The first dimensions of a head."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class MiniMaxM2DecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = MiniMaxM2Attention
    mlp_class: ClassVar[type[Any]] = MiniMaxM2SparseMoeBlock


class MiniMaxM2Model(LlamaModel):
    layer_class = MiniMaxM2DecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """Of the rotated dimensions."""
        return RotaryEmbedding(config.rotary_width)


class MiniMaxM2ForCausalLM(LlamaForCausalLM):
    model_class = MiniMaxM2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MiniMaxM2ForCausalLM(MiniMaxM2Config.read(config, where), dtype)
