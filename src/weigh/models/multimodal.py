"""Models that see or hear: towers and projectors around one of the language models (transformers 5.23).

Run on text alone, such a model is its language model: towers and projectors lie in memory, and are not called. What is
particular to a model is in its own file; what its config nests is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError, NotModelledError
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, CausalOutput, LayerCache, causal_lm_loss, slice_logits_to_keep
from weigh.models.config import HEADER, Keys
from weigh.models.llama import LlamaModel
from weigh.models.parts import Parts

TIED_TEXTS = frozenset({"cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "opt", "smollm3"})
"""Language models whose configs tie their embeddings where they say nothing."""


def check_class(config: Mapping[str, Any], *known: str, where: str) -> None:
    """Raise `NotModelledError` for a config of another class than those that are described."""
    named = config.get("architectures") or []
    if named and named[0] not in known:
        raise NotModelledError(str(named[0]), where=f"{where}: architectures", hint=HEADER)


def part(config: Mapping[str, Any], key: str, model_type: str, **absent: Any) -> dict[str, Any]:
    """The config inside a config, as `SubConfigSpec.create_subconfig` completes it.

    `model_type` is taken where it names none, and `absent` where there is no such config at all.
    """
    found = config.get(key)
    if found is None:
        return {"model_type": model_type, **absent}
    if not isinstance(found, Mapping):
        raise InputError(f"is {found!r}, no object", where=f"config: {key}", hint="Give an object.")
    return {"model_type": model_type, **found}


def ties(config: Mapping[str, Any], text: Mapping[str, Any], default: bool, of_text: bool = False) -> bool:
    """Whether the head is the embedding: the outer config says, and where `of_text` the inner one may, too."""
    tied = Keys(config).flag("tie_word_embeddings", default=default)
    if of_text and not tied:
        return Keys(text).flag("tie_word_embeddings", default=text.get("model_type") in TIED_TEXTS)
    return tied


def text_model(text: Mapping[str, Any], tied: bool, dtype: DType, where: str) -> Any:
    """The `CausalModel` of a `text_config`, with its head.

    Raises:
        UnknownNameError: its `model_type` is not described yet.
    """
    from weigh.models import FAMILIES, unknown_family

    kind = str(text.get("model_type"))
    if kind not in FAMILIES:
        raise unknown_family(kind, where)
    return import_module(FAMILIES[kind]).build({**text, "tie_word_embeddings": tied}, dtype, where)


class MultimodalModel(Parts):
    """Towers, projectors and a language model, in upstream's order and under its names."""

    language: str
    """Upstream's name of the language model."""

    def __init__(self, language: str, **parts: nn.Module | Tensor | None) -> None:
        super().__init__(**parts)
        self.language = language

    @property
    def text(self) -> Any:
        """The language model."""
        return getattr(self, self.language)

    def forward(
        self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Of text alone; `inputs_embeds` is this function's, too."""
        inputs_embeds = self.text.embed_tokens(input_ids)
        hidden_states: Tensor = self.text(input_ids, cache, attention_mask, positions, inputs_embeds)
        return hidden_states


class ConditionalGeneration(CausalModel):
    """A multimodal model whose head stands beside it.

    It runs where the language model is one of Llama's relatives.
    """

    def __init__(self, text: Any, model: MultimodalModel) -> None:
        super().__init__()
        self.config = text.config
        self.cache_layers = text.cache_layers
        self.model = model
        self.lm_head = text.lm_head
        self._text_layout: Callable[[], tuple[LayerCache, ...]] = text.cache_layout
        language = model.text
        kind = type(language)
        related = isinstance(language, LlamaModel) and kind.forward is LlamaModel.forward
        self._runs = related and kind.embed is LlamaModel.embed

    @property
    def runs(self) -> bool:
        """On text alone."""
        return self._runs

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The language model's."""
        return self._text_layout()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.model(input_ids, cache, attention_mask, positions)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None if labels is None else self.loss_function(logits, labels)
        return CausalOutput(logits, loss, cache)

    def loss_function(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Upstream's."""
        return causal_lm_loss(logits, labels, self.config.vocab_size)


class AroundLanguageModel(CausalModel):
    """A multimodal model in which the language model, one of Llama's relatives, stands whole, with its head."""

    language_model: Any

    def __init__(self, name: str, text: Any, /, **parts: nn.Module | Tensor | None) -> None:
        super().__init__()
        self._name = name
        self.config = text.config
        self.cache_layers = text.cache_layers
        self._text_layout: Callable[[], tuple[LayerCache, ...]] = text.cache_layout
        for part_name, made in parts.items():
            setattr(self, part_name, made)

    @property
    def name(self) -> str:
        return self._name

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The language model's."""
        return self._text_layout()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        inputs_embeds = self.language_model.model.embed_tokens(input_ids)

        def language_model() -> Tensor:
            language = self.language_model
            hidden_states = language.model(input_ids, cache, attention_mask, positions, inputs_embeds)
            hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
            return language.scale_logits(language.lm_head(hidden_states))  # type: ignore[no-any-return]

        logits = language_model()
        loss = None if labels is None else causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)
