"""Relatives of Llama whose attention is their own: counted, not run.

DiffLlama, Doge without experts, and Granite with windows, as `modeling_diffllama.py`, `modeling_doge.py` and
`modeling_granite_swa.py` of transformers 5.23 write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel, ModuleList, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import (
    DecoderConfig,
    LlamaAttention,
    LlamaConfig,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
)
from weigh.records import dataclass

MODEL_TYPES = ("diffllama", "doge", "granite_swa")


@dataclass(frozen=True)
class DiffLlamaConfig(DecoderConfig):
    """The settings of `DiffLlamaConfig` that shape memory."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    attention_bias: bool = False

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Half of the values are taken from the other half."""
        super().settle(keys, found)
        if found["num_key_value_heads"] % 2:
            where = f"{keys.where}: num_key_value_heads"
            raise InputError(f"is {found['num_key_value_heads']}", where=where, hint="Give an even number.")


class DiffLlamaAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(self, name, nn.parameter((self.head_dim,), dtype))


class DiffLlamaDecoderLayer(LlamaDecoderLayer):
    attention_class = DiffLlamaAttention


class DiffLlamaModel(LlamaModel):
    layer_class = DiffLlamaDecoderLayer


class DiffLlamaForCausalLM(LlamaForCausalLM):
    model_class = DiffLlamaModel
    forward = CausalModel.forward


@dataclass(frozen=True)
class DogeConfig(LlamaConfig):
    """The settings of `DogeConfig` that shape memory."""

    vocab_size: int = 32768
    hidden_size: int = 1024
    intermediate_size: int = 2048
    num_attention_heads: int = 8

    heads_divide_width = False

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No experts."""
        super().settle(keys, found)
        keys.refuse("is_moe", "Doge with experts")


class DogeAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        heads, bias = self.num_kv_heads, config.attention_bias
        self.A = nn.parameter((heads,), dtype)
        self.dt_proj = nn.Linear(heads * self.head_dim, heads, dtype, bias)
        self.o_proj = self.__dict__.pop("o_proj")  # in upstream's order
        self.q_norm = nn.RMSNorm(self.head_dim, dtype)
        self.k_norm = nn.RMSNorm(self.head_dim, dtype)


class DogeDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.self_attn = DogeAttention(config, dtype, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.mlp = LlamaMLP(config, dtype)
        self.input_residual = nn.parameter((config.hidden_size,), dtype)
        self.post_attention_residual = nn.parameter((config.hidden_size,), dtype)


class DogeModel(LlamaModel):
    layer_class = DogeDecoderLayer


class DogeForCausalLM(LlamaForCausalLM):
    model_class = DogeModel
    forward = CausalModel.forward


@dataclass(frozen=True)
class GraniteSWAConfig(DecoderConfig):
    """The settings of `GraniteSWAConfig` that shape memory."""

    vocab_size: int = 100352
    hidden_size: int = 2560
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 20
    num_key_value_heads: int = 4
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = 128
    layer_types: tuple[str, ...] = DERIVED
    rotary_embeddings: int = DERIVED
    """One for each base that a layer's positions have."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer of four has full attention."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if i % 4 else FULL for i in range(found["num_hidden_layers"]))
        keys.check_layer_types(found)
        bases = keys.config.get("layer_rope_theta")
        if bases is not None and (not isinstance(bases, list | tuple) or len(bases) != found["num_hidden_layers"]):
            where = f"{keys.where}: layer_rope_theta"
            raise InputError(f"is {bases!r}", where=where, hint="Give a number for every layer.")
        found["rotary_embeddings"] = 1 if bases is None else len({base for base in bases if base})


class GraniteSWAAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.sinks = nn.parameter((config.num_attention_heads,), dtype)


class GraniteSWADecoderLayer(LlamaDecoderLayer):
    attention_class = GraniteSWAAttention


class GraniteSWAModel(LlamaModel):
    layer_class = GraniteSWADecoderLayer

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.rotary_embs = ModuleList([RotaryEmbedding(config.head_dim) for _ in range(config.rotary_embeddings)])


class GraniteSWAForCausalLM(LlamaForCausalLM):
    model_class = GraniteSWAModel
    forward = CausalModel.forward


CLASSES: dict[str, tuple[type[DecoderConfig], type[LlamaForCausalLM]]] = {
    "diffllama": (DiffLlamaConfig, DiffLlamaForCausalLM),
    "doge": (DogeConfig, DogeForCausalLM),
    "granite_swa": (GraniteSWAConfig, GraniteSWAForCausalLM),
}


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    settings, model = CLASSES[str(config.get("model_type"))]
    return model(settings.read(config, where), dtype)
