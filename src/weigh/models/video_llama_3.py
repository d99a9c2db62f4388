"""VideoLLaMA 3, as `transformers/models/video_llama_3/modeling_video_llama_3.py` (5.23) writes it: counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers.clip import VideoLlama3Vision
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("video_llama_3",)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "VideoLlama3ForConditionalGeneration", where=where)
    make = Maker(dtype)
    tower = VideoLlama3Vision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "qwen2")
    tied = ties(config, text, default=False, of_text=True)
    language = text_model(text, tied, dtype, f"{where}: text_config")
    seen, width = tower.hidden_size, language.config.hidden_size
    readout = make.sequence(make.linear(seen, width), None, make.linear(width, width))
    model = MultimodalModel(
        "language_model",
        vision_model=tower.build(make),
        projector=Projector(readout=readout),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
