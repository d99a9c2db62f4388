"""GLM-4.1V, GLM-4.6V and GLM-4.5V, as `transformers/models/glm4v/modeling_glm4v.py` (5.23) writes it.

GLM-4 or its mixture of experts, whose queries, keys and values have a bias, and a tower that shrinks its grid with a
convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.glm import GlmAttention, GlmConfig, turn_neighbours
from weigh.models.glm4 import Glm4DecoderLayer, Glm4ForCausalLM, Glm4Model
from weigh.models.glm4_moe import Glm4MoeConfig, Glm4MoeForCausalLM, Glm4MoeModel
from weigh.models.llama import DecoderConfig
from weigh.models.multimodal import check_class, part, ties
from weigh.models.qwen2_vl import (
    MROPE_TYPES,
    ProjectsFirst,
    ThreePositions,
    ThreeRotaryEmbedding,
    qwen_vl,
    settle_mrope,
)
from weigh.models.towers.qwen_vl import Glm4vVision
from weigh.records import dataclass

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
    mrope_section: tuple[int, ...] = (8, 12, 12)

    rope_types = MROPE_TYPES

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """All of a head is rotated, if the config does not say less."""
        super().settle(keys, found)
        found["rotary_width"] = keys.rotary_width(found["head_dim"])
        settle_mrope(keys, found, "rotary_width")


@dataclass(frozen=True)
class Glm4vMoeTextConfig(Glm4MoeConfig):
    """The settings of `Glm4vMoeTextConfig` that shape memory."""

    vocab_size: int = 151424
    attention_bias: bool = True
    mrope_section: tuple[int, ...] = (8, 12, 12)

    rope_types = MROPE_TYPES

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """How many frequencies belong to time, height and width."""
        super().settle(keys, found)
        settle_mrope(keys, found, "rotary_width")


class Glm4vRotaryEmbedding(ThreeRotaryEmbedding):
    def __init__(self, config: Any) -> None:
        super().__init__(config.rotary_width)
        self.mrope_section = list(config.mrope_section)

    def recomposition_frequencies(self, freq: Tensor) -> Tensor:
        """Neighbouring dimensions turn together."""
        freq = ops.cat([ops.select(m, 0) for m in freq.split(self.mrope_section, -1)], -1)
        return ops.repeat_along(freq, freq.ndim - 1, 2)


class Glm4vMoeRotaryEmbedding(Glm4vRotaryEmbedding):
    def recomposition_frequencies(self, freq: Tensor) -> Tensor:
        """The two halves of the rotated width turn together."""
        freq = ops.cat([ops.select(m, 0) for m in freq.split(self.mrope_section, -1)], -1)
        return ops.cat([freq, freq], -1)


class Glm4vTextAttention(ProjectsFirst, GlmAttention):
    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return True, False

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Neighbours, by cosines and sines that stand for each."""
        cos, sin = position_embeddings
        return turn_neighbours(query, key, cos.unsqueeze(1), sin.unsqueeze(1))


class Glm4vTextDecoderLayer(Glm4DecoderLayer):
    attention_class = Glm4vTextAttention


class Glm4vTextModel(ThreePositions, Glm4Model):
    layer_class = Glm4vTextDecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """Of three positions."""
        return Glm4vRotaryEmbedding(config)


class Glm4vMoeTextModel(ThreePositions, Glm4MoeModel):
    def rotary(self, config: Any) -> nn.Module:
        """Of three positions."""
        return Glm4vMoeRotaryEmbedding(config)

    def pass_on(self, text_positions: Tensor | None, positions: Tensor) -> Tensor | None:
        """Those that are rotated."""
        return positions


class Glm4vText(Glm4ForCausalLM):
    model_class = Glm4vTextModel


class Glm4vMoeText(Glm4MoeForCausalLM):
    model_class = Glm4vMoeTextModel


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
        language = Glm4vMoeText(Glm4vMoeTextConfig.read(text, inner), dtype)
    else:
        language = Glm4vText(Glm4vTextConfig.read(text, inner), dtype)
    return qwen_vl(language, tower, dtype)
