"""DeBERTa and DeBERTa v2 / v3, counted: `transformers/models/deberta*/modeling_deberta*.py` (5.23).

BERT's layers with an attention of its own, and one table of relative positions that all layers read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.models.bert import BertLayer, BertOnlyMLMHead
from weigh.models.berts import EncoderConfig
from weigh.models.common import CausalModel
from weigh.models.config import Count, Keys, architecture
from weigh.models.parts import Counted, Make, Parts, positions


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """The settings of `DebertaConfig` that shape tensors."""

    vocab_size: int = 50265
    type_vocab_size: Count = 0
    relative_attention: bool = False
    position_biased_input: bool = True
    talking_head: bool = False

    prefix = "Deberta"

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("embedding_size", "DeBERTa with narrower embeddings", unless=found["hidden_size"])
        keys.refuse("legacy", "DeBERTa with its newer head", unless=True)


@dataclass(frozen=True)
class DebertaV2Config(DebertaConfig):
    """The settings of `DebertaV2Config` that shape tensors."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: Count = 0

    prefix = "DebertaV2"


def _relative(config: Mapping[str, Any], read: DebertaConfig) -> tuple[int, bool, bool]:
    """Rows of the table of relative positions, and whether content looks at positions and positions at content."""
    rows = config.get("max_relative_positions") or -1
    rows = read.max_position_embeddings if rows < 1 else rows
    if isinstance(read, DebertaV2Config) and (config.get("position_buckets") or -1) > 0:
        rows = config["position_buckets"]
    kinds = config.get("pos_att_type") or ()
    return 2 * rows, "c2p" in kinds, "p2c" in kinds


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    settings = DebertaV2Config if config["model_type"] == "deberta-v2" else DebertaConfig
    name = architecture(config, (f"{settings.prefix}ForMaskedLM", f"{settings.prefix}Model"), where)
    read, make = settings.read(config, where), Make(dtype)
    width, heads = read.hidden_size, read.num_attention_heads
    rows, content, place = _relative(config, read)
    content, place = (flag and read.relative_attention for flag in (content, place))

    def attention() -> Parts:
        if isinstance(read, DebertaV2Config):
            found = Parts(**make.linears(width, width, "query_proj", "key_proj", "value_proj"))
            names = [n for n, wanted in (("pos_key_proj", content), ("pos_query_proj", place)) if wanted]
            found.add(**({} if read.share_att_key else make.linears(width, width, *names)))
            return found
        found = Parts(
            q_bias=make.tensor(width), v_bias=make.tensor(width), in_proj=make.linear(width, 3 * width, bias=False)
        )
        if read.talking_head:
            found.add(**make.linears(heads, heads, "head_logits_proj", "head_weights_proj", bias=False))
        found.add(pos_proj=make.linear(width, width, bias=False) if content else None)
        found.add(pos_q_proj=make.linear(width, width) if place else None)
        return found

    def layer(_: int) -> Module:
        block: Any = BertLayer(read, dtype)
        block.attention.self = attention()
        return block  # type: ignore[no-any-return]

    words = make.embedding(read.vocab_size, width)
    embeddings = Parts(
        word_embeddings=words,
        position_embeddings=make.embedding(read.max_position_embeddings, width) if read.position_biased_input else None,
        token_type_embeddings=make.embedding(read.type_vocab_size, width) if read.type_vocab_size else None,
        LayerNorm=make.norm(width),
        position_ids=positions(read.max_position_embeddings),
    )
    encoder = Parts(layer=nn.Stack("deberta.encoder.layer", read.num_hidden_layers, layer))
    encoder.add(rel_embeddings=make.embedding(rows, width) if read.relative_attention else None)
    if isinstance(read, DebertaV2Config):
        encoder.add(LayerNorm=make.norm(width) if "layer_norm" in read.norm_rel_ebd else None)
        if read.conv_kernel_size:
            conv = make.conv(width, width, read.conv_kernel_size, groups=config.get("conv_groups", 1))
            encoder.add(conv=Parts(conv=conv, LayerNorm=make.norm(width)))
    if name == f"{settings.prefix}Model":
        return Counted(name, embeddings=embeddings, encoder=encoder)
    model = Parts(embeddings=embeddings, encoder=encoder)
    return Counted(name, deberta=model, cls=BertOnlyMLMHead(read, words, dtype))
