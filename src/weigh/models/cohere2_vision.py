"""Command A Vision, as `transformers/models/cohere2_vision/modeling_cohere2_vision.py` (5.23): counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers import auto_tower
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("cohere2_vision",)

VISION = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "image_size": 512,
    "num_hidden_layers": 27,
    "num_attention_heads": 12,
}


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Cohere2VisionForConditionalGeneration", where=where)
    keys, make = Keys(config, where), Maker(dtype)
    tower = auto_tower(part(config, "vision_config", "siglip_vision_model", **VISION), where)
    text = part(config, "text_config", "cohere2")
    language = text_model(text, ties(config, text, default=True), dtype, f"{where}: text_config")
    inner = keys.size("alignment_intermediate_size", default=36864)
    seen = tower.hidden_size * keys.size("downsample_factor", default=2) ** 2
    model = MultimodalModel(
        "language_model",
        vision_tower=tower.build(make),
        multi_modal_projector=Projector(
            linear_1=make.linear(seen, inner),
            linear_2=make.linear(inner // 2, language.config.hidden_size),
        ),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
