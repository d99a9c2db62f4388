"""BERT with its head for words, as `transformers/models/bert/modeling_bert.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import INT32, INT64, DType
from weigh.errors import InputError, NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    causal_lm_loss,
    check_positions,
    create_bidirectional_mask,
    create_causal_mask,
    slice_logits_to_keep,
    token_loss,
)
from weigh.models.config import FamilyConfig, Keys, Probability, architecture
from weigh.models.parts import Counted
from weigh.records import dataclass


@dataclass(frozen=True)
class BertConfig(FamilyConfig):
    """The settings of `BertConfig` that shape memory, and of its relatives'."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    @property
    def embedding_width(self) -> int:
        """The width of the embeddings."""
        return self.hidden_size

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        keys.divides("num_attention_heads", found["num_attention_heads"], "hidden_size", found["hidden_size"])
        nn.activation(found["hidden_act"])
        if found["add_cross_attention"] and not found["is_decoder"]:
            raise InputError("is true", where=f"{keys.where}: add_cross_attention", hint="Set is_decoder too.")
        keys.cannot_run("add_cross_attention", "a decoder with cross-attention, without its encoder")
        keys.cannot_run("chunk_size_feed_forward", "an MLP that is computed in chunks")


class BertEmbeddings(nn.Module):
    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.rows = config.max_position_embeddings
        self.add_tables(config, config.embedding_width, dtype)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_ids = nn.buffer((1, config.max_position_embeddings), INT64)
        self.token_type_ids = nn.buffer((1, config.max_position_embeddings), INT64)

    def add_tables(self, config: BertConfig, width: int, dtype: DType) -> None:
        """The embeddings and their norm."""
        self.word_embeddings = nn.Embedding(config.vocab_size, width, dtype)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, dtype)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width, dtype)
        self.LayerNorm = nn.LayerNorm(width, dtype)

    def number(self, input_ids: Tensor, cache: Cache | None) -> Tensor:
        """The positions of tokens that come without any."""
        return self.position_ids.narrow(1, input_ids.shape[1])

    def forward(self, input_ids: Tensor, positions: Tensor | None, cache: Cache | None) -> Tensor:
        batch_size, seq_length = input_ids.shape
        check_positions("the model", "max_position_embeddings", self.rows, seq_length, cache)
        if positions is None:
            positions = self.number(input_ids, cache)
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


def position_ids_from_input_ids(input_ids: Tensor) -> Tensor:
    """`create_position_ids_from_input_ids`: the numbers of the tokens that are not padding."""
    mask = ops.to(ops.equal_to(input_ids), INT32)
    incremental_indices = (ops.to(ops.cumsum(mask), INT32) + 0) * mask
    return ops.to(incremental_indices, INT64) + 1


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

    def __init__(self, config: BertConfig, dtype: DType, is_causal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_head_size = width // config.num_attention_heads
        self.is_causal = is_causal
        self.query = nn.Linear(width, width, dtype, bias=True)
        self.key = nn.Linear(width, width, dtype, bias=True)
        self.value = nn.Linear(width, width, dtype, bias=True)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_layer = self.query(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        key_layer = self.key(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        value_layer = self.value(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        if cache is not None:
            key_layer, value_layer = cache.update(key_layer, value_layer, self.path)
        dropout = self.dropout.p if self.training else 0.0
        attention = attention_interface(eager_attention)
        attn_output, attn_weights = attention(
            query_layer, key_layer, value_layer, mask, dropout, 1, is_causal=self.is_causal
        )
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        return attn_output, attn_weights


class BertSelfOutput(nn.Module):
    role = nn.ATTENTION

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
    def __init__(self, config: BertConfig, dtype: DType, is_causal: bool) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, dtype, is_causal)
        self.output = BertSelfOutput(config, config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        attention_output, attn_weights = self.self(hidden_states, mask, cache)
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
        self.attention = BertAttention(config, dtype, config.is_decoder)
        if config.add_cross_attention:
            self.crossattention = BertAttention(config, dtype, is_causal=False)
        self.intermediate = BertIntermediate(config, dtype)
        self.output = BertOutput(config, config.intermediate_size, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        self_attention_output, _ = self.attention(hidden_states, mask, cache)
        attention_output = self_attention_output
        layer_output = self.feed_forward_chunk(attention_output)
        return layer_output

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """The MLP, which upstream can run in chunks of the sequence."""
        intermediate_output = self.intermediate(attention_output)
        layer_output: Tensor = self.output(intermediate_output, attention_output)
        return layer_output


class BertEncoder(nn.Module):
    def __init__(self, config: BertConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.layer = nn.Stack(f"{path}.layer", config.num_hidden_layers, lambda _: BertLayer(config, dtype))

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        for layer_module in self.layer:
            hidden_states = layer_module(hidden_states, mask, cache)
        return hidden_states


class BertPooler(nn.Module):
    """Only counted: the heads that are run do without it."""

    role = nn.HEAD

    def __init__(self, config: BertConfig, dtype: DType) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, dtype, bias=True)


class BertModel(nn.Module):
    embeddings_class: ClassVar[type[BertEmbeddings]] = BertEmbeddings

    def __init__(self, config: BertConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.is_decoder = config.is_decoder
        self.embeddings = self.embeddings_class(config, dtype)
        if config.embedding_width != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_width, config.hidden_size, dtype, bias=True)
        self.encoder = BertEncoder(config, f"{path}.encoder", dtype)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None, cache: Cache | None
    ) -> Tensor:
        embedding_output = self.embeddings(input_ids, positions, cache)
        if hasattr(self, "embeddings_project"):
            embedding_output = self.embeddings_project(embedding_output)
        if self.is_decoder:
            mask = create_causal_mask(embedding_output, cache, None, attention_mask)
        else:
            mask = create_bidirectional_mask(attention_mask)
        sequence_output: Tensor = self.encoder(embedding_output, mask, cache)
        if cache is not None:
            cache.advance(input_ids.shape[1])
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


FILLS_IN = "Train it with `weigh train`; to generate, name a class that does in the config's `architectures`."
"""What to do with a model of masked words."""


class BertLMBase(CausalModel):
    """BERT or a relative with a head over the vocabulary."""

    base: ClassVar[str] = "bert"
    """What upstream calls the model below the head."""
    model_class: ClassVar[type[BertModel]] = BertModel

    def __init__(self, config: BertConfig, dtype: DType, name: str) -> None:
        super().__init__()
        self.config, self._name = config, name
        self.cache_layers = config.num_hidden_layers if config.is_decoder else 0
        self.add_parts(self.model_class(config, self.base, dtype), dtype)

    def add_parts(self, model: BertModel, dtype: DType) -> None:
        """The model and its head, in upstream's order."""
        setattr(self, self.base, model)
        self.cls = BertOnlyMLMHead(self.config, model.embeddings.word_embeddings, dtype)

    def head(self, hidden_states: Tensor) -> Tensor:
        """The logits."""
        return self.cls(hidden_states)  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return self._name

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        width = config.hidden_size // config.num_attention_heads
        own = LayerCache(layout.FULL, config.num_attention_heads, width, width)
        return (own,) * self.cache_layers


class BertForMaskedLM(BertLMBase):
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
            raise NotModelledError(f"generation with {self.name}, which fills in masked words", hint=FILLS_IN)
        sequence_output = getattr(self, self.base)(input_ids, attention_mask, positions, None)
        prediction_scores = self.head(sequence_output)
        masked_lm_loss = None
        if labels is not None:
            masked_lm_loss = token_loss(prediction_scores, labels)
        return CausalOutput(prediction_scores, masked_lm_loss)


class BertLMHeadModel(BertLMBase):
    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        if cache is not None and not self.config.is_decoder:
            hint = "Set is_decoder to true in the config, as its makers do to generate."
            raise NotModelledError(f"generation with {self.name}, which is no decoder here", hint=hint)
        hidden_states = getattr(self, self.base)(input_ids, attention_mask, positions, cache)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def counted_model(model: BertModel, name: str, pooler: BertPooler | None) -> CausalModel:
    """The model without a head, under upstream's class."""
    parts = {part: module for part, module in vars(model).items() if isinstance(module, nn.Module)}
    return Counted(name, (), **parts, pooler=pooler)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    read = BertConfig.read(config, where)
    name = architecture(config, ("BertForMaskedLM", "BertLMHeadModel", "BertModel"), where)
    if name == "BertModel":
        return counted_model(BertModel(read, "", dtype), name, BertPooler(read, dtype))
    return (BertForMaskedLM if name == "BertForMaskedLM" else BertLMHeadModel)(read, dtype, name)
