"""Gemma 3 with its eyes, as `transformers/models/gemma3/modeling_gemma3.py` (5.23) writes it.

On text alone it is Gemma 3's language model; the masks are made outside of it, only for the types of layers that there
are, and an image's token that lies beyond the vocabulary is looked for first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Keys
from weigh.models.gemma3_text import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, ties
from weigh.models.towers import auto_tower
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("gemma3",)


class Gemma3LanguageModel(Gemma3TextModel):
    def mask_types(self) -> Iterable[str]:
        """`create_masks_for_generate`: of the layers that there are, in the order of a set."""
        return sorted(set(self.config.layer_types))


class Gemma3Language(Gemma3ForCausalLM):
    model_class = Gemma3LanguageModel


class Gemma3Model(MultimodalModel):
    def __init__(self, replaces_image_token: bool, **parts: nn.Module) -> None:
        super().__init__("language_model", **parts)
        self.replaces_image_token = replaces_image_token

    def look_for_images(self, input_ids: Tensor) -> tuple[Tensor | None, Tensor]:
        """Where images stand, and the ids without their token, where that lies beyond the vocabulary."""
        if self.replaces_image_token:
            return ops.equal_to(input_ids), ops.clone(input_ids)
        return None, input_ids

    def forward(
        self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        special_image_mask, llm_input_ids = self.look_for_images(input_ids)
        inputs_embeds = self.text.embed_tokens(llm_input_ids)
        causal_mask_mapping = self.text.causal_mask_mapping(inputs_embeds, cache, positions, attention_mask)
        hidden_states: Tensor = self.text(
            input_ids, cache, attention_mask, positions, inputs_embeds, causal_mask_mapping
        )
        del special_image_mask
        return hidden_states


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Gemma3ForConditionalGeneration", where=where)
    make = Maker(dtype)
    tower = auto_tower(part(config, "vision_config", "siglip_vision_model"), where)
    text = part(config, "text_config", "gemma3_text")
    tied = ties(config, text, default=True)
    settings = Gemma3TextConfig.read({**text, "tie_word_embeddings": tied}, f"{where}: text_config")
    language = Gemma3Language(settings, dtype)
    image_token = Keys(config, where).size("image_token_index", "image_token_id", default=262_144)
    model = Gemma3Model(
        image_token >= settings.vocab_size,
        vision_tower=tower.build(make),
        multi_modal_projector=Projector(
            mm_input_projection_weight=make.tensor(tower.hidden_size, settings.hidden_size),
            mm_soft_emb_norm=make.rms_norm(tower.hidden_size),
        ),
        language_model=language.model,
    )
    return ConditionalGeneration(language, model)
