"""MiniMax, as `transformers/models/minimax/modeling_minimax.py` (5.23) writes it.

Mixtral with lightning attention, a linear one in blocks, in every second layer. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, CausalModel
from weigh.models.config import Keys
from weigh.models.hybrid import LINEAR, CountedForCausalLM, HybridConfig, HybridModel
from weigh.models.layout import State
from weigh.models.llama import LlamaAttention
from weigh.models.mixtral import MixtralSparseMoeBlock

MODEL_TYPES = ("minimax",)


@dataclass(frozen=True)
class MiniMaxConfig(HybridConfig):
    """The settings of `MiniMaxConfig` that shape memory; the factors do not."""

    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    block_size: int = 256

    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    @property
    def states(self) -> tuple[State, ...]:
        """The sum of keys times values."""
        return (State("recurrence", (self.num_attention_heads, self.head_dim, self.head_dim)),)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No losses of the routers, no windows."""
        super().settle(keys, found)
        keys.refuse("sliding_window", "windows in MiniMax", unless=None)
        keys.cannot_run("router_jitter_noise", "noise before the router", unless=0)
        keys.cannot_run("output_router_logits", "the routers' own loss")

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return LINEAR if layer_idx % 2 else FULL


class MiniMaxLightningAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: MiniMaxConfig, dtype: DType) -> None:
        super().__init__()
        width, heads, block = config.hidden_size, config.num_attention_heads, config.block_size
        inner = heads * config.head_dim
        self.norm = nn.RMSNorm(inner, dtype)
        self.qkv_proj = nn.Linear(width, inner * 3, dtype)
        self.out_proj = nn.Linear(inner, width, dtype)
        self.output_gate = nn.Linear(width, inner, dtype)
        self.slope_rate = nn.buffer((heads, 1, 1), dtype)
        self.query_decay = nn.buffer((heads, block, 1), dtype)
        self.key_decay = nn.buffer((heads, block, 1), dtype)
        self.diagonal_decay = nn.buffer((1, heads, block, block), dtype)


class MiniMaxDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        if config.layer_types[layer_idx] == LINEAR:
            self.self_attn: nn.Module = MiniMaxLightningAttention(config, dtype)
        else:
            self.self_attn = LlamaAttention(config, dtype, layer_idx)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.mlp = MixtralSparseMoeBlock(config, dtype)


class MiniMaxModel(HybridModel):
    layer_class = MiniMaxDecoderLayer


class MiniMaxForCausalLM(CountedForCausalLM):
    model_class = MiniMaxModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MiniMaxForCausalLM(MiniMaxConfig.read(config, where), dtype)
