"""PaliGemma, as `transformers/models/paligemma/modeling_paligemma.py` (5.23) writes it: counted.

A SigLIP tower without its head, one linear layer, and Gemma, which reads the prompt in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers import auto_tower
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("paligemma",)

VISION = {
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
TEXT = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "PaliGemmaForConditionalGeneration", where=where)
    make = Maker(dtype)
    tower = auto_tower(part(config, "vision_config", "siglip_vision_model", **VISION), where)
    text = part(config, "text_config", "gemma", **TEXT)
    language = text_model(text, ties(config, text, default=True), dtype, f"{where}: text_config")
    width = Keys(config, where).size("projection_dim", default=2048)
    model = MultimodalModel(
        "language_model",
        vision_tower=tower.build(make),
        multi_modal_projector=Projector(linear=make.linear(tower.hidden_size, width)),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
