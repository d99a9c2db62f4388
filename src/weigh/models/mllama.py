"""Llama 3.2 Vision, as `transformers/models/mllama/modeling_mllama.py` (5.23) writes it.

Llama with layers in between that attend to a picture. On text alone these are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys, Pair
from weigh.models.llama import (
    DecoderConfig,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
)
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, ties
from weigh.models.parts import Parts
from weigh.models.towers.parts import Maker, Tower, Vision, patches
from weigh.records import dataclass

MODEL_TYPES = ("mllama", "mllama_text_model")

EXTRA_TOKENS = 8
"""Rows of the embedding beyond the vocabulary: the picture's own token, and padding."""


@dataclass(frozen=True)
class MllamaTextConfig(DecoderConfig):
    """The settings of `MllamaTextConfig` that shape memory."""

    vocab_size: int = 128256
    intermediate_size: int = 14336
    num_hidden_layers: int = 40
    num_key_value_heads: int = 8
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)

    heads_divide_width = True

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Layers that look at a picture, and the others."""
        return [i in self.cross_attention_layers for i in range(self.num_hidden_layers)]

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No such list is upstream's."""
        super().settle(keys, found)
        if found["cross_attention_layers"] is None:
            found["cross_attention_layers"] = cls.cross_attention_layers


class MllamaTextCrossAttention(nn.Module):
    """Counted: without a picture it is not called."""

    role = nn.ATTENTION

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        inner, kv_width = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        self.q_proj = nn.Linear(width, inner, dtype)
        self.k_proj = nn.Linear(width, kv_width, dtype)
        self.v_proj = nn.Linear(width, kv_width, dtype)
        self.o_proj = nn.Linear(inner, width, dtype)
        self.q_norm = nn.RMSNorm(head_dim, dtype)
        self.k_norm = nn.RMSNorm(head_dim, dtype)


class MllamaCrossAttentionDecoderLayer(nn.Module):
    """It has no role: upstream skips it before anything could be checkpointed."""

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        self.cross_attn_attn_gate = nn.parameter((1,), dtype)
        self.cross_attn_mlp_gate = nn.parameter((1,), dtype)
        self.cross_attn = MllamaTextCrossAttention(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.mlp = LlamaMLP(config, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor, *_: Any) -> Tensor:
        """Without a picture: as it came."""
        return hidden_states


def decoder_layer(config: MllamaTextConfig, dtype: DType, layer_idx: int) -> nn.Module:
    """One that looks at the text, or at the picture."""
    if layer_idx in config.cross_attention_layers:
        return MllamaCrossAttentionDecoderLayer(config, dtype)
    return MllamaSelfAttentionDecoderLayer(config, dtype, layer_idx)


class MllamaSelfAttentionDecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = LlamaAttention


class MllamaEmbedding(nn.Embedding):
    def __init__(self, rows: Size, width: Size, dtype: DType) -> None:
        super().__init__(rows + EXTRA_TOKENS, width, dtype)


class MllamaTextModel(LlamaModel):
    layer_class: ClassVar[Any] = staticmethod(decoder_layer)
    embedding_class = MllamaEmbedding


class MllamaForCausalLM(LlamaForCausalLM):
    model_class = MllamaTextModel

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Layers that look at a picture keep keys and values of its patches instead."""
        cross = self.config.cross_attention_layers  # type: ignore[attr-defined]
        return tuple(
            LayerCache(layout.CROSS, kept.heads, kept.key_width, kept.value_width) if i in cross else kept
            for i, kept in enumerate(super().cache_layout())
        )


@dataclass(frozen=True)
class MllamaVision(Tower):
    """`MllamaVisionModel`: a picture in tiles, through two stacks of layers."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: int = 16
    num_channels: int = 3
    vision_output_dim: int = 7680
    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    max_num_tiles: int = 4
    ratios: int = 8
    """How many shapes of a picture are told apart."""

    aliases: ClassVar[Mapping[str, str]] = {"num_attention_heads": "attention_heads"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Of the list of shapes only the length counts."""
        if keys.config.get("supported_aspect_ratios") is not None:
            found["ratios"] = len(keys.config["supported_aspect_ratios"])

    def layer(self, make: Maker, gated: bool) -> nn.Module:
        """`MllamaVisionEncoderLayer`."""
        width = self.hidden_size
        return Parts(
            gate_attn=make.tensor(1) if gated else None,
            gate_ffn=make.tensor(1) if gated else None,
            self_attn=make.attention(width, ("q_proj", "k_proj", "v_proj", "o_proj"), bias=False),
            mlp=make.mlp(width, self.intermediate_size),
            input_layernorm=make.layer_norm(width),
            post_attention_layernorm=make.layer_norm(width),
        )

    def tiles(self, make: Maker) -> nn.Module:
        """`MllamaPrecomputedAspectRatioEmbedding`."""
        width = self.max_num_tiles * self.hidden_size
        return Parts(gate=make.tensor(1), embedding=make.table(self.ratios + 1, width))

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width, positions = self.hidden_size, patches(self.image_size, self.patch_size) + 1
        return Vision(
            class_embedding=make.tensor(width),
            patch_embedding=make.conv(self.num_channels, width, *self.patch_size, bias=False),
            gated_positional_embedding=Parts(
                gate=make.tensor(1),
                embedding=make.tensor(positions, width),
                tile_embedding=make.table(self.ratios + 1, self.max_num_tiles * positions * width),
            ),
            pre_tile_positional_embedding=self.tiles(make),
            post_tile_positional_embedding=self.tiles(make),
            layernorm_pre=make.layer_norm(width),
            layernorm_post=make.layer_norm(width),
            transformer=Parts(layers=make.stack(self.num_hidden_layers, lambda: self.layer(make, gated=False))),
            global_transformer=Parts(layers=make.stack(self.num_global_layers, lambda: self.layer(make, gated=True))),
        )


class ProjectorLinear(nn.Linear):
    role = nn.PROJECTOR


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    if config["model_type"] == "mllama_text_model":
        check_class(config, "MllamaForCausalLM", where=where)
        return MllamaForCausalLM(MllamaTextConfig.read(config, where), dtype)
    check_class(config, "MllamaForConditionalGeneration", where=where)
    tower = MllamaVision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "")
    text["tie_word_embeddings"] = ties(config, text, default=False)
    language = MllamaForCausalLM(MllamaTextConfig.read(text, f"{where}: text_config"), dtype)
    model = MultimodalModel(
        "language_model",
        vision_model=tower.build(Maker(dtype)),
        language_model=language.model,
        multi_modal_projector=ProjectorLinear(tower.vision_output_dim, language.config.hidden_size, dtype, True),
    )
    return ConditionalGeneration(language, model)
