"""Towers: what sees or hears in a multimodal model, by the `model_type` that `AutoModel` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.models.towers.clip import ClipVision, Idefics2Vision, Idefics3Vision, Siglip2Vision, SiglipVision
from weigh.models.towers.internvl import InternVLVision
from weigh.models.towers.parts import Tower, read_tower
from weigh.models.towers.pixtral import PixtralVision
from weigh.models.towers.qwen_vl import Qwen2VLVision, Qwen3VLVision, Qwen25VLVision

TOWERS: dict[str, type[Tower]] = {
    "clip_vision_model": ClipVision,
    "idefics2_vision": Idefics2Vision,
    "idefics3_vision": Idefics3Vision,
    "internvl_vision": InternVLVision,
    "pixtral": PixtralVision,
    "qwen2_5_vl_vision": Qwen25VLVision,
    "qwen2_vl_vision": Qwen2VLVision,
    "qwen3_vl_moe_vision": Qwen3VLVision,
    "qwen3_vl_vision": Qwen3VLVision,
    "siglip2_vision_model": Siglip2Vision,
    "siglip_vision_model": SiglipVision,
    "smolvlm_vision": Idefics3Vision,
}
"""`model_type` -> the tower."""


def auto_tower(config: Mapping[str, Any], where: str) -> Tower:
    """`AutoModel.from_config`. Raises `UnknownNameError` for a `model_type` that has no tower here."""
    return read_tower(TOWERS, config, f"{where}: vision_config")
