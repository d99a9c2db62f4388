"""Youtu-LLM, as `transformers/models/youtu/modeling_youtu.py` (5.23) writes it: Llama with DeepSeek-V3's attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys
from weigh.models.deepseek_v3 import DeepseekV3Attention, latent_cache
from weigh.models.llama import DecoderConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("youtu",)


@dataclass(frozen=True)
class YoutuConfig(DecoderConfig):
    """The settings of `YoutuConfig` that shape memory."""

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_attention_heads: int = 16
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    qk_nope_head_dim: int = 128
    tie_word_embeddings: bool = True
    rope_interleave: bool = True
    attention_bias: bool = False

    @property
    def qk_head_dim(self) -> int:
        """The width of a query, and of a key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A head's width is that of its rotated part."""
        found["head_dim"] = found["qk_rope_head_dim"]
        super().settle(keys, found)


class YoutuDecoderLayer(LlamaDecoderLayer):
    attention_class = DeepseekV3Attention


class YoutuModel(LlamaModel):
    layer_class = YoutuDecoderLayer


class YoutuForCausalLM(LlamaForCausalLM):
    model_class = YoutuModel

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The latents, and one rotated key for all heads."""
        return (latent_cache(self.config),) * self.cache_layers


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return YoutuForCausalLM(YoutuConfig.read(config, where), dtype)
