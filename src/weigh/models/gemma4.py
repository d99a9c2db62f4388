"""Gemma 4 with its eyes and ears, as `transformers/models/gemma4/modeling_gemma4.py` (5.23) writes it: counted.

Either tower may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers.gemma4 import Gemma4Audio, Gemma4Vision
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("gemma4",)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Gemma4ForConditionalGeneration", where=where)
    make = Maker(dtype)
    text = part(config, "text_config", "gemma4_text")
    language = text_model(text, ties(config, text, default=True), dtype, f"{where}: text_config")
    towers, projectors = {}, {}
    width = language.config.hidden_size
    if config.get("vision_config") is not None:
        seeing = Gemma4Vision.read(part(config, "vision_config", "gemma4_vision"), f"{where}: vision_config")
        towers["vision_tower"] = seeing.build(make)
        projector = make.linear(seeing.hidden_size, width, bias=False)
        projectors["embed_vision"] = Projector(embedding_projection=projector)
    towers["language_model"] = language.model
    if config.get("audio_config") is not None:
        hearing = Gemma4Audio.read(part(config, "audio_config", "gemma4_audio"), f"{where}: audio_config")
        towers["audio_tower"] = hearing.build(make)
        projector = make.linear(hearing.output_proj_dims, width, bias=False)
        projectors["embed_audio"] = Projector(embedding_projection=projector)
    return ConditionalGeneration(language, MultimodalModel("language_model", **towers, **projectors))
