"""Hunyuan's mixture of experts, as `transformers/models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py` (5.23) writes it.

Llama that norms queries and keys head by head once they are rotated, with routers in fp32, and one expert for every
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("hunyuan_v1_moe",)


@dataclass(frozen=True)
class HunYuanMoEV1Config(MoeConfig):
    """The settings of `HunYuanMoEV1Config` that shape memory."""

    vocab_size: int = 290943
    attention_bias: bool = False
    num_experts: int = 1
    moe_topk: tuple[int, ...] = (1,)
    """Of every layer."""

    aliases: ClassVar[Mapping[str, str]] = {"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"}

    @property
    def layer_pattern(self) -> Sequence[object]:
        """How many experts a token chooses."""
        return self.moe_topk

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """One number of experts stands for all layers; frequencies scaled by an alpha are worked out once."""
        config = dict(config)
        for key in ("moe_topk", "num_experts_per_tok"):
            if isinstance(config.get(key), int):
                config[key] = [config[key]]
        for key in ("rope_parameters", "rope_scaling"):
            if isinstance(config.get(key), Mapping) and config[key].get("alpha"):
                config[key] = {**config[key], "rope_type": "default"}
        return super().read(config, where)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """As many numbers as layers, if there is more than one."""
        super().settle(keys, found)
        count, chosen = found["num_hidden_layers"], found["moe_topk"]
        if len(chosen) == 1:
            found["moe_topk"] = chosen * count
        elif len(chosen) != count:
            raise InputError(f"has {len(chosen)} entries", where=f"{keys.where}: moe_topk", hint=f"Give {count}.")


class HunYuanMoEV1Attention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.query_layernorm = nn.RMSNorm(self.head_dim, dtype)
        self.key_layernorm = nn.RMSNorm(self.head_dim, dtype)

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Normed afterwards."""
        query_states, key_states = super().rotate(query, key, position_embeddings)
        del query, key
        query_states = self.query_layernorm(query_states)
        key_states = self.key_layernorm(key_states)
        return query_states, key_states


class HunYuanMoEV1Gate(nn.Module):
    def __init__(self, config: HunYuanMoEV1Config, layer_idx: int) -> None:
        super().__init__()
        self.top_k = config.moe_topk[layer_idx]
        self.wg = nn.Linear(config.hidden_size, config.num_experts, FLOAT32)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
        hidden_states = hidden_states.float()
        router_logits = self.wg(hidden_states)
        routing_weights = ops.softmax(router_logits, FLOAT32)
        routing_weights, selected_experts = ops.topk(routing_weights, self.top_k)
        routing_weights = ops.divide_(routing_weights, ops.sum(routing_weights, (-1,), keepdim=True))
        return router_logits, routing_weights.to(router_logits.dtype), selected_experts


class HunYuanMoEV1Moe(nn.Module):
    role = nn.MLP

    def __init__(self, config: HunYuanMoEV1Config, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        experts, width, inner, act = config.num_experts, config.hidden_size, config.intermediate_size, config.hidden_act
        self.gate = HunYuanMoEV1Gate(config, layer_idx)
        self.experts = Experts(experts, self.gate.top_k, width, inner, act, dtype)
        self.shared_mlp = GatedMLP(width, inner, act, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states_mlp = self.shared_mlp(hidden_states)
        hidden_states = hidden_states.view(-1, hidden_dim)
        _, routing_weights, selected_experts = self.gate(hidden_states)
        final_hidden_states = self.experts(hidden_states, selected_experts, routing_weights).reshape(
            batch_size, sequence_length, hidden_dim
        )
        return final_hidden_states + hidden_states_mlp  # type: ignore[no-any-return]


class HunYuanMoEV1DecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.self_attn = HunYuanMoEV1Attention(config, dtype, layer_idx)
        self.mlp = HunYuanMoEV1Moe(config, dtype, layer_idx)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)


class HunYuanMoEV1Model(LlamaModel):
    layer_class = HunYuanMoEV1DecoderLayer


class HunYuanMoEV1ForCausalLM(LlamaForCausalLM):
    model_class = HunYuanMoEV1Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return HunYuanMoEV1ForCausalLM(HunYuanMoEV1Config.read(config, where), dtype)
