"""Ovis2, as `transformers/models/ovis2/modeling_ovis2.py` (5.23) writes it.

Its tower gives pictures words of a vocabulary of their own: counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import Keys, Pair
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.parts import Parts, positions
from weigh.models.towers.parts import Maker, Projector, Tower, Vision, patches
from weigh.records import dataclass

MODEL_TYPES = ("ovis2",)


@dataclass(frozen=True)
class Ovis2Vision(Tower):
    """`Ovis2VisionModel`."""

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_channels: int = 3
    image_size: Pair = (224, 224)
    patch_size: Pair = (14, 14)
    qkv_bias: bool = False
    mlp_bias: bool = False
    vocab_size: int = 16384
    hidden_stride: int = 1
    num_visual_indicator_tokens: int = 5

    def layer(self, make: Maker) -> nn.Module:
        """`Ovis2VisionEncoderLayer`."""
        width = self.hidden_size
        return Parts(
            attention=make.attention(width, ("k_proj", "v_proj", "q_proj", "out_proj"), self.qkv_bias),
            ffn=make.gated_mlp(width, self.intermediate_size, self.mlp_bias),
            rms_norm1=make.rms_norm(width),
            rms_norm2=make.rms_norm(width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width, count = self.hidden_size, patches(self.image_size, self.patch_size)
        words = self.vocab_size - self.num_visual_indicator_tokens
        return Vision(
            transformer=Parts(
                embeddings=Parts(
                    patch_embedding=make.conv(self.num_channels, width, *self.patch_size),
                    position_embedding=make.table(count, width),
                    position_ids=positions(count),
                    rms_norm=make.rms_norm(width),
                ),
                encoder=Parts(layers=make.stack(self.num_hidden_layers, lambda: self.layer(make))),
                rms_norm=make.rms_norm(width),
            ),
            head_linear=make.linear(width * self.hidden_stride**2, words, bias=False),
            head_norm=make.layer_norm(words),
        )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Ovis2ForConditionalGeneration", where=where)
    keys, make = Keys(config, where), Maker(dtype)
    tower = Ovis2Vision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "qwen2")
    tied = ties(config, text, default=True)
    language = text_model(text, True, dtype, f"{where}: text_config")
    width, words = keys.size("hidden_size", default=1536), keys.size("vocab_size", default=151643)
    model = MultimodalModel(
        "language_model",
        vision_tower=tower.build(make),
        language_model=language.model,
        visual_embeddings_table=Projector(weight=make.tensor(tower.vocab_size, width)),
    )
    made = ConditionalGeneration(language, model)
    if not tied:
        made.lm_head = nn.Head(None, width, words, dtype)
    return made
