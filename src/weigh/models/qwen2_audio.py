"""Qwen2-Audio, Voxtral and Audio Flamingo 3, as `transformers/models/qwen2_audio/modeling_qwen2_audio.py` (5.23).

Counted: Whisper's encoder, a projector of one or two layers, and Qwen2 or Llama, whose head is never the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, token_loss
from weigh.models.config import Keys
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model
from weigh.models.towers.parts import Maker, Projector
from weigh.models.towers.whisper import WhisperAudio

MODEL_TYPES = ("audioflamingo3", "qwen2_audio", "voxtral")

CLASSES = {
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "voxtral": "VoxtralForConditionalGeneration",
}
VOXTRAL = {
    "vocab_size": 131072,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


class Qwen2AudioGeneration(ConditionalGeneration):
    def loss_function(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the logits that have a label, in their own dtype."""
        before = logits.shape[1] - 1
        shift_logits = logits.narrow(1, before).contiguous()
        shift_labels = labels.narrow(-1, before).contiguous()
        return token_loss(shift_logits, shift_labels)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    family = str(config["model_type"])
    check_class(config, CLASSES[family], where=where)
    make = Maker(dtype)
    tower = WhisperAudio.read(part(config, "audio_config", ""), f"{where}: audio_config")
    text = part(config, "text_config", "llama" if family == "voxtral" else "qwen2")
    if family == "voxtral":
        text = VOXTRAL | text
    language = text_model(text, False, dtype, f"{where}: text_config")
    seen, width = tower.hidden_size, language.config.hidden_size
    if family == "qwen2_audio":
        projector = Projector(linear=make.linear(seen, width))
    elif family == "voxtral":
        linear = make.linear(tower.intermediate_size, width, bias=False)
        projector = Projector(linear_1=linear, linear_2=make.linear(width, width, bias=False))
    else:
        bias = Keys(config, where).flag("projector_bias", default=True)
        projector = Projector(linear_1=make.linear(seen, width, bias), linear_2=make.linear(width, width, bias))
    audio, inner = tower.build(make), language.model
    if family == "qwen2_audio":
        model = MultimodalModel(
            "language_model", audio_tower=audio, multi_modal_projector=projector, language_model=inner
        )
    else:
        model = MultimodalModel(
            "language_model", audio_tower=audio, language_model=inner, multi_modal_projector=projector
        )
    return (Qwen2AudioGeneration if family == "qwen2_audio" else ConditionalGeneration)(language, model)
