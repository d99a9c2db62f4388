"""InternVL and Qianfan-OCR, as `transformers/models/internvl/modeling_internvl.py` (5.23) writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers.internvl import InternVLVision, QianfanVision
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("internvl", "qianfan_ocr")


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    ocr = config["model_type"] == "qianfan_ocr"
    check_class(config, f"{'QianfanOCR' if ocr else 'InternVL'}ForConditionalGeneration", where=where)
    keys, make = Keys(config, where), Maker(dtype)
    kind = QianfanVision if ocr else InternVLVision
    tower = kind.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "qwen3" if ocr else "qwen2")
    language = text_model(text, ties(config, text, default=not ocr), dtype, f"{where}: text_config")
    width = language.config.hidden_size
    ratio = keys.number("downsample_ratio") if "downsample_ratio" in config else 0.5
    seen = tower.hidden_size * int(1 / ratio) ** 2
    model = MultimodalModel(
        "language_model",
        vision_tower=tower.build(make),
        multi_modal_projector=Projector(
            layer_norm=make.layer_norm(seen), linear_1=make.linear(seen, width), linear_2=make.linear(width, width)
        ),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
