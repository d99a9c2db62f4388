"""MiniCPM3, as `transformers/models/minicpm3/modeling_minicpm3.py` (5.23) writes it.

Llama with DeepSeek's latent attention, whose embeddings, residuals and last hidden states are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import INT64, DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, CausalOutput, LayerCache, causal_lm_loss, slice_logits_to_keep
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3Attention, latent_cache
from weigh.models.gemma import GemmaTextScaledWordEmbedding
from weigh.models.granite import GraniteDecoderLayer
from weigh.models.llama import LlamaConfig, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("minicpm3",)


@dataclass(frozen=True)
class MiniCPM3Config(LlamaConfig):
    """The settings of `MiniCPM3Config` that shape memory."""

    vocab_size: int = 73448
    hidden_size: int = 2560
    intermediate_size: int = 6400
    num_hidden_layers: int = 62
    num_attention_heads: int = 40
    num_key_value_heads: int = 40
    tie_word_embeddings: bool = True
    kv_lora_rank: int = 256
    q_lora_rank: int | None = 768
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 32
    v_head_dim: int = DERIVED

    rope_interleave = False

    @property
    def qk_head_dim(self) -> int:
        """The width of a query, and of a key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A head's width is that of its rotated part; its values share the hidden size."""
        found["head_dim"] = found["qk_rope_head_dim"]
        super().settle(keys, found)
        found["v_head_dim"] = found["v_head_dim"] or found["hidden_size"] // found["num_attention_heads"]


class MiniCPM3DecoderLayer(GraniteDecoderLayer):
    attention_class = DeepseekV3Attention


class MiniCPM3ScaledWordEmbedding(GemmaTextScaledWordEmbedding):
    """Its scale is a whole number, and kept as one."""

    def __init__(self, num_embeddings: Size, embedding_dim: Size, dtype: DType) -> None:
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, dtype)
        self.embed_scale = nn.buffer((), INT64)


class MiniCPM3Model(LlamaModel):
    layer_class = MiniCPM3DecoderLayer
    embedding_class: ClassVar[type[nn.Embedding]] = MiniCPM3ScaledWordEmbedding


class FractionallyScaledModel(MiniCPM3Model):
    embedding_class = GemmaTextScaledWordEmbedding


class MiniCPM3ForCausalLM(LlamaForCausalLM):
    model_class: ClassVar[type[LlamaModel]] = MiniCPM3Model

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The latents, and one rotated key for all heads."""
        return (latent_cache(self.config),) * self.cache_layers

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        outputs = self.model(input_ids, cache, attention_mask, positions)
        hidden_states = outputs / 10.0  # upstream's `outputs` keeps what comes before
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


class FractionallyScaledForCausalLM(MiniCPM3ForCausalLM):
    model_class = FractionallyScaledModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    whole = isinstance(config.get("scale_emb", 12), int)
    model = MiniCPM3ForCausalLM if whole else FractionallyScaledForCausalLM
    return model(MiniCPM3Config.read(config, where), dtype)
