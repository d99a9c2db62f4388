"""BERT with its head for masked words, as `transformers/models/bert/modeling_bert.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weigh.dtypes import INT64, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    attention_interface,
    check_positions,
    create_bidirectional_mask,
    token_loss,
)
from weigh.models.config import Keys

MODEL_TYPES = ("bert",)


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The settings of `BertConfig` that shape memory."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> BertConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width, heads = keys.size("hidden_size", default=768), keys.size("num_attention_heads", default=12)
        keys.divides("num_attention_heads", heads, "hidden_size", width)
        activation = keys.word("hidden_act", default="gelu")
        nn.activation(activation)
        keys.refuse("is_decoder", "BERT as a decoder")
        keys.refuse("add_cross_attention", "BERT with cross-attention")
        keys.cannot_run("chunk_size_feed_forward", "BERT that computes its MLP in chunks")
        return cls(
            vocab_size=keys.size("vocab_size", default=30522),
            hidden_size=width,
            num_hidden_layers=keys.size("num_hidden_layers", default=12),
            num_attention_heads=heads,
            intermediate_size=keys.size("intermediate_size", default=3072),
            hidden_act=activation,
            hidden_dropout_prob=keys.fraction("hidden_dropout_prob", default=0.1),
            attention_probs_dropout_prob=keys.fraction("attention_probs_dropout_prob", default=0.1),
            max_position_embeddings=keys.size("max_position_embeddings", default=512),
            type_vocab_size=keys.size("type_vocab_size", default=2),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


class BertEmbeddings(nn.Module):
    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, dtype)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, dtype)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width, dtype)
        self.LayerNorm = nn.LayerNorm(width, dtype)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_ids = nn.buffer((1, config.max_position_embeddings), INT64)
        self.token_type_ids = nn.buffer((1, config.max_position_embeddings), INT64)

    def forward(self, input_ids: Tensor, positions: Tensor | None) -> Tensor:
        batch_size, seq_length = input_ids.shape
        check_positions("BERT", "max_position_embeddings", self.position_ids.shape[1], seq_length, None)
        if positions is None:
            positions = self.position_ids.narrow(1, seq_length)
        buffered_token_type_ids = self.token_type_ids.expand(positions.shape[0], self.token_type_ids.shape[1])
        buffered_token_type_ids = ops.gather(buffered_token_type_ids, positions, positions.shape)
        token_type_ids = buffered_token_type_ids.expand(batch_size, seq_length)
        inputs_embeds = self.word_embeddings(input_ids)
        token_type_embeddings = self.token_type_embeddings(token_type_ids)
        embeddings = inputs_embeds + token_type_embeddings
        position_embeddings = self.position_embeddings(positions)
        embeddings = embeddings + position_embeddings
        embeddings = self.LayerNorm(embeddings)
        embeddings = self.dropout(embeddings)
        return embeddings  # type: ignore[no-any-return]


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, _groups: int, **_: Any
) -> tuple[Tensor, Tensor]:
    """BERT's `eager_attention_forward`: the softmax stays in the scores' dtype."""
    attn_weights = query.matmul(key.transpose(2, 3)) * 0.125
    if mask is not None:
        attn_weights = attn_weights + mask
    attn_weights = ops.softmax(attn_weights)
    attn_weights = ops.dropout(attn_weights, dropout, True)
    attn_output = attn_weights.matmul(value)
    attn_output = attn_output.transpose(1, 2).contiguous()
    return attn_output, attn_weights


class BertSelfAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_head_size = width // config.num_attention_heads
        self.query = nn.Linear(width, width, dtype, bias=True)
        self.key = nn.Linear(width, width, dtype, bias=True)
        self.value = nn.Linear(width, width, dtype, bias=True)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_layer = self.query(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        key_layer = self.key(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        value_layer = self.value(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        dropout = self.dropout.p if self.training else 0.0
        attention = attention_interface(eager_attention)
        attn_output, attn_weights = attention(query_layer, key_layer, value_layer, mask, dropout, 1, is_causal=False)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        return attn_output, attn_weights


class BertSelfOutput(nn.Module):
    def __init__(self, config: BertConfig, width_in: int, dtype: DType) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size, dtype, bias=True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, dtype)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = self.LayerNorm(hidden_states + input_tensor)
        return hidden_states


class BertAttention(nn.Module):
    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, dtype)
        self.output = BertSelfOutput(config, config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attention_output, attn_weights = self.self(hidden_states, mask)
        attention_output = self.output(attention_output, hidden_states)
        return attention_output, attn_weights


class BertIntermediate(nn.Module):
    role = nn.MLP

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size, dtype, bias=True)
        self.intermediate_act_fn = nn.Activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.intermediate_act_fn(hidden_states)
        return hidden_states


class BertOutput(BertSelfOutput):
    role = nn.MLP


class BertLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.attention = BertAttention(config, dtype)
        self.intermediate = BertIntermediate(config, dtype)
        self.output = BertOutput(config, config.intermediate_size, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        self_attention_output, _ = self.attention(hidden_states, mask)
        attention_output = self_attention_output
        layer_output = self.feed_forward_chunk(attention_output)
        return layer_output

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """The MLP, which upstream can run in chunks of the sequence."""
        intermediate_output = self.intermediate(attention_output)
        layer_output: Tensor = self.output(intermediate_output, attention_output)
        return layer_output


class BertEncoder(nn.Module):
    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.layer = nn.Stack("bert.encoder.layer", config.num_hidden_layers, lambda _: BertLayer(config, dtype))

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        for layer_module in self.layer:
            hidden_states = layer_module(hidden_states, mask)
        return hidden_states


class BertModel(nn.Module):
    """Without the pooler, which only other heads want."""

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config, dtype)
        self.encoder = BertEncoder(config, dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        embedding_output = self.embeddings(input_ids, positions)
        mask = create_bidirectional_mask(attention_mask)
        sequence_output: Tensor = self.encoder(embedding_output, mask)
        return sequence_output


class BertPredictionHeadTransform(nn.Module):
    role = nn.HEAD

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, dtype, bias=True)
        self.transform_act_fn = nn.Activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.transform_act_fn(hidden_states)
        hidden_states = self.LayerNorm(hidden_states)
        return hidden_states


class BertLMPredictionHead(nn.Module):
    """Its bias is the decoder's where the embeddings are tied, else a parameter that nothing reads."""

    def __init__(self, config: BertConfig, embedding: nn.Embedding, dtype: DType) -> None:
        super().__init__()
        tied = config.tie_word_embeddings
        self.bias = nn.parameter((config.vocab_size,), dtype)
        self.transform = BertPredictionHeadTransform(config, dtype)
        self.decoder = nn.Head(embedding if tied else None, config.hidden_size, config.vocab_size, dtype, not tied)
        if tied:
            self.decoder.bias = self.bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.transform(hidden_states)
        hidden_states = self.decoder(hidden_states)
        return hidden_states


class BertOnlyMLMHead(nn.Module):
    def __init__(self, config: BertConfig, embedding: nn.Embedding, dtype: DType) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config, embedding, dtype)

    def forward(self, sequence_output: Tensor) -> Tensor:
        prediction_scores: Tensor = self.predictions(sequence_output)
        return prediction_scores


class BertForMaskedLM(CausalModel):
    cache_layers = 0

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, dtype)
        self.cls = BertOnlyMLMHead(config, self.bert.embeddings.word_embeddings, dtype)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        if cache is not None or logits_to_keep:
            raise NotModelledError("generation with BERT, which fills in masked words")
        sequence_output = self.bert(input_ids, attention_mask, positions)
        prediction_scores = self.cls(sequence_output)
        masked_lm_loss = None
        if labels is not None:
            masked_lm_loss = token_loss(prediction_scores, labels)
        return CausalOutput(prediction_scores, masked_lm_loss)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return BertForMaskedLM(BertConfig.read(config, where), dtype)
