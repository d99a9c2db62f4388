"""EXAONE 4.5, as `transformers/models/exaone4_5/modeling_exaone4_5.py` (5.23) writes it.

EXAONE 4 with a tower: counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers.parts import Maker
from weigh.models.towers.qwen_vl import Exaone45Vision

MODEL_TYPES = ("exaone4_5",)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Exaone4_5_ForConditionalGeneration", where=where)
    tower = Exaone45Vision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "exaone4")
    if text["model_type"] == "exaone4_5_text":
        text["model_type"] = "exaone4"
    language = text_model(text, ties(config, text, default=False), dtype, f"{where}: text_config")
    model = MultimodalModel(
        "language_model",
        visual=tower.build(Maker(dtype)),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
