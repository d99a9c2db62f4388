"""Qwen3.5 and its mixture of experts with their tower, as `transformers/models/qwen3_5/modeling_qwen3_5.py` (5.23)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.multimodal import check_class, part, text_model, ties
from weigh.models.qwen2_vl import qwen_vl
from weigh.models.towers.qwen_vl import Qwen35Vision

MODEL_TYPES = ("qwen3_5", "qwen3_5_moe")


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    family = str(config["model_type"])
    moe = family.endswith("moe")
    check_class(config, f"Qwen3_5{'Moe' if moe else ''}ForConditionalGeneration", where=where)
    tower = Qwen35Vision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "") | {"model_type": f"{family}_text"}
    language = text_model(text, ties(config, text, default=False), dtype, f"{where}: text_config")
    return qwen_vl(language, tower, dtype)
