"""PaliGemma, as `transformers/models/paligemma/modeling_paligemma.py` (5.23) writes it: counted.

A SigLIP tower without its head, one linear layer, and Gemma, which reads the prompt in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, position_ids
from weigh.models.config import Keys
from weigh.models.gemma3 import Gemma3Model
from weigh.models.multimodal import ConditionalGeneration, check_class, part, text_model, ties
from weigh.models.towers import auto_tower
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("paligemma",)

VISION = {
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
TEXT = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}


class PaliGemmaModel(Gemma3Model):
    def forward(
        self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Of text alone: as Gemma 3, with positions that begin at one."""
        special_image_mask, llm_input_ids = self.look_for_images(input_ids)
        inputs_embeds = self.text.embed_tokens(llm_input_ids)
        if positions is None:
            positions = position_ids(inputs_embeds.shape[1], cache) + 1
        causal_mask_mapping = self.text.causal_mask_mapping(inputs_embeds, cache, positions, attention_mask)
        hidden_states: Tensor = self.text(
            input_ids, cache, attention_mask, positions, inputs_embeds, causal_mask_mapping
        )
        del special_image_mask
        return hidden_states


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "PaliGemmaForConditionalGeneration", where=where)
    make = Maker(dtype)
    tower = auto_tower(part(config, "vision_config", "siglip_vision_model", **VISION), where)
    text = part(config, "text_config", "gemma", **TEXT)
    language = text_model(text, ties(config, text, default=True), dtype, f"{where}: text_config")
    width = Keys(config, where).size("projection_dim", default=2048)
    image_token = Keys(config, where).size("image_token_index", "image_token_id", default=256_000)
    model = PaliGemmaModel(
        image_token >= language.config.vocab_size,
        vision_tower=tower.build(make),
        multi_modal_projector=Projector(linear=make.linear(tower.hidden_size, width)),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
