"""XGLM and BioGPT, as `modeling_xglm.py` and `modeling_biogpt.py` of transformers 5.23 write them: counted, not run.

OPT's layers, with a scaled embedding; XGLM's positions are waves, BioGPT's are learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys
from weigh.models.opt import OPTConfig, OPTDecoderLayer, OPTLearnedPositionalEmbedding

MODEL_TYPES = ("biogpt", "xglm")


def _read_xglm(config: Mapping[str, Any], where: str) -> OPTConfig:
    keys = Keys(config, where)
    keys.refuse("add_cross_attention", "XGLM with cross-attention")
    return OPTConfig(
        vocab_size=keys.size("vocab_size", default=256008),
        hidden_size=keys.size("d_model", "hidden_size", default=1024),
        num_hidden_layers=keys.size("num_layers", "num_hidden_layers", default=24),
        ffn_dim=keys.size("ffn_dim", default=4096),
        max_position_embeddings=keys.size("max_position_embeddings", default=2048),
        num_attention_heads=keys.size("attention_heads", "num_attention_heads", default=16),
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
    )


def _read_biogpt(config: Mapping[str, Any], where: str) -> OPTConfig:
    keys = Keys(config, where)
    return OPTConfig(
        vocab_size=keys.size("vocab_size", default=42384),
        hidden_size=keys.size("hidden_size", default=1024),
        num_hidden_layers=keys.size("num_hidden_layers", default=24),
        ffn_dim=keys.size("intermediate_size", default=4096),
        max_position_embeddings=keys.size("max_position_embeddings", default=1024),
        num_attention_heads=keys.size("num_attention_heads", default=16),
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
    )


class XGLMSinusoidalPositionalEmbedding(nn.Module):
    """Two more rows than there are positions, not trained."""

    def __init__(self, num_positions: int, embedding_dim: int, dtype: DType) -> None:
        super().__init__()
        self.weights = nn.buffer((num_positions + 2, embedding_dim), dtype)


class XGLMModel(nn.Module):
    def __init__(self, config: OPTConfig, dtype: DType, path: str) -> None:
        super().__init__()
        width, places = config.hidden_size, config.max_position_embeddings
        waves = path == "model"
        kind = XGLMSinusoidalPositionalEmbedding if waves else OPTLearnedPositionalEmbedding
        self.embed_tokens = nn.Embedding(config.vocab_size, width, dtype)
        self.embed_positions = kind(places, width, dtype)
        self.layers = nn.Stack(f"{path}.layers", config.num_hidden_layers, lambda _: OPTDecoderLayer(config, dtype))
        self.layer_norm = nn.LayerNorm(width, dtype)


class _Counted(CausalModel):
    def __init__(self, config: OPTConfig, dtype: DType, path: str) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        model = XGLMModel(config, dtype, path)
        setattr(self, path, model)
        tied_to = model.embed_tokens if config.tie_word_embeddings else None
        name = "lm_head" if path == "model" else "output_projection"
        setattr(self, name, nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype))

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads = config.num_attention_heads
        return layout.full_attention(config.num_hidden_layers, heads, config.hidden_size // heads)


class XGLMForCausalLM(_Counted):
    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__(config, dtype, "model")


class BioGptForCausalLM(_Counted):
    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__(config, dtype, "biogpt")


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    biogpt = config.get("model_type") == "biogpt"
    settings = (_read_biogpt if biogpt else _read_xglm)(config, where)
    Keys(config, where).divides("heads", settings.num_attention_heads, "hidden_size", settings.hidden_size)
    return (BioGptForCausalLM if biogpt else XGLMForCausalLM)(settings, dtype)
