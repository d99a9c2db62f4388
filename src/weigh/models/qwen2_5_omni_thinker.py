"""The thinker of Qwen2.5-Omni, as `transformers/models/qwen2_5_omni/modeling_qwen2_5_omni.py` (5.23).

Counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Count
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, ties
from weigh.models.qwen2_vl import Qwen2VLText, Qwen2VLTextConfig
from weigh.models.towers.parts import Maker
from weigh.models.towers.qwen_vl import OmniVision
from weigh.models.towers.whisper import OmniAudio
from weigh.records import dataclass

MODEL_TYPES = ("qwen2_5_omni_thinker",)


@dataclass(frozen=True)
class Qwen2_5OmniTextConfig(Qwen2VLTextConfig):  # noqa: N801  upstream's name
    """The settings of `Qwen2_5OmniTextConfig` that shape memory."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    sliding_window: int | None = 32768
    max_window_layers: Count = 28


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Qwen2_5OmniThinkerForConditionalGeneration", where=where)
    make = Maker(dtype)
    audio = OmniAudio.read(part(config, "audio_config", ""), f"{where}: audio_config")
    vision = OmniVision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "")
    text["tie_word_embeddings"] = ties(config, text, default=False)
    language = Qwen2VLText(Qwen2_5OmniTextConfig.read(text, f"{where}: text_config"), dtype)
    model = MultimodalModel(
        "language_model", audio_tower=audio.build(make), visual=vision.build(make), language_model=language.model
    )
    return ConditionalGeneration(language, model)
