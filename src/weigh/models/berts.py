"""What BERT's relatives share that are counted and not run: each file says what it adds, leaves out or moves.

Shapes and names are those of `transformers/models/*/modeling_*.py` (5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.bert import BertConfig, BertEmbeddings, BertLayer, BertOnlyMLMHead
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys, architecture
from weigh.models.parts import AttentionParts, Counted, Make, MlpParts, Parts
from weigh.models.roberta import RobertaEmbeddings, RobertaLMHead
from weigh.records import dataclass


@dataclass(frozen=True)
class EncoderConfig(BertConfig):
    """The settings of a counted relative; the defaults are BERT's."""

    prefix: ClassVar[str]
    """Of upstream's class names."""
    classes: ClassVar[tuple[str, ...]] = ("ForMaskedLM", "ForCausalLM")
    """Their ends."""
    base: ClassVar[str]
    """What upstream calls the model below the head."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        keys.refuse("add_cross_attention", f"{cls.prefix} with cross-attention")


def change(module: Module, *without: str, **parts: Module | Tensor | None) -> Module:
    """A module without some of its parts, and with others."""
    for name in without:
        delattr(module, name)
    module.__dict__.update({name: part for name, part in parts.items() if part is not None})
    return module


Layer = Callable[[int], Module]


def encoder_of(config: BertConfig, base: str, layer: Layer, **more: Module | Tensor | None) -> Parts:
    """A stack of layers, and what stands beside it."""
    return Parts(layer=nn.Stack(f"{base}.encoder.layer", config.num_hidden_layers, layer), **more)


@dataclass(frozen=True)
class Draft:
    """What the functions below work with: a config, its dtype, and the usual parts of them."""

    config: Any
    dtype: DType
    make: Make

    @property
    def width(self) -> int:
        """Of the layers."""
        return self.config.hidden_size  # type: ignore[no-any-return]

    def layer(self, _: int = 0) -> Any:
        """BERT's layer."""
        return BertLayer(self.config, self.dtype)

    def embeddings(self) -> Any:
        """BERT's embeddings."""
        return BertEmbeddings(self.config, self.dtype)

    def roberta_embeddings(self) -> Any:
        """RoBERTa's embeddings."""
        return RobertaEmbeddings(self.config, self.dtype)

    def cls(self, embeddings: Any) -> Module:
        """BERT's head."""
        return BertOnlyMLMHead(self.config, embeddings.word_embeddings, self.dtype)

    def lm_head(self, embeddings: Any) -> Module:
        """RoBERTa's head."""
        return RobertaLMHead(self.config, embeddings.word_embeddings, self.dtype)

    def attention(self, **more: Module | Tensor | None) -> AttentionParts:
        """Queries, keys and values, an output without a norm, and what else there is."""
        inside = Parts(**self.make.linears(self.width, self.width, "query", "key", "value"))
        return AttentionParts(self=inside, output=Parts(dense=self.make.linear(self.width, self.width)), **more)

    def mlp(self, **intermediate: Module) -> dict[str, Module]:
        """An MLP without norms, or with those that stand in its first half."""
        inner = self.config.intermediate_size
        return {
            "intermediate": MlpParts(**intermediate, dense=self.make.linear(self.width, inner)),
            "output": MlpParts(dense=self.make.linear(inner, self.width)),
        }

    def finish(self, name: str, model: Module, **head: Module) -> CausalModel:
        """The model and its head."""
        config = self.config
        heads = config.num_attention_heads
        own = LayerCache(layout.FULL, heads, self.width // heads, self.width // heads)
        kept = (own,) * config.num_hidden_layers if config.is_decoder else ()
        return Counted(name, kept, **{config.base: model}, **head)


Describe = Callable[[Draft, str], CausalModel]
Build = Callable[[Mapping[str, Any], DType, str], CausalModel]


def counted(settings: type[EncoderConfig] | Mapping[str, type[EncoderConfig]], describe: Describe) -> Build:
    """The `build` of a family: its settings, or those of each `model_type`, read and described."""

    def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
        """The model of a `config.json`, every parameter in `dtype`."""
        kind = settings[config["model_type"]] if isinstance(settings, Mapping) else settings
        name = architecture(config, tuple(kind.prefix + end for end in kind.classes), where)
        return describe(Draft(kind.read(config, where), dtype, Make(dtype)), name)

    return build


def two_more_positions(d: Draft, embeddings: Any) -> None:
    """A table with two rows that no position has."""
    embeddings.position_embeddings = d.make.embedding(d.config.max_position_embeddings + 2, d.width)
