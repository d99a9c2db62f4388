"""DeBERTa v2 and v3, as `transformers/models/deberta_v2/modeling_deberta_v2.py` (5.23) writes it.

BERT's layers with an attention in which contents look at relative positions and positions at contents; one table of
them serves all layers. Shapes: B batch, T length, N heads, H head width, R rows of that table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL, FLOAT32, INT64, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.bert import BertIntermediate, BertOnlyMLMHead, BertOutput, BertSelfOutput
from weigh.models.common import CausalModel, CausalOutput, LayerCache, token_loss
from weigh.models.config import Count, Keys, architecture, cannot_run
from weigh.models.deberta import DebertaConfig, table_rows
from weigh.models.parts import Counted, Make, positions
from weigh.records import dataclass


@dataclass(frozen=True)
class DebertaV2Config(DebertaConfig):
    """The settings of `DebertaV2Config` that shape memory."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: Count = 0
    conv_groups: int = 1
    rows: int = 0
    """Of the table of relative positions."""
    buckets: bool = False
    """Distant positions share a row."""
    c2p: bool = False
    """Contents look at positions, and"""
    p2c: bool = False
    """positions at contents."""

    prefix = "DebertaV2"

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Two rows for each position, or for each bucket of them."""
        super().settle(keys, found)
        buckets = keys.config.get("position_buckets") or -1
        found["buckets"] = buckets > 0
        found["rows"] = 2 * buckets if buckets > 0 else table_rows(keys, found)
        kinds = keys.config.get("pos_att_type") or ()
        for name in ("c2p", "p2c"):
            found[name] = bool(found["relative_attention"] and name in kinds)
        if found["conv_kernel_size"]:
            cannot_run("a convolution behind the first layer", f"{keys.where}: conv_kernel_size")


def make_log_bucket_position(relative_pos: Tensor) -> Tensor:
    """The bucket of each relative position (T, T): near ones have their own."""
    sign = ops.like("aten::sign", relative_pos)
    near = ops.logical_and(ops.less_than(relative_pos), ops.greater_than(relative_pos))
    abs_pos = ops.where(near, ops.full((), INT64), ops.absolute(relative_pos))
    del near
    log_pos = ops.log(abs_pos.to(FLOAT32))
    for name in ("div", "mul", "ceil", "add"):
        log_pos = ops.like(f"aten::{name}", log_pos)
    return ops.where(ops.less_than(abs_pos), relative_pos.to(FLOAT32), log_pos * sign)


def build_relative_position(length: Size, buckets: bool) -> Tensor:
    """From every position to every other: (1, T, T)."""
    q_ids, k_ids = ops.arange(length), ops.arange(length)
    rel_pos_ids = q_ids.unsqueeze(1) - k_ids.unsqueeze(0)
    if buckets:
        rel_pos_ids = make_log_bucket_position(rel_pos_ids)
    rel_pos_ids = rel_pos_ids.to(INT64)
    return rel_pos_ids.unsqueeze(0)


class DisentangledSelfAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: DebertaV2Config, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.share_att_key, self.c2p, self.p2c = config.share_att_key, config.c2p, config.p2c
        self.query_proj = nn.Linear(width, width, dtype, bias=True)
        self.key_proj = nn.Linear(width, width, dtype, bias=True)
        self.value_proj = nn.Linear(width, width, dtype, bias=True)
        if self.c2p and not self.share_att_key:
            self.pos_key_proj = nn.Linear(width, width, dtype, bias=True)
        if self.p2c and not self.share_att_key:
            self.pos_query_proj = nn.Linear(width, width, dtype, bias=True)
        self.pos_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B * N, T, H), contiguous."""
        batch, length, width = x.shape
        heads = self.num_attention_heads
        x = x.view(batch, length, heads, width // heads)
        return x.permute(0, 2, 1, 3).contiguous().view(batch * heads, length, width // heads)

    def forward(
        self, hidden_states: Tensor, mask: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor | None
    ) -> Tensor:
        batch, length = hidden_states.shape[:2]
        heads = self.num_attention_heads
        query_layer = self.transpose_for_scores(self.query_proj(hidden_states))
        key_layer = self.transpose_for_scores(self.key_proj(hidden_states))
        value_layer = self.transpose_for_scores(self.value_proj(hidden_states))
        attention_scores = ops.bmm(query_layer, key_layer.transpose(-1, -2) / 8.0)
        rel_att = None
        if rel_embeddings is not None:
            assert relative_pos is not None
            rel_embeddings = self.pos_dropout(rel_embeddings)
            rel_att = self.disentangled_attention_bias(query_layer, key_layer, relative_pos, rel_embeddings)
        if rel_att is not None:
            attention_scores = attention_scores + rel_att
        attention_scores = attention_scores.view(batch, heads, length, length)
        mask = mask.to(BOOL)
        attention_scores = ops.masked_fill_value(attention_scores, ops.bitwise_not(mask))
        attention_probs = ops.softmax(attention_scores)
        attention_probs = self.dropout(attention_probs)
        context_layer = ops.bmm(attention_probs.view(batch * heads, length, length), value_layer)
        context_layer = context_layer.view(batch, heads, length, -1).permute(0, 2, 1, 3).contiguous()
        return context_layer.view(batch, length, hidden_states.shape[-1])

    def disentangled_attention_bias(
        self, query_layer: Tensor, key_layer: Tensor, relative_pos: Tensor, rel_embeddings: Tensor
    ) -> Tensor | None:
        """What contents see in positions, and positions in contents: (B * N, T, T)."""
        batch = query_layer.shape[0] // self.num_attention_heads
        length = query_layer.shape[1]
        scores = (query_layer.shape[0], length, length)
        rel_embeddings = rel_embeddings.unsqueeze(0)
        pos_key_layer = pos_query_layer = None
        if self.share_att_key:
            pos_query_layer = self.repeated(self.query_proj, rel_embeddings, batch)
            pos_key_layer = self.repeated(self.key_proj, rel_embeddings, batch)
        else:
            if self.c2p:
                pos_key_layer = self.repeated(self.pos_key_proj, rel_embeddings, batch)
            if self.p2c:
                pos_query_layer = self.repeated(self.pos_query_proj, rel_embeddings, batch)
        score: Tensor | None = None
        if self.c2p:
            assert pos_key_layer is not None
            c2p_att = ops.bmm(query_layer, pos_key_layer.transpose(-1, -2))
            c2p_pos = ops.like("aten::clamp", relative_pos + 1)
            c2p_att = ops.gather(c2p_att, c2p_pos.expand(*scores), scores)
            score = c2p_att / 8.0 + 0.0
        if self.p2c:
            assert pos_query_layer is not None
            p2c_pos = ops.like("aten::clamp", -relative_pos + 1)
            p2c_att = ops.bmm(key_layer, pos_query_layer.transpose(-1, -2))
            p2c_att = ops.gather(p2c_att, p2c_pos.expand(*scores), scores).transpose(-1, -2)
            added = p2c_att / 8.0
            score = added + 0.0 if score is None else ops.add_(score, added)
            del added
        return score

    def repeated(self, projection: nn.Module, rel_embeddings: Tensor, batch: Size) -> Tensor:
        """The table's rows as keys or queries of every sequence: (B * N, R, H)."""
        return ops.repeat(self.transpose_for_scores(projection(rel_embeddings)), batch, 1, 1)


class DebertaV2Attention(nn.Module):
    def __init__(self, config: DebertaV2Config, dtype: DType) -> None:
        super().__init__()
        self.self = DisentangledSelfAttention(config, dtype)
        self.output = BertSelfOutput(config, config.hidden_size, dtype)

    def forward(
        self, hidden_states: Tensor, mask: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor | None
    ) -> Tensor:
        self_output = self.self(hidden_states, mask, relative_pos, rel_embeddings)
        attention_output: Tensor = self.output(self_output, hidden_states)
        return attention_output


class DebertaV2Layer(nn.Module):
    role = nn.BLOCK
    positional = 2

    def __init__(self, config: DebertaV2Config, dtype: DType) -> None:
        super().__init__()
        self.attention = DebertaV2Attention(config, dtype)
        self.intermediate = BertIntermediate(config, dtype)
        self.output = BertOutput(config, config.intermediate_size, dtype)

    def forward(
        self, hidden_states: Tensor, mask: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor | None
    ) -> Tensor:
        attention_output = self.attention(hidden_states, mask, relative_pos, rel_embeddings)
        intermediate_output = self.intermediate(attention_output)
        layer_output: Tensor = self.output(intermediate_output, attention_output)
        return layer_output


class DebertaV2Embeddings(nn.Module):
    role = nn.EMBEDDING

    def __init__(self, config: DebertaV2Config, dtype: DType) -> None:
        super().__init__()
        width, places, types = config.hidden_size, config.max_position_embeddings, config.type_vocab_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, dtype)
        self.position_embeddings = nn.Embedding(places, width, dtype) if config.position_biased_input else None
        self.token_type_embeddings = nn.Embedding(types, width, dtype) if types else None
        self.LayerNorm = nn.LayerNorm(width, dtype)
        self.position_ids = positions(places)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, mask: Tensor) -> Tensor:
        length = input_ids.shape[1]
        inputs_embeds = self.word_embeddings(input_ids)
        if self.position_embeddings is not None:
            position_embeddings = self.position_embeddings(self.position_ids.narrow(-1, length))
            embeddings = inputs_embeds + position_embeddings
        else:
            position_embeddings = ops.zeros_as(inputs_embeds)
            embeddings = inputs_embeds
        if self.token_type_embeddings is not None:
            token_type_embeddings = self.token_type_embeddings(token_type_ids)
            embeddings = embeddings + token_type_embeddings
        embeddings = self.LayerNorm(embeddings)
        mask = mask.unsqueeze(2).to(embeddings.dtype)
        embeddings = embeddings * mask
        embeddings = self.dropout(embeddings)
        return embeddings  # type: ignore[no-any-return]


class DebertaV2Encoder(nn.Module):
    def __init__(self, config: DebertaV2Config, path: str, dtype: DType) -> None:
        super().__init__()
        self.buckets = config.buckets
        width, make = config.hidden_size, Make(dtype)
        self.layer = nn.Stack(f"{path}.layer", config.num_hidden_layers, lambda _: DebertaV2Layer(config, dtype))
        self.rel_embeddings = nn.Embedding(config.rows, width, dtype) if config.relative_attention else None
        normed = "layer_norm" in config.norm_rel_ebd
        self.LayerNorm = nn.LayerNorm(width, dtype) if normed else None
        if config.conv_kernel_size:
            conv = make.conv(width, width, config.conv_kernel_size, groups=config.conv_groups)
            self.conv = ConvLayer(conv, nn.LayerNorm(width, dtype))

    def forward(self, hidden_states: Tensor, mask: Tensor) -> list[Tensor]:
        """The embeddings and the output of every layer."""
        extended_mask = mask.unsqueeze(1).unsqueeze(2)
        attention_mask = extended_mask * extended_mask.transpose(-1, -2)
        relative_pos = rel_embeddings = None
        if self.rel_embeddings is not None:
            relative_pos = build_relative_position(hidden_states.shape[1], self.buckets)
            relative_pos = relative_pos.unsqueeze(1).squeeze(0)
            rel_embeddings = self.rel_embeddings.weight
        if rel_embeddings is not None and self.LayerNorm is not None:
            rel_embeddings = self.LayerNorm(rel_embeddings)
        all_hidden_states = [hidden_states]
        for layer_module in self.layer:
            hidden_states = layer_module(hidden_states, attention_mask, relative_pos, rel_embeddings)
            all_hidden_states.append(hidden_states)
        return all_hidden_states


class ConvLayer(nn.Module):
    """Counted only."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.LayerNorm = conv, norm


class DebertaV2Model(nn.Module):
    def __init__(self, config: DebertaV2Config, path: str, dtype: DType) -> None:
        super().__init__()
        self.embeddings = DebertaV2Embeddings(config, dtype)
        self.encoder = DebertaV2Encoder(config, f"{path}encoder", dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is None:
            attention_mask = ops.ones(input_ids.shape, FLOAT32)
        token_type_ids = ops.full(input_ids.shape, INT64)
        embedding_output = self.embeddings(input_ids, token_type_ids, attention_mask)
        encoded_layers: list[Tensor] = self.encoder(embedding_output, attention_mask)
        return encoded_layers[-1]


class DebertaV2ForMaskedLM(CausalModel):
    cache_layers = 0

    def __init__(self, config: DebertaV2Config, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.deberta = DebertaV2Model(config, "deberta.", dtype)
        self.cls = BertOnlyMLMHead(config, self.deberta.embeddings.word_embeddings, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Nothing."""
        return ()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Any = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        sequence_output = self.deberta(input_ids, attention_mask)
        prediction_scores = self.cls(sequence_output)
        loss = None if labels is None else token_loss(prediction_scores, labels)
        return CausalOutput(prediction_scores, loss)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`; without its head it is counted."""
    name = architecture(config, ("DebertaV2ForMaskedLM", "DebertaV2Model"), where)
    read = DebertaV2Config.read(config, where)
    if name == "DebertaV2Model":
        model = DebertaV2Model(read, "", dtype)
        return Counted(name, embeddings=model.embeddings, encoder=model.encoder)
    return DebertaV2ForMaskedLM(read, dtype)
