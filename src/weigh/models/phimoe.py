"""Phi-MoE, as `transformers/models/phimoe/modeling_phimoe.py` (5.23) writes it.

Mixtral with layer norms, and routers that draw two experts one after the other (SparseMixer). Leaves out the noise on
the router's input in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, INT64, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, RotaryEmbedding
from weigh.models.config import ROPE_TYPES, Keys
from weigh.models.experts import Experts
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.mixtral import MixtralConfig, MixtralDecoderLayer
from weigh.models.phi3 import Phi3LongRotaryEmbedding
from weigh.records import dataclass

MODEL_TYPES = ("phimoe",)
DRAWN = 2
"""Experts that a token passes through, whatever `num_experts_per_tok` says."""


@dataclass(frozen=True)
class PhimoeConfig(MixtralConfig):
    """The settings of `PhimoeConfig` that shape memory."""

    vocab_size: int = 32064
    intermediate_size: int = 6400
    num_local_experts: int = 16
    input_jitter_noise: float = 0.0
    attention_bias: bool = False
    lm_head_bias: bool = False
    rope_type: str = "default"

    rope_types = (*ROPE_TYPES, "longrope", "su")
    aliases: ClassVar[Mapping[str, str]] = {}

    @property
    def head_bias(self) -> bool:
        """Of the output layer."""
        return self.lm_head_bias

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The router's noise is a threshold here."""
        keys = Keys({key: value for key, value in keys.config.items() if key != "router_jitter_noise"}, keys.where)
        super().settle(keys, found)
        found["rope_type"] = keys.rope_type(known=cls.rope_types)


class PhimoeRotaryEmbedding(RotaryEmbedding):
    """The frequencies are worked out on the host in every step, and copied."""

    def __init__(self, config: PhimoeConfig) -> None:
        super().__init__(config.head_dim)
        self.plain = config.rope_type == "default"

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with no_grad():
            seq_len = ops.scalar_tensor(INT64)  # `torch.max(position_ids)`
            seq_len = seq_len + 1
            if not self.plain:
                ops.greater_than(seq_len)
            freqs = positions.unsqueeze(-1).float() * ops.full((self.inv_freq.shape[0],), FLOAT32)
            emb = ops.cat([freqs, freqs], -1)
            cos = ops.cos(emb) * 1.0
            sin = ops.sin(emb) * 1.0
            return cos.to(x.dtype), sin.to(x.dtype)


class PhimoeLongRotaryEmbedding(PhimoeRotaryEmbedding):
    """`dynamic_rope_update` keeps frequencies too, which nobody reads."""

    def __init__(self, config: PhimoeConfig) -> None:
        super().__init__(config)
        self.long_inv_freq: list[Tensor] = []

    rope_init_fn = Phi3LongRotaryEmbedding.rope_init_fn

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with no_grad():
            Phi3LongRotaryEmbedding.longrope_frequency_update(self)  # type: ignore[arg-type]
        return super().forward(x, positions)


def _drawn(masked_gates: Tensor) -> Tensor:
    """Which expert, by Gumbel noise."""
    return ops.max_last(masked_gates - ops.log(ops.rand_like(masked_gates)))[1]


def sparsemixer(scores: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Scores (tokens, experts) to the weights of two experts a token, and to which they are."""
    with no_grad():
        mask_logits_threshold, max_ind = ops.max_last(scores)
        factor = ops.clamp_min(ops.absolute(scores), mask_logits_threshold)
        mask_logits_threshold = ops.greater_than((mask_logits_threshold - scores) / factor)
    masked_gates = ops.masked_fill_value(scores, mask_logits_threshold)
    selected_experts = _drawn(masked_gates) if training else max_ind
    masked_gates = ops.softmax(masked_gates)
    multiplier_o = ops.gather(masked_gates, selected_experts, selected_experts.shape)
    if training:
        max_scores, max_ind = ops.max_last(masked_gates)
        mask_for_one = ops.logical_or(ops.equal(selected_experts, max_ind), ops.greater_than(ops.rand_like(max_scores)))
        mask_for_one = (mask_for_one + 0.3333).to(masked_gates.dtype)
        multiplier = ops.sampled_multiplier(scores, multiplier_o, selected_experts, masked_gates, mask_for_one)
    else:
        multiplier = multiplier_o
    masked_scores = ops.scatter_value(scores, selected_experts)
    with no_grad():
        mask_logits_threshold, max_ind = ops.max_last(masked_scores)
        factor = ops.clamp_min(ops.absolute(scores), mask_logits_threshold)
        mask_logits_threshold = ops.greater_than((mask_logits_threshold - scores) / factor)
    masked_gates_top2 = ops.masked_fill_value(masked_scores, mask_logits_threshold)
    selected_experts_top2 = _drawn(masked_gates_top2) if training else max_ind
    masked_gates_top2 = ops.softmax(masked_gates_top2)
    multiplier_top2_o = ops.gather(masked_gates_top2, selected_experts_top2, selected_experts_top2.shape)
    if training:
        max_scores, max_ind = ops.max_last(masked_gates_top2)
        mask_for_one_top2 = ops.logical_or(
            ops.equal(selected_experts_top2, max_ind), ops.greater_than(ops.rand_like(max_scores))
        )
        mask_for_one_top2 = (mask_for_one_top2 + 0.3333).to(masked_gates_top2.dtype)
        multiplier_top2 = ops.sampled_multiplier(
            scores, multiplier_top2_o, selected_experts_top2, masked_gates_top2, mask_for_one_top2
        )
    else:
        multiplier_top2 = multiplier_top2_o
    multiplier = ops.cat((multiplier, multiplier_top2), -1)
    selected_experts = ops.cat((selected_experts, selected_experts_top2), -1)
    return multiplier, selected_experts


class PhimoeTopKRouter(nn.Linear):
    def __init__(self, config: PhimoeConfig, dtype: DType) -> None:
        super().__init__(config.hidden_size, config.num_local_experts, dtype)
        self.input_jitter_noise = config.input_jitter_noise

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        if self.training and self.input_jitter_noise:
            raise NotModelledError("noise on the router's input", where="config: input_jitter_noise")
        router_logits = super().forward(hidden_states)
        routing_weights, selected_experts = sparsemixer(router_logits, self.training)
        return router_logits, routing_weights, selected_experts


class PhimoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: PhimoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.router = PhimoeTopKRouter(config, dtype)
        self.experts = Experts(config.num_local_experts, DRAWN, width, inner, config.hidden_act, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, hidden_dim)
        _, routing_weights, selected_experts = self.router(hidden_states)
        final_hidden_states = self.experts(hidden_states, selected_experts, routing_weights)
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim)  # type: ignore[no-any-return]


class PhimoeDecoderLayer(MixtralDecoderLayer):
    mlp_class = PhimoeSparseMoeBlock
    norm_class = nn.LayerNorm


class PhimoeModel(LlamaModel):
    layer_class = PhimoeDecoderLayer
    norm_class = nn.LayerNorm

    def rotary(self, config: Any) -> nn.Module:
        """Made anew in every step."""
        long = config.rope_type in ("longrope", "su")
        return PhimoeLongRotaryEmbedding(config) if long else PhimoeRotaryEmbedding(config)


class PhimoeForCausalLM(LlamaForCausalLM):
    model_class = PhimoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return PhimoeForCausalLM(PhimoeConfig.read(config, where), dtype)
