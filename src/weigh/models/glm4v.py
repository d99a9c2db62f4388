"""GLM-4.1V, GLM-4.6V and GLM-4.5V, as `transformers/models/glm4v/modeling_glm4v.py` (5.23) writes it: counted.

GLM-4 or its mixture of experts, whose queries, keys and values have a bias, and a tower that shrinks its grid with a
convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, ROPE_TYPES, Keys
from weigh.models.glm import GlmAttention, GlmConfig
from weigh.models.glm4 import Glm4DecoderLayer, Glm4ForCausalLM, Glm4Model
from weigh.models.glm4_moe import Glm4MoeConfig, Glm4MoeForCausalLM
from weigh.models.llama import DecoderConfig
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, ties
from weigh.models.towers.parts import Maker
from weigh.models.towers.qwen_vl import Glm4vVision

MODEL_TYPES = ("glm46v", "glm4v", "glm4v_moe")

CLASSES = {
    "glm46v": "Glm46VForConditionalGeneration",
    "glm4v": "Glm4vForConditionalGeneration",
    "glm4v_moe": "Glm4vMoeForConditionalGeneration",
}


@dataclass(frozen=True)
class Glm4vTextConfig(GlmConfig):
    """The settings of `Glm4vTextConfig` that shape memory."""

    intermediate_size: int = 13696
    head_dim: int = DERIVED

    rope_types = (*ROPE_TYPES, "mrope")

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """All of a head is rotated, if the config does not say less."""
        super().settle(keys, found)
        found["rotary_width"] = keys.rotary_width(found["head_dim"])


@dataclass(frozen=True)
class Glm4vMoeTextConfig(Glm4MoeConfig):
    """The settings of `Glm4vMoeTextConfig` that shape memory."""

    vocab_size: int = 151424
    attention_bias: bool = True

    rope_types = (*ROPE_TYPES, "mrope")


class Glm4vTextAttention(GlmAttention):
    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return True, False


class Glm4vTextDecoderLayer(Glm4DecoderLayer):
    attention_class = Glm4vTextAttention


class Glm4vTextModel(Glm4Model):
    layer_class = Glm4vTextDecoderLayer


class Glm4vText(Glm4ForCausalLM):
    model_class = Glm4vTextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    family = str(config["model_type"])
    check_class(config, CLASSES[family], where=where)
    tower = Glm4vVision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "")
    text["tie_word_embeddings"] = ties(config, text, default=False, of_text=family != "glm46v")
    inner = f"{where}: text_config"
    language: Any
    if family == "glm4v_moe":
        language = Glm4MoeForCausalLM(Glm4vMoeTextConfig.read(text, inner), dtype)
    else:
        language = Glm4vText(Glm4vTextConfig.read(text, inner), dtype)
    visual = tower.build(Maker(dtype))
    return ConditionalGeneration(
        language, MultimodalModel("language_model", visual=visual, language_model=language.model)
    )
