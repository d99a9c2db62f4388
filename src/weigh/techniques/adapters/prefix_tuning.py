"""Prefix tuning: keys and values before those of the tokens, in every layer.

Read: peft (0.21), peft_model.py (`get_prompt`), tuners/prefix_tuning/model.py, utils/other.py
(`_prepare_prompt_learning_config`). They come as a cache that each layer's keys and values are put behind, which
copies these. peft refuses it beside checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor, empty
from weigh.models.cache import Cache
from weigh.models.layout import FULL
from weigh.records import dataclass
from weigh.techniques.adapters.prompts import PromptLearning


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTuning(PromptLearning):
    """A cache that is trained, or made by a small network."""

    kind: ClassVar[str] = "prefix_tuning"
    keys: ClassVar[Mapping[str, str]] = {
        **PromptLearning.keys,
        "projection": "prefix_projection",
        "hidden": "encoder_hidden_size",
    }

    projection: bool = False
    """The cache is made by a network of two layers."""
    hidden: int | None = None
    """Width of the network; None is the model's."""

    @property
    def uneven(self) -> bool:
        """All layers' keys and values are made at once."""
        return True

    def check(self, checkpointed: bool, shared_sequence: bool) -> None:
        """Peft refuses it beside checkpoints, whose second run would fill the cache again."""
        if checkpointed:
            hint = "Leave the checkpoints out."
            raise UsageError("prefix tuning does not work with checkpoints", where="checkpointing", hint=hint)
        PromptLearning.check(self, checkpointed, shared_sequence)

    def place(self, model: Any) -> None:
        """Make a cache of what is trained, and give it to the model."""
        layout = {(layer.kind, layer.heads, layer.key_width, layer.value_width) for layer in model.cache_layout()}
        if len(layout) != 1 or next(iter(layout))[0] != FULL or model.encoder_decoder:
            raise NotModelledError("prefix tuning of layers that keep different things", where="adapter")
        PromptLearning.place(self, model)

    def encoder(self, embedding: nn.Embedding) -> Module:
        """Made in `around`, which knows the layers."""
        return Module()

    def around(self, model: Any, embedding: nn.Embedding) -> Callable[..., Any]:
        """`PeftModelForCausalLM.forward`."""
        layers = model.cache_layout()
        heads, width = layers[0].heads, layers[0].key_width
        attentions = [m.path for m in model.modules() if m.role == nn.ATTENTION]
        model.prompt_encoder = PrefixEncoder(self, heads * width, len(layers))

        def forward(base: Callable[..., Any], input_ids: Tensor, labels: Tensor) -> Any:
            past_key_values = get_prompt(input_ids.shape[0])
            return base(input_ids, labels, past_key_values)

        def get_prompt(batch: Size) -> Cache:
            prompt_tokens = empty((batch, self.virtual_tokens), INT64, "aten::_to_copy")
            past_key_values = model.prompt_encoder(prompt_tokens)
            past_key_values = past_key_values.to(embedding.weight.dtype)
            past_key_values = past_key_values.view(batch, self.virtual_tokens, len(layers) * 2, heads, width)
            parts = past_key_values.permute(2, 0, 3, 1, 4).split(2)
            cache = Cache()
            for path, part in zip(attentions, parts, strict=True):
                keys, values = ops.unbind(part.narrow(0, 2))
                cache.update(keys, values, path)
            cache.advance(self.virtual_tokens)
            return cache

        return forward


class PrefixEncoder(Module):
    """A table, and perhaps a network over it."""

    def __init__(self, settings: PrefixTuning, width: Size, layers: int) -> None:
        super().__init__()
        self.projects = settings.projection
        if self.projects:
            self.embedding = nn.Embedding(settings.virtual_tokens, width, FLOAT32)
            self.first = nn.Linear(width, settings.hidden or width, FLOAT32, bias=True)
            self.second = nn.Linear(settings.hidden or width, layers * 2 * width, FLOAT32, bias=True)
        else:
            self.embedding = nn.Embedding(settings.virtual_tokens, layers * 2 * width, FLOAT32)

    def forward(self, prefix: Tensor) -> Tensor:
        if not self.projects:
            return self.embedding(prefix)  # type: ignore[no-any-return]
        prefix_tokens = self.embedding(prefix)
        return self._transform(prefix_tokens)

    def _transform(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = ops.tanh(x)
        return self.second(x)  # type: ignore[no-any-return]
