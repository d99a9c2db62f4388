"""EXAONE 4.5, as `transformers/models/exaone4_5/modeling_exaone4_5.py` (5.23) writes it.

EXAONE 4 with a tower: counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, position_ids
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers.parts import Maker
from weigh.models.towers.qwen_vl import Exaone45Vision

MODEL_TYPES = ("exaone4_5",)


class Exaone45Model(MultimodalModel):
    def forward(
        self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Of text alone, whose positions are made outside of the language model."""
        inputs_embeds = self.text.embed_tokens(input_ids)
        if positions is None:
            positions = position_ids(inputs_embeds.shape[1], cache)
        hidden_states: Tensor = self.text(input_ids, cache, attention_mask, positions, inputs_embeds)
        return hidden_states


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Exaone4_5_ForConditionalGeneration", where=where)
    tower = Exaone45Vision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "exaone4")
    if text["model_type"] == "exaone4_5_text":
        text["model_type"] = "exaone4"
    language = text_model(text, ties(config, text, default=False), dtype, f"{where}: text_config")
    model = Exaone45Model(
        "language_model",
        visual=tower.build(Maker(dtype)),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
