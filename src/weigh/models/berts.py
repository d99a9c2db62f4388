"""BERT's relatives that are counted and not run: its parts, with what each of them adds, leaves out or puts elsewhere.

Shapes and names are those of `transformers/models/*/modeling_*.py` (5.23); a function describes a `model_type`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.bert import BertConfig, BertEmbeddings, BertLayer, BertOnlyMLMHead, BertPooler
from weigh.models.common import CausalModel, LayerCache, ModuleList
from weigh.models.config import Keys, architecture
from weigh.models.parts import AttentionParts, BlockParts, Counted, HeadParts, Make, MlpParts, Parts, positions
from weigh.models.roberta import RobertaEmbeddings, RobertaLMHead


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


def _change(module: Module, *without: str, **parts: Module | Tensor | None) -> Module:
    """A module without some of its parts, and with others."""
    for name in without:
        delattr(module, name)
    module.__dict__.update({name: part for name, part in parts.items() if part is not None})
    return module


Layer = Callable[[int], Module]


def _encoder(config: BertConfig, base: str, layer: Layer, **more: Module | Tensor | None) -> Parts:
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
_KNOWN: dict[str, tuple[type[EncoderConfig], Describe]] = {}


def _describes(model_type: str, settings: type[EncoderConfig]) -> Callable[[Describe], Describe]:
    def enter(describe: Describe) -> Describe:
        _KNOWN[model_type] = settings, describe
        return describe

    return enter


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    settings, describe = _KNOWN[config["model_type"]]
    name = architecture(config, tuple(settings.prefix + end for end in settings.classes), where)
    return describe(Draft(settings.read(config, where), dtype, Make(dtype)), name)


# -- norms before instead of after -----------------------------------------------------------------
@dataclass(frozen=True)
class RobertaPreLayerNormConfig(EncoderConfig):
    vocab_size: int = 50265

    prefix = "RobertaPreLayerNorm"
    base = "roberta_prelayernorm"


@_describes("roberta-prelayernorm", RobertaPreLayerNormConfig)
def _roberta_prelayernorm(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        attention = d.attention(LayerNorm=d.make.norm(d.width))
        return BlockParts(attention=attention, **d.mlp(LayerNorm=d.make.norm(d.width)))

    embeddings = d.roberta_embeddings()
    encoder = _encoder(d.config, d.config.base, layer)
    model = Parts(embeddings=embeddings, encoder=encoder, LayerNorm=d.make.norm(d.width))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


@dataclass(frozen=True)
class XLMRobertaXLConfig(EncoderConfig):
    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    max_position_embeddings: int = 514
    type_vocab_size: int = 1

    prefix = "XLMRobertaXL"
    base = "roberta"


@_describes("xlm-roberta-xl", XLMRobertaXLConfig)
def _xlm_roberta_xl(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        attention = d.attention(self_attn_layer_norm=d.make.norm(d.width))
        return BlockParts(attention=attention, **d.mlp(), LayerNorm=d.make.norm(d.width))

    embeddings = _change(d.roberta_embeddings(), "LayerNorm")
    encoder = _encoder(d.config, d.config.base, layer, LayerNorm=d.make.norm(d.width))
    return d.finish(name, Parts(embeddings=embeddings, encoder=encoder), lm_head=d.lm_head(embeddings))


@dataclass(frozen=True)
class MegatronBertConfig(EncoderConfig):
    vocab_size: int = 29056
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096

    prefix = "MegatronBert"
    base = "bert"


@_describes("megatron-bert", MegatronBertConfig)
def _megatron_bert(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        return BlockParts(attention=d.attention(ln=d.make.norm(d.width)), **d.mlp(), ln=d.make.norm(d.width))

    embeddings = _change(d.embeddings(), "LayerNorm", "token_type_ids")
    encoder = _encoder(d.config, d.config.base, layer, ln=d.make.norm(d.width))
    return d.finish(name, Parts(embeddings=embeddings, encoder=encoder), cls=d.cls(embeddings))


# -- more in the attention or the MLP --------------------------------------------------------------
@dataclass(frozen=True)
class XmodConfig(EncoderConfig):
    adapter_reduction_factor: int = 2
    adapter_layer_norm: bool = False
    languages: tuple[str, ...] = ("en_XX",)

    prefix = "Xmod"
    base = "roberta"


@_describes("xmod", XmodConfig)
def _xmod(d: Draft, name: str) -> CausalModel:
    config, narrow = d.config, d.width // d.config.adapter_reduction_factor

    def layer(_: int) -> Module:
        block = d.layer()
        adapters = {
            language: Parts(dense1=d.make.linear(d.width, narrow), dense2=d.make.linear(narrow, d.width))
            for language in config.languages
        }
        norm = d.make.norm(d.width) if config.adapter_layer_norm else None
        _change(block.output, adapter_layer_norm=norm, adapter_modules=Parts(**adapters))
        return block  # type: ignore[no-any-return]

    embeddings = d.roberta_embeddings()
    model = Parts(embeddings=embeddings, encoder=_encoder(config, config.base, layer))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


@dataclass(frozen=True)
class NystromformerConfig(EncoderConfig):
    vocab_size: int = 30000
    max_position_embeddings: int = 510
    conv_kernel_size: int = 65

    prefix = "Nystromformer"
    classes = ("ForMaskedLM",)
    base = "nystromformer"


def _two_more_positions(d: Draft, embeddings: Any) -> None:
    """A table with two rows that no position has."""
    embeddings.position_embeddings = d.make.embedding(d.config.max_position_embeddings + 2, d.width)


@_describes("nystromformer", NystromformerConfig)
def _nystromformer(d: Draft, name: str) -> CausalModel:
    heads, kernel = d.config.num_attention_heads, d.config.conv_kernel_size

    def layer(_: int) -> Module:
        block = d.layer()
        _change(block.attention.self, conv=d.make.conv(heads, heads, kernel, 1, groups=heads, bias=False))
        return block  # type: ignore[no-any-return]

    embeddings = d.embeddings()
    _two_more_positions(d, embeddings)
    model = Parts(embeddings=embeddings, encoder=_encoder(d.config, d.config.base, layer))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class LongformerConfig(EncoderConfig):
    prefix = "Longformer"
    classes = ("ForMaskedLM",)
    base = "longformer"


@_describes("longformer", LongformerConfig)
def _longformer(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        block = d.layer()
        more = d.make.linears(d.width, d.width, "query_global", "key_global", "value_global")
        _change(block.attention.self, **more)
        return block  # type: ignore[no-any-return]

    embeddings = _change(d.roberta_embeddings(), "position_ids", "token_type_ids")
    model = Parts(embeddings=embeddings, encoder=_encoder(d.config, d.config.base, layer))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


@dataclass(frozen=True)
class BigBirdConfig(EncoderConfig):
    vocab_size: int = 50358
    max_position_embeddings: int = 4096
    use_bias: bool = True

    prefix = "BigBird"
    base = "bert"


@_describes("big_bird", BigBirdConfig)
def _big_bird(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        block = d.layer()
        _change(
            block.attention.self, **d.make.linears(d.width, d.width, "query", "key", "value", bias=d.config.use_bias)
        )
        return block  # type: ignore[no-any-return]

    embeddings = d.embeddings()
    encoder = _encoder(d.config, d.config.base, layer)
    model = Parts(embeddings=embeddings, encoder=encoder, pooler=d.make.linear(d.width, d.width))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class MPNetConfig(EncoderConfig):
    vocab_size: int = 30527
    relative_attention_num_buckets: int = 32

    prefix = "MPNet"
    classes = ("ForMaskedLM", "Model")
    base = "mpnet"


@_describes("mpnet", MPNetConfig)
def _mpnet(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        block = d.layer()
        inside = Parts(**d.make.linears(d.width, d.width, "q", "k", "v", "o"))
        block.attention = AttentionParts(attn=inside, LayerNorm=d.make.norm(d.width))
        return block  # type: ignore[no-any-return]

    embeddings = _change(d.embeddings(), "token_type_embeddings", "token_type_ids")
    bias = d.make.embedding(d.config.relative_attention_num_buckets, d.config.num_attention_heads)
    encoder = _encoder(d.config, d.config.base, layer, relative_attention_bias=bias)
    if name == "MPNetModel":
        return Counted(name, embeddings=embeddings, encoder=encoder, pooler=BertPooler(d.config, d.dtype))
    return d.finish(name, Parts(embeddings=embeddings, encoder=encoder), lm_head=d.lm_head(embeddings))


# -- other embeddings ------------------------------------------------------------------------------
@dataclass(frozen=True)
class YosoConfig(EncoderConfig):
    vocab_size: int = 50265
    max_position_embeddings: int = 4096
    type_vocab_size: int = 1

    prefix = "Yoso"
    classes = ("ForMaskedLM",)
    base = "yoso"


@dataclass(frozen=True)
class MraConfig(EncoderConfig):
    vocab_size: int = 50265
    type_vocab_size: int = 1

    prefix = "Mra"
    classes = ("ForMaskedLM",)
    base = "mra"


@_describes("yoso", YosoConfig)
@_describes("mra", MraConfig)
def _yoso(d: Draft, name: str) -> CausalModel:
    embeddings = d.embeddings()
    _two_more_positions(d, embeddings)
    model = Parts(embeddings=embeddings, encoder=_encoder(d.config, d.config.base, d.layer))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class TapasConfig(EncoderConfig):
    max_position_embeddings: int = 1024
    type_vocab_sizes: tuple[int, ...] = (3, 256, 256, 2, 256, 256, 10)

    prefix = "Tapas"
    classes = ("ForMaskedLM",)
    base = "tapas"


@_describes("tapas", TapasConfig)
def _tapas(d: Draft, name: str) -> CausalModel:
    tables = {
        f"token_type_embeddings_{i}": d.make.embedding(rows, d.width)
        for i, rows in enumerate(d.config.type_vocab_sizes)
    }
    embeddings = _change(d.embeddings(), "token_type_embeddings", "position_ids", "token_type_ids", **tables)
    model = Parts(embeddings=embeddings, encoder=_encoder(d.config, d.config.base, d.layer))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class LayoutLMConfig(EncoderConfig):
    max_2d_position_embeddings: int = 1024

    prefix = "LayoutLM"
    classes = ("ForMaskedLM",)
    base = "layoutlm"


@_describes("layoutlm", LayoutLMConfig)
def _layoutlm(d: Draft, name: str) -> CausalModel:
    rows = d.config.max_2d_position_embeddings
    tables = {f"{axis}_position_embeddings": d.make.embedding(rows, d.width) for axis in "xyhw"}
    embeddings = _change(d.embeddings(), "token_type_ids", **tables)
    encoder = _encoder(d.config, d.config.base, d.layer)
    model = Parts(embeddings=embeddings, encoder=encoder, pooler=BertPooler(d.config, d.dtype))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class RoCBertConfig(EncoderConfig):
    enable_pronunciation: bool = True
    enable_shape: bool = True
    concat_input: bool = True
    pronunciation_embed_dim: int = 768
    pronunciation_vocab_size: int = 910
    shape_embed_dim: int = 512
    shape_vocab_size: int = 24858

    prefix = "RoCBert"
    base = "roc_bert"


@_describes("roc_bert", RoCBertConfig)
def _roc_bert(d: Draft, name: str) -> CausalModel:
    config = d.config
    joined = d.width
    if config.concat_input:
        joined += config.pronunciation_embed_dim * config.enable_pronunciation
        joined += config.shape_embed_dim * config.enable_shape
    embeddings = _change(
        d.embeddings(),
        pronunciation_embed=d.make.embedding(config.pronunciation_vocab_size, config.pronunciation_embed_dim),
        shape_embed=d.make.embedding(config.shape_vocab_size, config.shape_embed_dim),
        map_inputs_layer=d.make.linear(joined, d.width) if config.concat_input else None,
    )
    model = Parts(embeddings=embeddings, encoder=_encoder(config, config.base, d.layer))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class BertGenerationConfig(EncoderConfig):
    vocab_size: int = 50358
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096

    prefix = "BertGeneration"
    classes = ("Decoder", "Encoder")
    base = "bert"


@_describes("bert-generation", BertGenerationConfig)
def _bert_generation(d: Draft, name: str) -> CausalModel:
    embeddings: Any = _change(d.embeddings(), "token_type_embeddings", "token_type_ids")
    model = Parts(embeddings=embeddings, encoder=_encoder(d.config, d.config.base, d.layer))
    if name == "BertGenerationEncoder":
        return Counted(name, **vars(model))
    vocabulary, tied = d.config.vocab_size, d.config.tie_word_embeddings
    decoder = d.make.head(embeddings.word_embeddings if tied else None, d.width, vocabulary, bias=not tied)
    return d.finish(name, model, lm_head=HeadParts(bias=d.make.tensor(vocabulary), decoder=decoder))


@dataclass(frozen=True)
class LukeConfig(EncoderConfig):
    vocab_size: int = 50267
    entity_vocab_size: int = 500000
    entity_emb_size: int = 256
    use_entity_aware_attention: bool = True

    prefix = "Luke"
    classes = ("ForMaskedLM",)
    base = "luke"


@_describes("luke", LukeConfig)
def _luke(d: Draft, name: str) -> CausalModel:
    config, make, entity = d.config, d.make, d.config.entity_emb_size

    def layer(_: int) -> Module:
        block = d.layer()
        if config.use_entity_aware_attention:
            _change(block.attention.self, **make.linears(d.width, d.width, "w2e_query", "e2w_query", "e2e_query"))
        return block  # type: ignore[no-any-return]

    embeddings: Any = _change(d.embeddings(), "position_ids", "token_type_ids")
    entities = Parts(
        entity_embeddings=make.embedding(config.entity_vocab_size, entity),
        entity_embedding_dense=make.linear(entity, d.width, bias=False) if entity != d.width else None,
        position_embeddings=make.embedding(config.max_position_embeddings, d.width),
        token_type_embeddings=make.embedding(config.type_vocab_size, d.width),
        LayerNorm=make.norm(d.width),
    )
    transform = Parts(dense=make.linear(d.width, entity), LayerNorm=make.norm(entity))
    head: Any = d.lm_head(embeddings)
    _change(head, decoder=make.head(None, d.width, config.vocab_size))
    if not config.tie_word_embeddings:
        _change(head.decoder, bias=make.tensor(config.vocab_size))
    model = Parts(
        embeddings=embeddings,
        entity_embeddings=entities,
        encoder=_encoder(config, config.base, layer),
        pooler=BertPooler(config, d.dtype),
    )
    predictions = HeadParts(bias=make.tensor(config.entity_vocab_size), transform=transform)
    return d.finish(name, model, lm_head=head, entity_predictions=predictions)


@dataclass(frozen=True)
class RoFormerConfig(EncoderConfig):
    vocab_size: int = 50000
    embedding_size: int | None = None
    max_position_embeddings: int = 1536

    prefix = "RoFormer"
    base = "roformer"

    @property
    def embedding_width(self) -> int:
        return self.hidden_size if self.embedding_size is None else self.embedding_size


@_describes("roformer", RoFormerConfig)
def _roformer(d: Draft, name: str) -> CausalModel:
    config, narrow = d.config, d.config.embedding_width
    embeddings: Any = _change(d.embeddings(), "position_embeddings", "position_ids", "token_type_ids")
    places = d.make.embedding(config.max_position_embeddings, d.width // config.num_attention_heads)
    places.weight.requires_grad = False
    model = Parts(
        embeddings=embeddings,
        embeddings_project=d.make.linear(narrow, d.width) if narrow != d.width else None,
        encoder=_encoder(config, config.base, d.layer, embed_positions=places),
    )
    head: Any = d.cls(embeddings)
    _change(head.predictions, transform=HeadParts(dense=d.make.linear(d.width, narrow), LayerNorm=d.make.norm(narrow)))
    return d.finish(name, model, cls=head)


@dataclass(frozen=True)
class RemBertConfig(EncoderConfig):
    vocab_size: int = 250300
    hidden_size: int = 1152
    num_hidden_layers: int = 32
    num_attention_heads: int = 18
    intermediate_size: int = 4608
    input_embedding_size: int = 256
    output_embedding_size: int = 1664
    tie_word_embeddings: bool = False

    prefix = "RemBert"
    base = "rembert"

    @property
    def embedding_width(self) -> int:
        return self.input_embedding_size

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("tie_word_embeddings", "RemBERT with tied embeddings")


@_describes("rembert", RemBertConfig)
def _rembert(d: Draft, name: str) -> CausalModel:
    config, wide = d.config, d.config.output_embedding_size
    entry = d.make.linear(config.input_embedding_size, d.width)
    encoder = _encoder(config, config.base, d.layer, embedding_hidden_mapping_in=entry)
    model = Parts(embeddings=_change(d.embeddings(), "token_type_ids"), encoder=encoder)
    head = HeadParts(
        dense=d.make.linear(d.width, wide),
        decoder=d.make.linear(wide, config.vocab_size),
        LayerNorm=d.make.norm(wide),
    )
    return d.finish(name, model, cls=Parts(predictions=head))


# -- other blocks ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    num_hidden_groups: int = 1
    inner_group_num: int = 1

    prefix = "Albert"
    classes = ("ForMaskedLM", "Model")
    base = "albert"

    @property
    def embedding_width(self) -> int:
        return self.embedding_size


@_describes("albert", AlbertConfig)
def _albert(d: Draft, name: str) -> CausalModel:
    config, make, narrow, inner = d.config, d.make, d.config.embedding_size, d.config.intermediate_size

    def layer() -> Module:
        attention = AttentionParts(
            **make.linears(d.width, d.width, "query", "key", "value", "dense"), LayerNorm=make.norm(d.width)
        )
        return BlockParts(
            full_layer_layer_norm=make.norm(d.width),
            attention=attention,
            ffn=make.linear(d.width, inner),
            ffn_output=make.linear(inner, d.width),
        )

    groups = [
        Parts(albert_layers=ModuleList([layer() for _ in range(config.inner_group_num)]))
        for _ in range(config.num_hidden_groups)
    ]
    embeddings = d.embeddings()
    encoder = Parts(embedding_hidden_mapping_in=make.linear(narrow, d.width), albert_layer_groups=ModuleList(groups))
    model = Parts(embeddings=embeddings, encoder=encoder)
    if name == "AlbertModel":
        return Counted(name, embeddings=embeddings, encoder=encoder, pooler=make.linear(d.width, d.width))
    tied = config.tie_word_embeddings
    head = HeadParts(
        bias=make.tensor(config.vocab_size),
        LayerNorm=make.norm(narrow),
        dense=make.linear(d.width, narrow),
        decoder=make.head(embeddings.word_embeddings if tied else None, narrow, config.vocab_size, bias=not tied),
    )
    return d.finish(name, model, predictions=head)


@dataclass(frozen=True)
class MobileBertConfig(EncoderConfig):
    hidden_size: int = 512
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    intermediate_size: int = 512
    embedding_size: int = 128
    trigram_input: bool = True
    intra_bottleneck_size: int = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: int = 4

    prefix = "MobileBert"
    classes = ("ForMaskedLM",)
    base = "mobilebert"

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("use_bottleneck", "MobileBERT without bottlenecks", unless=True)
        keys.refuse("use_bottleneck_attention", "MobileBERT with another bottleneck in its attention")
        keys.refuse("key_query_shared_bottleneck", "MobileBERT with other bottlenecks", unless=True)
        keys.refuse("tie_word_embeddings", "MobileBERT with untied embeddings", unless=True)


@_describes("mobilebert", MobileBertConfig)
def _mobilebert(d: Draft, name: str) -> CausalModel:
    config, make, narrow, inner = d.config, d.make, d.config.intra_bottleneck_size, d.config.intermediate_size

    def dense(width_in: int, width_out: int, **more: Module) -> MlpParts:
        return MlpParts(dense=make.linear(width_in, width_out), LayerNorm=make.norm(width_out), **more)

    def mlp(**output: Module) -> dict[str, Module]:
        return {"intermediate": MlpParts(dense=make.linear(narrow, inner)), "output": dense(inner, narrow, **output)}

    def layer(_: int) -> Module:
        inside = Parts(**make.linears(narrow, narrow, "query", "key"), value=make.linear(d.width, narrow))
        return BlockParts(
            attention=AttentionParts(self=inside, output=dense(narrow, narrow)),
            **mlp(bottleneck=dense(narrow, d.width)),
            bottleneck=Parts(input=dense(d.width, narrow), attention=dense(d.width, narrow)),
            ffn=ModuleList([Parts(**mlp()) for _ in range(config.num_feedforward_networks - 1)]),
        )

    embeddings = Parts(
        word_embeddings=make.embedding(config.vocab_size, config.embedding_size),
        position_embeddings=make.embedding(config.max_position_embeddings, d.width),
        token_type_embeddings=make.embedding(config.type_vocab_size, d.width),
        embedding_transformation=make.linear(config.embedding_size * (3 if config.trigram_input else 1), d.width),
        LayerNorm=make.norm(d.width),
        position_ids=positions(config.max_position_embeddings),
    )
    transform = Parts(dense=make.linear(d.width, d.width), LayerNorm=make.norm(d.width))
    rest = Parts(weight=make.tensor(d.width - config.embedding_size, config.vocab_size))
    head = HeadParts(bias=make.tensor(config.vocab_size), transform=transform, dense=rest)
    model = Parts(embeddings=embeddings, encoder=_encoder(config, config.base, layer))
    return d.finish(name, model, cls=Parts(predictions=head))


@dataclass(frozen=True)
class SqueezeBertConfig(EncoderConfig):
    embedding_size: int = 768
    q_groups: int = 4
    k_groups: int = 4
    v_groups: int = 4
    post_attention_groups: int = 1
    intermediate_groups: int = 4
    output_groups: int = 4

    prefix = "SqueezeBert"
    classes = ("ForMaskedLM",)
    base = "transformer"


@_describes("squeezebert", SqueezeBertConfig)
def _squeezebert(d: Draft, name: str) -> CausalModel:
    config, make, inner = d.config, d.make, d.config.intermediate_size

    def normed(width_in: int, groups: int) -> Parts:
        return Parts(conv1d=make.conv(width_in, d.width, 1, groups=groups), layernorm=make.norm(d.width))

    def layer(_: int) -> Module:
        return BlockParts(
            attention=AttentionParts(
                query=make.conv(d.width, d.width, 1, groups=config.q_groups),
                key=make.conv(d.width, d.width, 1, groups=config.k_groups),
                value=make.conv(d.width, d.width, 1, groups=config.v_groups),
            ),
            post_attention=normed(d.width, config.post_attention_groups),
            intermediate=MlpParts(conv1d=make.conv(d.width, inner, 1, groups=config.intermediate_groups)),
            output=normed(inner, config.output_groups),
        )

    embeddings = _change(d.embeddings(), "token_type_ids")
    stack = nn.Stack("transformer.encoder.layers", config.num_hidden_layers, layer)
    model = Parts(embeddings=embeddings, encoder=Parts(layers=stack), pooler=BertPooler(config, d.dtype))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class ConvBertConfig(EncoderConfig):
    embedding_size: int = 768
    head_ratio: int = 2
    conv_kernel_size: int = 9
    num_groups: int = 1

    prefix = "ConvBert"
    classes = ("ForMaskedLM",)
    base = "convbert"

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("num_groups", "ConvBERT with grouped layers", unless=1)
        keys.divides("head_ratio", found["head_ratio"], "num_attention_heads", found["num_attention_heads"])


@_describes("convbert", ConvBertConfig)
def _convbert(d: Draft, name: str) -> CausalModel:
    config, make, kernel, narrow = d.config, d.make, d.config.conv_kernel_size, d.config.embedding_size
    heads = config.num_attention_heads // config.head_ratio
    inner = heads * (d.width // config.num_attention_heads)

    def layer(_: int) -> Module:
        block = d.layer()
        separable = Parts(
            depthwise=make.conv(d.width, d.width, kernel, groups=d.width, bias=False),
            pointwise=make.conv(d.width, inner, 1, bias=False),
            bias=make.tensor(inner, 1),
        )
        block.attention.self = Parts(
            **make.linears(d.width, inner, "query", "key", "value"),
            key_conv_attn_layer=separable,
            conv_kernel_layer=make.linear(inner, heads * kernel),
            conv_out_layer=make.linear(d.width, inner),
        )
        return block  # type: ignore[no-any-return]

    embeddings = d.embeddings()
    model = Parts(
        embeddings=embeddings,
        embeddings_project=make.linear(narrow, d.width) if narrow != d.width else None,
        encoder=_encoder(config, config.base, layer),
    )
    predictions = HeadParts(LayerNorm=make.norm(narrow), dense=make.linear(d.width, narrow))
    tied_to = embeddings.word_embeddings if config.tie_word_embeddings else None
    head = make.head(tied_to, narrow, config.vocab_size, bias=True)
    return d.finish(name, model, generator_predictions=predictions, generator_lm_head=head)


@dataclass(frozen=True)
class FNetConfig(EncoderConfig):
    vocab_size: int = 32000
    type_vocab_size: int = 4

    prefix = "FNet"
    classes = ("ForMaskedLM",)
    base = "fnet"


@_describes("fnet", FNetConfig)
def _fnet(d: Draft, name: str) -> CausalModel:
    def layer(_: int) -> Module:
        block = d.layer()
        _change(block, "attention", fourier=Parts(output=Parts(LayerNorm=d.make.norm(d.width))))
        return block  # type: ignore[no-any-return]

    embeddings = _change(d.embeddings(), projection=d.make.linear(d.width, d.width))
    encoder = _encoder(d.config, d.config.base, layer)
    model = Parts(embeddings=embeddings, encoder=encoder, pooler=BertPooler(d.config, d.dtype))
    return d.finish(name, model, cls=d.cls(embeddings))


@dataclass(frozen=True)
class IBertConfig(EncoderConfig):
    prefix = "IBert"
    classes = ("ForMaskedLM",)
    base = "ibert"


@_describes("ibert", IBertConfig)
def _ibert(d: Draft, name: str) -> CausalModel:
    embeddings = _change(d.roberta_embeddings(), "token_type_ids")
    model = Parts(embeddings=embeddings, encoder=_encoder(d.config, d.config.base, d.layer))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))
