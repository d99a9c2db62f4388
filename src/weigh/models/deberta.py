"""DeBERTa, counted: `transformers/models/deberta/modeling_deberta.py` (5.23).

BERT's layers with an attention of its own, and one table of relative positions that all layers read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.models.bert import BertLayer, BertOnlyMLMHead
from weigh.models.berts import EncoderConfig
from weigh.models.common import CausalModel
from weigh.models.config import Count, Keys, architecture
from weigh.models.parts import AttentionParts, Counted, Make, Parts, positions
from weigh.records import dataclass


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


def table_rows(keys: Keys, found: Mapping[str, Any]) -> int:
    """Rows of the table of relative positions: two for each."""
    rows = keys.config.get("max_relative_positions") or -1
    return 2 * int(found["max_position_embeddings"] if rows < 1 else rows)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    name = architecture(config, ("DebertaForMaskedLM", "DebertaModel"), where)
    read, make = DebertaConfig.read(config, where), Make(dtype)
    width, heads, kinds = read.hidden_size, read.num_attention_heads, config.get("pos_att_type") or ()
    rows = table_rows(Keys(config, where), {"max_position_embeddings": read.max_position_embeddings})

    def attention() -> Parts:
        found = AttentionParts(
            q_bias=make.tensor(width), v_bias=make.tensor(width), in_proj=make.linear(width, 3 * width, bias=False)
        )
        if read.talking_head:
            found.add(**make.linears(heads, heads, "head_logits_proj", "head_weights_proj", bias=False))
        if read.relative_attention:
            found.add(pos_proj=make.linear(width, width, bias=False) if "c2p" in kinds else None)
            found.add(pos_q_proj=make.linear(width, width) if "p2c" in kinds else None)
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
    if name == "DebertaModel":
        return Counted(name, embeddings=embeddings, encoder=encoder)
    model = Parts(embeddings=embeddings, encoder=encoder)
    return Counted(name, deberta=model, cls=BertOnlyMLMHead(read, words, dtype))
