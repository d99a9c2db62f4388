"""Idefics 2 and 3 and SmolVLM, as `transformers/models/idefics3/modeling_idefics3.py` (5.23) writes it: counted.

A SigLIP-like tower, and a connector that shuffles patches into wider ones (Idefics 3, SmolVLM) or resamples them with a
perceiver (Idefics 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.parts import Parts
from weigh.models.towers.clip import Idefics2Vision, Idefics3Vision
from weigh.models.towers.parts import Maker, Projector, Tower
from weigh.records import dataclass

MODEL_TYPES = ("idefics2", "idefics3", "smolvlm")

CLASSES = {
    "idefics2": "Idefics2ForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}


@dataclass(frozen=True)
class Idefics2Perceiver(Tower):
    """`Idefics2PerceiverResampler`; its width is the language model's."""

    hidden_size: int = 4096
    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4

    def layer(self, make: Maker) -> nn.Module:
        """`Idefics2PerceiverLayer`."""
        width, head_dim = self.hidden_size, self.resampler_head_dim
        return Parts(
            input_latents_norm=make.rms_norm(width),
            input_context_norm=make.rms_norm(width),
            self_attn=make.attention(
                width,
                ("q_proj", "k_proj", "v_proj", "o_proj"),
                bias=False,
                heads_width=self.resampler_n_heads * head_dim,
                kv_width=self.num_key_value_heads * head_dim,
            ),
            post_attention_layernorm=make.rms_norm(width),
            mlp=make.gated_mlp(width, 4 * width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Parts(
            latents=make.tensor(self.resampler_n_latents, self.hidden_size),
            layers=make.stack(self.resampler_depth, lambda: self.layer(make)),
            norm=make.rms_norm(self.hidden_size),
        )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    family = str(config["model_type"])
    check_class(config, CLASSES[family], where=where)
    keys, make = Keys(config, where), Maker(dtype)
    kind = Idefics2Vision if family == "idefics2" else Idefics3Vision
    tower = kind.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "mistral" if family == "idefics2" else "llama")
    language = text_model(text, ties(config, text, default=False), dtype, f"{where}: text_config")
    settings = language.config
    width, seen = settings.hidden_size, tower.hidden_size
    if family == "idefics2":
        perceiver = part(config, "perceiver_config", "") | {"hidden_size": width}
        connector = Projector(
            modality_projection=make.gated_mlp(seen, settings.intermediate_size, out=width),
            perceiver_resampler=Idefics2Perceiver.read(perceiver, f"{where}: perceiver_config").build(make),
        )
    else:
        wide = seen * keys.size("scale_factor", default=2) ** 2
        connector = Projector(modality_projection=Parts(proj=make.linear(wide, width, bias=False)))
    model = MultimodalModel(
        "text_model",
        vision_model=tower.build(make),
        connector=connector,
        text_model=language.model,
    )
    return ConditionalGeneration(language, model)
