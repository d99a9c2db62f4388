"""DistilBERT, as `transformers/models/distilbert/modeling_distilbert.py` (5.23) writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import INT64, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.bert import FILLS_IN, eager_attention
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    check_positions,
    create_bidirectional_mask,
    token_loss,
)
from weigh.models.config import FamilyConfig, Keys, Probability, architecture
from weigh.models.parts import Counted
from weigh.records import dataclass


@dataclass(frozen=True)
class DistilBertConfig(FamilyConfig):
    """The settings of `DistilBertConfig` that shape memory."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation: str = "gelu"
    tie_word_embeddings: bool = True

    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        keys.divides("n_heads", found["n_heads"], "dim", found["dim"])
        nn.activation(found["activation"])
        keys.cannot_run("chunk_size_feed_forward", "an MLP that is computed in chunks")


class Embeddings(nn.Module):
    def __init__(self, config: DistilBertConfig, dtype: DType) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.dim, dtype)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.dim, dtype)
        self.LayerNorm = nn.LayerNorm(config.dim, dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.position_ids = nn.buffer((1, config.max_position_embeddings), INT64)

    def forward(self, input_ids: Tensor) -> Tensor:
        seq_length = input_ids.shape[1]
        check_positions("DistilBERT", "max_position_embeddings", self.position_ids.shape[1], seq_length, None)
        inputs_embeds = self.word_embeddings(input_ids)
        position_embeddings = self.position_embeddings(self.position_ids.narrow(1, seq_length))
        embeddings = inputs_embeds + position_embeddings
        embeddings = self.LayerNorm(embeddings)
        embeddings = self.dropout(embeddings)
        return embeddings  # type: ignore[no-any-return]


class DistilBertSelfAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: DistilBertConfig, dtype: DType) -> None:
        super().__init__()
        self.attention_head_size = config.dim // config.n_heads
        self.q_lin = nn.Linear(config.dim, config.dim, dtype, bias=True)
        self.k_lin = nn.Linear(config.dim, config.dim, dtype, bias=True)
        self.v_lin = nn.Linear(config.dim, config.dim, dtype, bias=True)
        self.out_lin = nn.Linear(config.dim, config.dim, dtype, bias=True)
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_layer = self.q_lin(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        key_layer = self.k_lin(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        value_layer = self.v_lin(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
        dropout = self.dropout.p if self.training else 0.0
        attention = attention_interface(eager_attention)
        attn_output, attn_weights = attention(query_layer, key_layer, value_layer, mask, dropout, 1, is_causal=False)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.out_lin(attn_output)
        return attn_output, attn_weights


class FFN(nn.Module):
    role = nn.MLP

    def __init__(self, config: DistilBertConfig, dtype: DType) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.lin1 = nn.Linear(config.dim, config.hidden_dim, dtype, bias=True)
        self.lin2 = nn.Linear(config.hidden_dim, config.dim, dtype, bias=True)
        self.activation = nn.Activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin1(x)
        x = self.activation(x)
        x = self.lin2(x)
        x = self.dropout(x)
        return x


class TransformerBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: DistilBertConfig, dtype: DType) -> None:
        super().__init__()
        self.attention = DistilBertSelfAttention(config, dtype)
        self.sa_layer_norm = nn.LayerNorm(config.dim, dtype)
        self.ffn = FFN(config, dtype)
        self.output_layer_norm = nn.LayerNorm(config.dim, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        attention_output, _ = self.attention(hidden_states, mask)
        attention_output = self.sa_layer_norm(attention_output + hidden_states)
        ffn_output = self.ffn(attention_output)
        ffn_output = self.output_layer_norm(ffn_output + attention_output)
        return ffn_output  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, config: DistilBertConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.layer = nn.Stack(f"{path}.layer", config.n_layers, lambda _: TransformerBlock(config, dtype))

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        for layer_module in self.layer:
            hidden_states = layer_module(hidden_states, mask)
        return hidden_states


class DistilBertModel(nn.Module):
    def __init__(self, config: DistilBertConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, dtype)
        self.transformer = Transformer(config, f"{path}transformer", dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        embeddings = self.embeddings(input_ids)
        mask = create_bidirectional_mask(attention_mask)
        return self.transformer(embeddings, mask)  # type: ignore[no-any-return]


class MaskedLoss(nn.Module):
    """`CrossEntropyLoss`, which is a module here."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return token_loss(logits, labels)


class DistilBertForMaskedLM(CausalModel):
    cache_layers = 0

    def __init__(self, config: DistilBertConfig, dtype: DType) -> None:
        super().__init__()
        self.activation = nn.Activation(config.activation)
        self.distilbert = DistilBertModel(config, "distilbert.", dtype)
        self.vocab_transform = nn.Linear(config.dim, config.dim, dtype, bias=True)
        self.vocab_layer_norm = nn.LayerNorm(config.dim, dtype)
        tied_to = self.distilbert.embeddings.word_embeddings if config.tie_word_embeddings else None
        self.vocab_projector = nn.Head(tied_to, config.dim, config.vocab_size, dtype, bias=True)
        self.mlm_loss_fct = MaskedLoss()

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return ()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        if cache is not None or logits_to_keep or positions is not None:
            raise NotModelledError(f"generation with {self.name}, which fills in masked words", hint=FILLS_IN)
        hidden_states = self.distilbert(input_ids, attention_mask)
        prediction_logits = self.vocab_transform(hidden_states)
        prediction_logits = self.activation(prediction_logits)
        prediction_logits = self.vocab_layer_norm(prediction_logits)
        prediction_logits = self.vocab_projector(prediction_logits)
        mlm_loss = None if labels is None else self.mlm_loss_fct(prediction_logits, labels)
        return CausalOutput(prediction_logits, mlm_loss)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    name = architecture(config, ("DistilBertForMaskedLM", "DistilBertModel"), where)
    read = DistilBertConfig.read(config, where)
    if name == "DistilBertModel":
        model = DistilBertModel(read, "", dtype)
        return Counted(name, embeddings=model.embeddings, transformer=model.transformer)
    return DistilBertForMaskedLM(read, dtype)
