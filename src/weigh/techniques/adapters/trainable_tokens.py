"""Trainable tokens: a few rows of the embedding are trained, and put into a copy of it for every pass.

Read: peft (0.21), tuners/trainable_tokens/{layer,model}.py. Where the head is tied to the embedding it makes a copy
with the rows of its own, as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import INT64
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableTokens(LayerAdapter):
    """Some rows of the embedding."""

    kind: ClassVar[str] = "trainable_tokens"
    keys: ClassVar[Mapping[str, str]] = {"tokens": "token_indices"}
    takes: ClassVar[tuple[type[Module], ...]] = (nn.Embedding,)

    targets: tuple[str, ...] = ("embed_tokens",)
    tokens: tuple[int, ...] = (0, 1)
    """The numbers of the tokens that are trained."""

    def place(self, model: Module) -> None:
        """Wrap the embedding, and the head that is tied to it."""
        LayerAdapter.place(self, model)
        rows = next(m for m in model.modules() if isinstance(m, TokensEmbedding))
        for parent in list(model.modules()):
            for name, child in list(parent.children()):
                if isinstance(child, nn.Head) and child.weight is rows.weight:
                    setattr(parent, name, TokensHead(child, rows))

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The embedding with its trained rows."""
        return TokensEmbedding(layer, self)


class TokensEmbedding(AdaptedLayer):
    """`TrainableTokensLayer` around the embedding."""

    role = nn.EMBEDDING

    def __init__(self, base_layer: Any, settings: TrainableTokens) -> None:
        super().__init__(base_layer)
        shape = (len(settings.tokens), base_layer.weight.shape[1])
        self.trainable_tokens_delta = nn.parameter(shape, settings.dtype_beside(base_layer))
        self.trainable_tokens_original = nn.buffer(shape, settings.dtype_beside(base_layer))

    def merged(self) -> Tensor:
        """`get_merged_weights`: the whole embedding with the rows put in."""
        weight = self.weight
        index = empty(self.trainable_tokens_delta.shape[:1], INT64, "aten::_to_copy")
        deltas = self.trainable_tokens_delta.to(weight.dtype)
        return ops.index_copy(weight, index, deltas)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.merged()
        return ops.embedding(x, weight)


class TokensHead(AdaptedLayer):
    """`TrainableTokensLayer` around the tied head."""

    role = nn.HEAD

    def __init__(self, base_layer: Any, rows: TokensEmbedding) -> None:
        super().__init__(base_layer)
        self.rows = [rows]  # in a list: it stands elsewhere

    def forward(self, x: Tensor) -> Tensor:
        weight = self.rows[0].merged()
        return ops.linear(x, weight)
