"""ModernBERT, as `transformers/models/modernbert/modeling_modernbert.py` (5.23) writes it.

Two layers of three see a window to both sides. Half of the first projection of the MLP gates the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.bert import FILLS_IN
from weigh.models.common import (
    FULL,
    SLIDING,
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    cos_sin,
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    eager_attention,
    period_of,
    rotate_half,
    token_loss,
)
from weigh.models.config import COUNTED, DERIVED, FamilyConfig, Keys, Probability, architecture
from weigh.models.parts import Counted
from weigh.records import dataclass


@dataclass(frozen=True)
class ModernBertConfig(FamilyConfig):
    """The settings of `ModernBertConfig` that shape memory."""

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    norm_bias: bool = False
    attention_bias: bool = False
    attention_dropout: Probability = 0.0
    layer_types: tuple[str, ...] = DERIVED
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    embedding_dropout: Probability = 0.0
    mlp_bias: bool = False
    mlp_dropout: Probability = 0.0
    decoder_bias: bool = True
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True

    @property
    def sliding_window(self) -> int:
        """How far a token of a sliding layer sees, to each side."""
        return self.local_attention // 2

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        keys.divides("num_attention_heads", found["num_attention_heads"], "hidden_size", found["hidden_size"])
        nn.activation(found["hidden_activation"])
        nn.activation(found["classifier_activation"])
        if not found["layer_types"]:
            every = found["global_attn_every_n_layers"]
            found["layer_types"] = tuple(SLIDING if i % every else FULL for i in range(found["num_hidden_layers"]))
        keys.check_layer_types(found | {"sliding_window": found["local_attention"]})
        for layer_type in (FULL, SLIDING):
            keys.rope_type(layer_type)
        keys.cannot_run("sparse_prediction", "a loss of the masked words alone")


class ModernBertEmbeddings(nn.Module):
    def __init__(self, config: ModernBertConfig, dtype: DType) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.norm = nn.LayerNorm(config.hidden_size, dtype, config.norm_bias)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden_states: Tensor = self.drop(self.norm(self.tok_embeddings(input_ids)))
        return hidden_states


class ModernBertMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: ModernBertConfig, dtype: DType) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, dtype, config.mlp_bias)
        self.act = nn.Activation(config.hidden_activation)
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, dtype, config.mlp_bias)
        self.inner = config.intermediate_size

    def forward(self, hidden_states: Tensor) -> Tensor:
        left, gate = ops.split(self.Wi(hidden_states), [self.inner, self.inner], -1)
        return self.Wo(self.drop(self.act(left) * gate))  # type: ignore[no-any-return]


class ModernBertRotaryEmbedding(nn.Module):
    """The frequencies of every type of layer, and a copy of each."""

    role = nn.ROTARY

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        width = config.hidden_size // config.num_attention_heads
        for layer_type in sorted(set(config.layer_types)):
            for name in ("inv_freq", "original_inv_freq"):
                setattr(self, f"{layer_type}_{name}", nn.buffer(((width + 1) // 2,), FLOAT32))

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        return cos_sin(position_ids, getattr(self, f"{layer_type}_inv_freq"), x.dtype)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of queries and keys, computed in fp32."""
    original_dtype = q.dtype
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    q_embed = (q.float() * cos) + (rotate_half(q.float()) * sin)
    k_embed = (k.float() * cos) + (rotate_half(k.float()) * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)


def _eager_attention(*args: Any, is_causal: bool) -> tuple[Tensor, Tensor | None]:  # noqa: ARG001  the mask says it
    return eager_attention(*args)


class ModernBertAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: ModernBertConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_dropout = config.attention_dropout
        self.head_dim = width // config.num_attention_heads
        self.Wqkv = nn.Linear(width, 3 * width, dtype, config.attention_bias)
        self.Wo = nn.Linear(width, width, dtype, config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        qkv = self.Wqkv(hidden_states)
        qkv = qkv.view(batch, length, 3, -1, self.head_dim)
        query_states, key_states, value_states = (ops.squeeze(x, -3) for x in ops.split(qkv, [1, 1, 1], -3))
        query_states = query_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)
        value_states = value_states.transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface(_eager_attention)
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, 1, is_causal=False)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.Wo(attn_output)
        if self.attention_dropout:
            attn_output = self.out_drop(attn_output)
        return attn_output, attn_weights


class ModernBertEncoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: ModernBertConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        if layer_idx:
            self.attn_norm = nn.LayerNorm(config.hidden_size, dtype, config.norm_bias)
        self.normed = bool(layer_idx)
        self.attn = ModernBertAttention(config, dtype)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, dtype, config.norm_bias)
        self.mlp = ModernBertMLP(config, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        attn_output, _ = self.attn(
            self.attn_norm(hidden_states) if self.normed else hidden_states, position_embeddings, mask
        )
        hidden_states = hidden_states + attn_output
        hidden_states = hidden_states + self.mlp(self.mlp_norm(hidden_states))
        return hidden_states


class ModernBertModel(nn.Module):
    def __init__(self, config: ModernBertConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ModernBertEmbeddings(config, dtype)
        layers, lead = config.num_hidden_layers, min(1, config.num_hidden_layers - 1)
        self.layers = nn.Stack(
            f"{path}layers",
            layers,
            lambda layer_idx: ModernBertEncoderLayer(config, dtype, layer_idx),
            period_of(config.layer_types[lead:]),
            lead,
        )
        self.final_norm = nn.LayerNorm(config.hidden_size, dtype, config.norm_bias)
        self.rotary_emb = ModernBertRotaryEmbedding(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        config = self.config
        position_ids = ops.arange(input_ids.shape[1]).unsqueeze(0)
        hidden_states = self.embeddings(input_ids)
        attention_mask_mapping = {
            FULL: create_bidirectional_mask(None),
            SLIDING: create_bidirectional_sliding_window_mask(hidden_states, config.sliding_window),
        }
        position_embeddings = {
            layer_type: self.rotary_emb(hidden_states, position_ids, layer_type)
            for layer_type in dict.fromkeys(config.layer_types)
        }
        for layer_idx, encoder_layer in zip(self.layers.indices, self.layers, strict=True):
            layer_type = config.layer_types[layer_idx]
            hidden_states = encoder_layer(
                hidden_states, attention_mask_mapping[layer_type], position_embeddings[layer_type]
            )
        hidden_states = self.final_norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class ModernBertPredictionHead(nn.Module):
    role = nn.HEAD

    def __init__(self, config: ModernBertConfig, dtype: DType) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, dtype, config.classifier_bias)
        self.act = nn.Activation(config.classifier_activation)
        self.norm = nn.LayerNorm(config.hidden_size, dtype, config.norm_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(hidden_states)))  # type: ignore[no-any-return]


class ModernBertForMaskedLM(CausalModel):
    cache_layers = 0

    def __init__(self, config: ModernBertConfig, dtype: DType) -> None:
        super().__init__()
        self.model = ModernBertModel(config, "model.", dtype)
        self.head = ModernBertPredictionHead(config, dtype)
        tied_to = self.model.embeddings.tok_embeddings if config.tie_word_embeddings else None
        self.decoder = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype, config.decoder_bias)

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
        if cache is not None or logits_to_keep:
            raise NotModelledError(f"generation with {self.name}, which fills in masked words", hint=FILLS_IN)
        if attention_mask is not None or positions is not None:
            raise NotModelledError(f"padding and positions of {self.name}", hint=COUNTED)
        last_hidden_state = self.model(input_ids)
        logits = self.decoder(self.head(last_hidden_state))
        loss = None if labels is None else token_loss(logits.float(), labels)
        return CausalOutput(logits, loss)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    name = architecture(config, ("ModernBertForMaskedLM", "ModernBertModel"), where)
    read = ModernBertConfig.read(config, where)
    if name == "ModernBertModel":
        parts = vars(ModernBertModel(read, "", dtype))
        return Counted(name, **{part: module for part, module in parts.items() if isinstance(module, nn.Module)})
    return ModernBertForMaskedLM(read, dtype)
