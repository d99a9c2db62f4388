"""Mistral 3 and LightOnOCR, as `transformers/models/mistral3/modeling_mistral3.py` (5.23) writes it.

Pixtral's tower, a projector that merges neighbouring patches, and Mistral or Qwen3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.llava import feature_layers
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.parts import Parts
from weigh.models.towers import auto_tower
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("mistral3", "lighton_ocr")

VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 1540,
}
MISTRAL = {
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
}
QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
}


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    ocr = config["model_type"] == "lighton_ocr"
    name = "LightOnOcrForConditionalGeneration" if ocr else "Mistral3ForConditionalGeneration"
    check_class(config, name, where=where)
    keys, make = Keys(config, where), Maker(dtype)
    tower = auto_tower(part(config, "vision_config", "pixtral", **VISION), where)
    text = part(config, "text_config", "qwen3", **QWEN3) if ocr else part(config, "text_config", "mistral", **MISTRAL)
    language = text_model(text, ties(config, text, default=True), dtype, f"{where}: text_config")
    seen, width = tower.hidden_size, language.config.hidden_size
    merged = seen * keys.size("spatial_merge_size", default=2) ** 2
    bias = not ocr and keys.flag("multimodal_projector_bias", default=False)
    layers = 1 if ocr else feature_layers(config)
    projector = Projector(
        norm=make.rms_norm(seen),
        patch_merger=Parts(merging_layer=make.linear(merged, seen, bias=False)),
        linear_1=make.linear(seen * layers, width, bias),
        linear_2=make.linear(width, width, bias),
    )
    names = ("vision_encoder", "vision_projection") if ocr else ("vision_tower", "multi_modal_projector")
    parts = {names[0]: tower.build(make), names[1]: projector, "language_model": language.model}
    return ConditionalGeneration(language, MultimodalModel("language_model", **parts))
