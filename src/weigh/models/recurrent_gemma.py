"""RecurrentGemma, as `transformers/models/recurrent_gemma/modeling_recurrent_gemma.py` (5.23) writes it.

Two layers with a linear recurrent unit, then one with a sliding window. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from weigh.dtypes import BFLOAT16, FLOAT32, DType
from weigh.ghost import nn
from weigh.models.common import SLIDING, CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.gemma import GemmaRMSNorm
from weigh.models.hybrid import LINEAR, CountedForCausalLM, HybridConfig, HybridModel
from weigh.models.layout import State
from weigh.models.llama import LlamaAttention
from weigh.models.recurrent import Conv1d

MODEL_TYPES = ("recurrent_gemma",)


@dataclass(frozen=True)
class RecurrentGemmaConfig(HybridConfig):
    """The settings of `RecurrentGemmaConfig` that shape memory."""

    num_hidden_layers: int = 26
    vocab_size: int = 256000
    hidden_size: int = 2560
    intermediate_size: int = 3 * 2560
    num_attention_heads: int = 10
    lru_width: int = DERIVED
    sliding_window: int = 2048
    conv1d_width: int = 4
    hidden_act: str = "gelu_pytorch_tanh"
    block_types: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    rotary_width: int = DERIVED

    kinds = (SLIDING, LINEAR)
    aliases: ClassVar[Mapping[str, str]] = {
        "attention_window_size": "sliding_window",
        "hidden_activation": "hidden_act",
    }

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolution, and the state, which is kept in fp32."""
        return (
            State("convolution", (self.hidden_size, self.conv1d_width - 1)),
            State("recurrence", (self.lru_width,), FLOAT32),
        )

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The types of the layers come in turn."""
        found["layer_types"] = None
        found["lru_width"] = found["lru_width"] or found["hidden_size"]
        found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=0.5)
        super().settle(keys, found)
        keys.divides("num_attention_heads", found["num_attention_heads"], "lru_width", found["lru_width"])

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        kinds = found["block_types"]
        return LINEAR if kinds[layer_idx % len(kinds)] == "recurrent" else SLIDING


class RecurrentGemmaAttention(LlamaAttention):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.rotary_emb = RotaryEmbedding(config.rotary_width)

    def biases(self, config: Any) -> tuple[bool, bool]:
        """The output always has one."""
        return config.attention_bias, True


class RecurrentGemmaRglru(nn.Module):
    def __init__(self, config: RecurrentGemmaConfig, dtype: DType) -> None:
        super().__init__()
        heads = config.num_attention_heads
        width = config.lru_width // heads
        self.recurrent_param = nn.parameter((config.lru_width,), dtype)
        self.input_gate_weight = nn.parameter((heads, width, width), dtype)
        self.input_gate_bias = nn.parameter((heads, width), dtype)
        self.recurrent_gate_weight = nn.parameter((heads, width, width), dtype)
        self.recurrent_gate_bias = nn.parameter((heads, width), dtype)


class RecurrentGemmaRecurrentBlock(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: RecurrentGemmaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.lru_width
        self.linear_y = nn.Linear(width, inner, dtype, bias=True)
        self.linear_x = nn.Linear(width, inner, dtype, bias=True)
        self.linear_out = nn.Linear(inner, width, dtype, bias=True)
        self.conv_1d = Conv1d(inner, config.conv1d_width, dtype, bias=True)
        self.rg_lru = RecurrentGemmaRglru(config, dtype)


class RecurrentGemmaMlp(nn.Module):
    role = nn.MLP

    def __init__(self, config: RecurrentGemmaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size // 2
        self.gate_proj = nn.Linear(width, inner, dtype, bias=True)
        self.up_proj = nn.Linear(width, inner, dtype, bias=True)
        self.down_proj = nn.Linear(inner, width, dtype, bias=True)


class RecurrentGemmaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: RecurrentGemmaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.temporal_pre_norm = GemmaRMSNorm(config.hidden_size, dtype)
        if config.layer_types[layer_idx] == LINEAR:
            self.temporal_block: nn.Module = RecurrentGemmaRecurrentBlock(config, dtype)
        else:
            self.temporal_block = RecurrentGemmaAttention(config, dtype, layer_idx)
        self.channel_pre_norm = GemmaRMSNorm(config.hidden_size, dtype)
        self.mlp_block = RecurrentGemmaMlp(config, dtype)


class RecurrentGemmaModel(HybridModel):
    layer_class = RecurrentGemmaDecoderLayer
    norm_class = GemmaRMSNorm
    norm_name = "final_norm"

    def rotary(self, config: Any) -> Any:
        """Every attention has its own."""
        self.normalizer = nn.buffer((), BFLOAT16)


class RecurrentGemmaForCausalLM(CountedForCausalLM):
    model_class = RecurrentGemmaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig.read(config, where), dtype)
