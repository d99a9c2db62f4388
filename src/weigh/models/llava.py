"""LLaVA and its relatives, as `transformers/models/llava/modeling_llava.py` (5.23) writes it: a tower, an MLP, a text.

LLaVA-NeXT and LLaVA-OneVision add a newline for pictures; VipLLaVA looks at five layers of its tower, Video-LLaVA has
two towers, PaliGemma a projector of one layer.
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

MODEL_TYPES = ("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava")

CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_next_video": "LlavaNextVideoForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "video_llava": "VideoLlavaForConditionalGeneration",
    "vipllava": "VipLlavaForConditionalGeneration",
}
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
TIED_BY_TEXT = ("llava", "llava_next_video", "llava_onevision")


def feature_layers(config: Mapping[str, Any], default: int = 1) -> int:
    """How many of the tower's layers the projector sees."""
    layers = config.get("vision_feature_layer", config.get("vision_feature_layers"))
    return default if layers is None else len(layers) if isinstance(layers, list | tuple) else 1


def llava_projector(make: Maker, seen: int, width: int, bias: bool, norm: bool = False) -> Projector:
    """`LlavaMultiModalProjector`; with a norm, `VipLlavaMultiModalProjector`."""
    return Projector(
        projector_layernorm=make.layer_norm(seen) if norm else None,
        linear_1=make.linear(seen, width, bias),
        linear_2=make.linear(width, width, bias),
    )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    family = str(config["model_type"])
    check_class(config, CLASSES[family], where=where)
    keys, make = Keys(config, where), Maker(dtype)
    absent = {**CLIP_LARGE, "image_size": 224} if family == "video_llava" else CLIP_LARGE
    if family == "llava_onevision":
        vision = part(config, "vision_config", "siglip_vision_model", **SIGLIP_SO400M)
    else:
        vision = part(config, "vision_config", "clip_vision_model", **absent)
    tower = auto_tower(vision, where)
    text = part(config, "text_config", "qwen2" if family == "llava_onevision" else "llama")
    tied = ties(config, text, default=False, of_text=family in TIED_BY_TEXT)
    language = text_model(text, tied, dtype, f"{where}: text_config")
    width = language.config.hidden_size
    many = feature_layers(config, default=5 if family == "vipllava" else 1)
    bias = keys.flag("multimodal_projector_bias", default=True) if family != "vipllava" else True
    parts: dict[str, Any] = {}
    if family in ("llava_next", "llava_next_video", "llava_onevision"):
        parts["image_newline"] = make.tensor(width)
    if family == "video_llava":
        parts |= {"video_tower": tower.build(make), "image_tower": tower.build(make)}
    else:
        parts["vision_tower"] = tower.build(make)
    parts["multi_modal_projector"] = llava_projector(
        make, many * tower.hidden_size, width, bias, norm=family == "vipllava"
    )
    parts["language_model"] = language.model
    return ConditionalGeneration(language, MultimodalModel("language_model", **parts))
