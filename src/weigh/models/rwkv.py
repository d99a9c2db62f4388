"""RWKV (version 4), as `transformers/models/rwkv/modeling_rwkv.py` (5.23) writes it. Counted, not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import DERIVED, Keys
from weigh.models.layout import State
from weigh.records import dataclass

MODEL_TYPES = ("rwkv",)


@dataclass(frozen=True)
class RwkvConfig:
    """The settings of `RwkvConfig` that shape memory."""

    vocab_size: int = 50277
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    attention_hidden_size: int = DERIVED
    intermediate_size: int = DERIVED
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        found = keys.fields(cls)
        found["attention_hidden_size"] = found["attention_hidden_size"] or found["hidden_size"]
        found["intermediate_size"] = found["intermediate_size"] or 4 * found["hidden_size"]
        return keys.make(cls, found)


class RwkvSelfAttention(nn.Module):
    role = nn.MIXER

    def __init__(self, config: RwkvConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.attention_hidden_size
        self.time_decay = nn.parameter((inner,), dtype)
        self.time_first = nn.parameter((inner,), dtype)
        self.time_mix_key = nn.parameter((1, 1, width), dtype)
        self.time_mix_value = nn.parameter((1, 1, width), dtype)
        self.time_mix_receptance = nn.parameter((1, 1, width), dtype)
        self.key = nn.Linear(width, inner, dtype)
        self.value = nn.Linear(width, inner, dtype)
        self.receptance = nn.Linear(width, inner, dtype)
        self.output = nn.Linear(inner, width, dtype)


class RwkvFeedForward(nn.Module):
    role = nn.MLP

    def __init__(self, config: RwkvConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.time_mix_key = nn.parameter((1, 1, width), dtype)
        self.time_mix_receptance = nn.parameter((1, 1, width), dtype)
        self.key = nn.Linear(width, inner, dtype)
        self.receptance = nn.Linear(width, width, dtype)
        self.value = nn.Linear(inner, width, dtype)


class RwkvBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: RwkvConfig, dtype: DType, layer_id: int) -> None:
        super().__init__()
        if layer_id == 0:
            self.pre_ln = nn.LayerNorm(config.hidden_size, dtype)
        self.ln1 = nn.LayerNorm(config.hidden_size, dtype)
        self.ln2 = nn.LayerNorm(config.hidden_size, dtype)
        self.attention = RwkvSelfAttention(config, dtype)
        self.feed_forward = RwkvFeedForward(config, dtype)


class RwkvModel(nn.Module):
    def __init__(self, config: RwkvConfig, dtype: DType) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        count = config.num_hidden_layers
        self.blocks = nn.Stack("rwkv.blocks", count, lambda layer_id: RwkvBlock(config, dtype, layer_id), lead=1)
        self.ln_out = nn.LayerNorm(config.hidden_size, dtype)


class RwkvForCausalLM(CausalModel):
    takes_positions = False

    def __init__(self, config: RwkvConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.rwkv = RwkvModel(config, dtype)
        tied = self.rwkv.embeddings if config.tie_word_embeddings else None
        self.head = nn.Head(tied, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The last input of the attention and of the MLP; numerator, denominator and maximum of the recurrence."""
        width = self.config.hidden_size
        states = (State("token shift", (2, width)), State("recurrence", (3, width), FLOAT32))
        return (LayerCache(layout.RECURRENT, states=states),) * self.config.num_hidden_layers


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return RwkvForCausalLM(RwkvConfig.read(config, where), dtype)
