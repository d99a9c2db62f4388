"""Gemma 4 with its eyes and ears, as `transformers/models/gemma4/modeling_gemma4.py` (5.23) writes it.

Either tower may be missing. On text alone it is Gemma 4's language model, whose masks are made outside of it, after
pictures, films and sounds were looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weigh.dtypes import INT64, DType
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, CausalOutput, position_ids, slice_logits_to_keep
from weigh.models.gemma4_text import Gemma4ForCausalLM, Gemma4TextConfig, Gemma4TextModel
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, ties
from weigh.models.towers.gemma4 import Gemma4Audio, Gemma4Vision
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("gemma4",)


class Gemma4MasksOutside(Gemma4TextModel):
    def mask_types(self) -> Iterable[str]:
        """`create_masks_for_generate`: of the layers that there are, in the order of a set."""
        return sorted(set(self.config.layer_types))


class Gemma4Language(Gemma4ForCausalLM):
    model_class = Gemma4MasksOutside


class Gemma4Model(MultimodalModel):
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        logits_to_keep: int,
    ) -> Tensor:
        image_mask, video_mask, audio_mask = (ops.equal_to(input_ids) for _ in range(3))
        multimodal_mask = ops.logical_or(ops.logical_or(image_mask, video_mask), audio_mask)
        llm_input_ids = ops.clone(input_ids)
        llm_input_ids = ops.where(multimodal_mask, ops.full((), INT64), llm_input_ids)
        inputs_embeds = self.text.embed_tokens(llm_input_ids)
        per_layer_inputs = pad_embedding = llm_inputs_embeds = None
        if self.text.config.hidden_size_per_layer_input:
            pad_embedding = ops.select(self.text.embed_tokens.weight, 0)
            llm_inputs_embeds = ops.where(multimodal_mask.unsqueeze(-1), pad_embedding.view(1, 1, -1), inputs_embeds)
            per_layer_inputs = self.text.get_per_layer_inputs(llm_input_ids)
        if positions is None:
            positions = position_ids(inputs_embeds.shape[1], cache)
        causal_mask_mapping = self.text.causal_mask_mapping(inputs_embeds, cache, positions, attention_mask)
        hidden_states: Tensor = self.text(
            *(input_ids, cache, attention_mask, positions, logits_to_keep),
            *(inputs_embeds, per_layer_inputs, causal_mask_mapping),
        )
        del llm_inputs_embeds
        return hidden_states


class Gemma4ForConditionalGeneration(ConditionalGeneration):
    def __init__(self, text: Gemma4Language, model: Gemma4Model) -> None:
        super().__init__(text, model)
        self.final_logit_softcapping = text.final_logit_softcapping

    @property
    def runs(self) -> bool:
        """On text alone."""
        return True

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.model(input_ids, cache, attention_mask, positions, logits_to_keep)
        if hidden_states.shape[1] == input_ids.shape[1]:
            hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = Gemma4Language.scale_logits(self, self.lm_head(hidden_states))  # type: ignore[arg-type]
        loss = None if labels is None else self.loss_function(logits, labels)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Gemma4ForConditionalGeneration", where=where)
    make = Maker(dtype)
    text = part(config, "text_config", "gemma4_text")
    settings = {**text, "tie_word_embeddings": ties(config, text, default=True)}
    language = Gemma4Language(Gemma4TextConfig.read(settings, f"{where}: text_config"), dtype)
    towers, projectors = {}, {}
    width = language.config.hidden_size
    if config.get("vision_config") is not None:
        seeing = Gemma4Vision.read(part(config, "vision_config", "gemma4_vision"), f"{where}: vision_config")
        towers["vision_tower"] = seeing.build(make)
        projector = make.linear(seeing.hidden_size, width, bias=False)
        projectors["embed_vision"] = Projector(embedding_projection=projector)
    towers["language_model"] = language.model
    if config.get("audio_config") is not None:
        hearing = Gemma4Audio.read(part(config, "audio_config", "gemma4_audio"), f"{where}: audio_config")
        towers["audio_tower"] = hearing.build(make)
        projector = make.linear(hearing.output_proj_dims, width, bias=False)
        projectors["embed_audio"] = Projector(embedding_projection=projector)
    return Gemma4ForConditionalGeneration(language, Gemma4Model("language_model", **towers, **projectors))
