"""Llama 4 with its eyes, as `transformers/models/llama4/modeling_llama4.py` (5.23) writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import Keys, Pair
from weigh.models.multimodal import AroundLanguageModel, check_class, part, text_model
from weigh.models.parts import Parts
from weigh.models.towers.parts import Maker, Projector, Tower, Vision, patches
from weigh.records import dataclass

MODEL_TYPES = ("llama4",)


@dataclass(frozen=True)
class Llama4Vision(Tower):
    """`Llama4VisionModel`."""

    hidden_size: int = 768
    intermediate_size: int = 5632
    num_hidden_layers: int = 34
    num_attention_heads: int = 16
    num_channels: int = 3
    vision_output_dim: int = 7680
    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    projector_input_dim: int = 4096
    projector_output_dim: int = 4096

    def layer(self, make: Maker) -> nn.Module:
        """`Llama4VisionEncoderLayer`."""
        width = self.hidden_size
        return Parts(
            self_attn=make.attention(width, ("q_proj", "k_proj", "v_proj", "o_proj")),
            mlp=make.mlp(width, self.intermediate_size),
            input_layernorm=make.layer_norm(width),
            post_attention_layernorm=make.layer_norm(width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width, count = self.hidden_size, patches(self.image_size, self.patch_size) + 1
        flat = self.num_channels * self.patch_size[0] * self.patch_size[1]
        return Vision(
            class_embedding=make.tensor(width),
            positional_embedding_vlm=make.tensor(count, width),
            patch_embedding=Parts(linear=make.linear(flat, width, bias=False)),
            rotary_embedding=Parts(freqs_ci=nn.buffer((count, width // self.num_attention_heads // 2, 2), FLOAT32)),
            layernorm_pre=make.layer_norm(width),
            layernorm_post=make.layer_norm(width),
            model=Parts(layers=make.stack(self.num_hidden_layers, lambda: self.layer(make))),
            vision_adapter=Parts(
                mlp=Parts(
                    fc1=make.linear(self.intermediate_size, self.projector_input_dim, bias=False),
                    fc2=make.linear(self.projector_output_dim, self.projector_output_dim, bias=False),
                )
            ),
        )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Llama4ForConditionalGeneration", where=where)
    make = Maker(dtype)
    tower = Llama4Vision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "") | {"model_type": "llama4_text"}
    tied = Keys(text, where).flag("tie_word_embeddings", default=False)
    language = text_model(text, tied, dtype, f"{where}: text_config")
    width = language.config.hidden_size
    return AroundLanguageModel(
        "Llama4ForConditionalGeneration",
        language,
        vision_model=tower.build(make),
        multi_modal_projector=Projector(linear_1=make.linear(tower.vision_output_dim, width, bias=False)),
        language_model=language,
    )
