"""BART, as `transformers/models/bart/modeling_bart.py` (5.23) writes it, and what its relatives change.

Shapes: B batch, T length of the source, S length of the target, D model width, V vocabulary.

The relatives differ in where the norms stand, in the positions and in the logits' bias: switches of their configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import FLOAT16, FLOAT32, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.bert import eager_attention, position_ids_from_input_ids
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    check_positions,
    create_bidirectional_mask,
    create_causal_mask,
    slice_logits_to_keep,
    token_loss,
)
from weigh.models.config import COUNTED, FamilyConfig, Keys, Probability, architecture
from weigh.models.seq2seq import EncoderDecoderModel, SharedEmbedding
from weigh.records import dataclass

LEARNED, OFFSET, FROZEN, BUFFER = "learned", "learned from the third row on", "sinusoidal", "sinusoidal buffer"
"""Where positions come from: a table that is trained (BART's begins with two unused rows), or one that is computed,
kept as a frozen parameter or as a buffer."""


@dataclass(frozen=True)
class BartConfig(FamilyConfig):
    """The settings of `BartConfig` that shape memory."""

    vocab_size: int = 50265
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    encoder_layerdrop: Probability = 0.0
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    decoder_layerdrop: Probability = 0.0
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0

    aliases: ClassVar[Mapping[str, str]] = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    prefix: ClassVar[str] = "Bart"
    """Of upstream's class names."""
    pre_norm: ClassVar[bool] = False
    """The norms stand before attention and MLP, not after."""
    embedding_norm: ClassVar[bool] = True
    """`layernorm_embedding`."""
    norm_before_positions: ClassVar[bool] = False
    """In the decoder, `layernorm_embedding` comes before the positions are added, and nothing is scaled before it."""
    final_norm: ClassVar[bool] = False
    """`layer_norm`."""
    embedding_scales: ClassVar[bool] = True
    """The embedding scales what it finds, not the stack that asks it."""
    positions: ClassVar[str] = OFFSET
    logits_bias: ClassVar[bool] = True
    """`final_logits_bias`, a buffer."""
    keeps_mask: ClassVar[bool] = False
    """The decoder's mask of ones lives as long as its run."""
    keeps_position_ids: ClassVar[bool] = True
    """So do the numbers of its positions."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        for part in ("encoder", "decoder"):
            keys.divides(f"{part}_attention_heads", found[f"{part}_attention_heads"], "d_model", found["d_model"])
        nn.activation(found["activation_function"])
        keys.refuse("tie_word_embeddings", f"{cls.prefix} with untied embeddings", unless=True)


class BartAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(
        self, width: int, heads: int, dropout: float, dtype: DType, is_causal: bool = False, key_bias: bool = True
    ) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.dropout = dropout
        self.is_causal = is_causal
        self.k_proj = nn.Linear(width, width, dtype, key_bias)
        self.v_proj = nn.Linear(width, width, dtype, bias=True)
        self.q_proj = nn.Linear(width, width, dtype, bias=True)
        self.out_proj = nn.Linear(width, width, dtype, bias=True)

    def query(self, hidden_states: Tensor) -> Tensor:
        """The queries (B, N, S, H)."""
        return self.split(self.q_proj(hidden_states))

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, N, S, H)."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def keys_and_values(self, current_states: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, N, T, H), projected first and then split."""
        key_states = self.k_proj(current_states)
        value_states = self.v_proj(current_states)
        key_states = self.split(key_states)
        value_states = self.split(value_states)
        return key_states, value_states

    def forward(
        self, hidden_states: Tensor, key_value_states: Tensor | None, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_states = self.query(hidden_states)
        current_states = key_value_states if key_value_states is not None else hidden_states
        crossed = cache.crossed(self.path) if cache is not None and key_value_states is not None else None
        if crossed is not None:
            key_states, value_states = crossed
        else:
            key_states, value_states = self.keys_and_values(current_states)
            if cache is not None and key_value_states is not None:
                key_states, value_states = cache.cross(key_states, value_states, self.path)
            elif cache is not None:
                key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.dropout if self.training else 0.0
        attention = attention_interface(eager_attention)
        attn_output, attn_weights = attention(
            query_states, key_states, value_states, mask, dropout, 1, is_causal=self.is_causal
        )
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.out_proj(attn_output)
        return attn_output, attn_weights


class BartLayer(nn.Module):
    """What the layers of both stacks share: the MLP, and the norms before or after."""

    role = nn.BLOCK
    key_bias: ClassVar[bool] = True
    attention_class: ClassVar[type[BartAttention]] = BartAttention

    def add_mlp(self, config: BartConfig, inner: int, dtype: DType) -> None:
        """The MLP and the last norm."""
        self.fc1 = nn.MlpLinear(config.d_model, inner, dtype, bias=True)
        self.fc2 = nn.MlpLinear(inner, config.d_model, dtype, bias=True)
        self.final_layer_norm = nn.LayerNorm(config.d_model, dtype)
        self.activation_fn = nn.Activation(config.activation_function)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.pre_norm = config.pre_norm

    def attend(self, config: BartConfig, heads: int, dtype: DType, is_causal: bool = False) -> BartAttention:
        """An attention."""
        return self.attention_class(config.d_model, heads, config.attention_dropout, dtype, is_causal, self.key_bias)

    def mlp(self, hidden_states: Tensor) -> Tensor:
        """The MLP around which the residual goes."""
        residual = hidden_states
        if self.pre_norm:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.activation_fn(self.fc1(hidden_states))
        hidden_states = self.activation_dropout(hidden_states)
        hidden_states = self.fc2(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = residual + hidden_states
        if not self.pre_norm:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states


class BartEncoderLayer(BartLayer):
    def __init__(self, config: BartConfig, dtype: DType) -> None:
        super().__init__()
        self.self_attn = self.attend(config, config.encoder_attention_heads, dtype)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, dtype)
        self.add_mlp(config, config.encoder_ffn_dim, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        residual = hidden_states
        if self.pre_norm:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, None, mask, None)
        hidden_states = self.dropout(hidden_states)
        hidden_states = residual + hidden_states
        if not self.pre_norm:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(hidden_states)
        if hidden_states.dtype is FLOAT16:
            if not self.pre_norm:
                what = "an encoder in fp16 that looks for infinities in what its layers make"
                raise NotModelledError(what, hint="Use bf16 or fp32, or autocast over fp32 weights.")
            hidden_states = ops.clamp_range(hidden_states)
        return hidden_states


class BartDecoderLayer(BartLayer):
    positional = 3

    def __init__(self, config: BartConfig, dtype: DType) -> None:
        super().__init__()
        self.self_attn = self.attend(config, config.decoder_attention_heads, dtype, is_causal=True)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, dtype)
        self.encoder_attn = self.attend(config, config.decoder_attention_heads, dtype)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model, dtype)
        self.add_mlp(config, config.decoder_ffn_dim, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        if self.pre_norm:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, None, mask, cache)
        hidden_states = self.dropout(hidden_states)
        hidden_states = residual + hidden_states
        if not self.pre_norm:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        if encoder_hidden_states is not None:
            residual = hidden_states
            if self.pre_norm:
                hidden_states = self.encoder_attn_layer_norm(hidden_states)
            hidden_states, _ = self.encoder_attn(hidden_states, encoder_hidden_states, encoder_attention_mask, cache)
            hidden_states = self.dropout(hidden_states)
            hidden_states = residual + hidden_states
            if not self.pre_norm:
                hidden_states = self.encoder_attn_layer_norm(hidden_states)
        residual = hidden_states
        return self.mlp(hidden_states)


class Positions(nn.Module):
    """`embed_positions`, of any of the kinds above."""

    role = nn.EMBEDDING

    def __init__(self, config: BartConfig, dtype: DType) -> None:
        super().__init__()
        self.kind, self.rows = config.positions, config.max_position_embeddings
        rows = self.rows + 2 if self.kind in (OFFSET, BUFFER) else self.rows
        if self.kind == BUFFER:
            self.weights = nn.buffer((rows, config.d_model), dtype)
        else:
            self.weight = nn.parameter((rows, config.d_model), dtype)
            self.weight.requires_grad = self.kind != FROZEN

    def forward(self, input_ids: Tensor, past: Size, position_ids: Tensor | None) -> Tensor:
        """The positions of the new tokens: (B, S, D), or (S, D) where all sequences share them."""
        batch, length = input_ids.shape
        if self.kind == BUFFER:
            with no_grad():
                return self._from_buffer(input_ids)
        if position_ids is None:
            position_ids = ops.arange(length)
            if self.kind == OFFSET:
                position_ids = position_ids.expand(batch, length)
        elif self.kind == OFFSET:
            position_ids = position_ids.unsqueeze(0)
        if self.kind == OFFSET:
            return ops.embedding(position_ids + 2, self.weight)
        return ops.embedding(position_ids, self.weight)

    def _from_buffer(self, input_ids: Tensor) -> Tensor:
        batch, length = input_ids.shape
        position_ids = position_ids_from_input_ids(input_ids)
        return ops.index_select(self.weights, position_ids.view(-1)).view(batch, length, self.weights.shape[-1])


class BartScaledWordEmbedding(SharedEmbedding):
    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids to scaled embeddings."""
        return super().forward(input_ids) * 1.0


def check_layerdrop(stack: nn.Module, layerdrop: float) -> None:
    """Raise `NotModelledError` where layers are left out at random."""
    if stack.training and layerdrop:
        hint = "Set encoder_layerdrop and decoder_layerdrop of the config to 0: no step needs more than that one."
        raise NotModelledError("layers that are left out at random (layerdrop)", where=stack.path, hint=hint)


class BartStack(nn.Module):
    """What encoder and decoder share: embeddings, positions and norms."""

    def __init__(self, config: BartConfig, path: str, shared: nn.Embedding | None, dtype: DType) -> None:
        super().__init__()
        self.config = config
        own = shared or nn.Embedding(config.vocab_size, config.d_model, dtype)
        self.embed_tokens = (BartScaledWordEmbedding if config.embedding_scales else SharedEmbedding)(own)
        self.embed_positions = Positions(config, dtype)
        self.layers = self.stack(path, dtype)
        if config.embedding_norm:
            self.layernorm_embedding = nn.LayerNorm(config.d_model, dtype)
        if config.final_norm:
            self.layer_norm = nn.LayerNorm(config.d_model, dtype)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids to scaled embeddings."""
        inputs_embeds: Tensor = self.embed_tokens(input_ids)
        return inputs_embeds if self.config.embedding_scales else inputs_embeds * 1.0

    def stack(self, path: str, dtype: DType) -> nn.Stack:
        """The layers."""
        raise NotImplementedError


class BartEncoder(BartStack):
    def stack(self, path: str, dtype: DType) -> nn.Stack:
        config = self.config
        return nn.Stack(f"{path}.layers", config.encoder_layers, lambda _: BartEncoderLayer(config, dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        config = self.config
        check_layerdrop(self, config.encoder_layerdrop)
        check_positions(config.prefix, "max_position_embeddings", self.embed_positions.rows, input_ids.shape[1], None)
        inputs_embeds = self.embed(input_ids)
        embed_pos = self.embed_positions(input_ids, 0, None)
        hidden_states = inputs_embeds + embed_pos
        if config.embedding_norm:
            hidden_states = self.layernorm_embedding(hidden_states)
        hidden_states = ops.dropout(hidden_states, config.dropout, self.training)
        mask = create_bidirectional_mask(attention_mask)
        for encoder_layer in self.layers:
            hidden_states = encoder_layer(hidden_states, mask)
        if config.final_norm:
            hidden_states = self.layer_norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class BartDecoder(BartStack):
    def stack(self, path: str, dtype: DType) -> nn.Stack:
        config = self.config
        return nn.Stack(f"{path}.layers", config.decoder_layers, lambda _: BartDecoderLayer(config, dtype), tail=1)

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor | None, cache: Cache | None) -> Tensor:
        config = self.config
        check_layerdrop(self, config.decoder_layerdrop)
        check_positions(config.prefix, "max_position_embeddings", self.embed_positions.rows, input_ids.shape[1], cache)
        inputs_embeds = self.embed_tokens(input_ids) if config.norm_before_positions else self.embed(input_ids)
        batch_size, seq_length = input_ids.shape
        past = cache.length if cache is not None else 0
        position_ids: Tensor | None = None
        if config.positions != BUFFER:
            position_ids = ops.arange(seq_length) + (cache.offset(None) if cache is not None else 0)
        attention_mask = ops.ones((batch_size, past + seq_length), FLOAT32)
        causal_mask = create_causal_mask(inputs_embeds, cache, None, attention_mask)
        if not config.keeps_mask:
            del attention_mask
        encoder_attention_mask = create_bidirectional_mask(cache.encoder_mask if cache is not None else None)
        positions = self.embed_positions(input_ids, past, position_ids)
        if not config.keeps_position_ids:
            del position_ids
        if config.norm_before_positions:
            inputs_embeds = self.layernorm_embedding(inputs_embeds)
        hidden_states = inputs_embeds + positions
        if config.embedding_norm and not config.norm_before_positions:
            hidden_states = self.layernorm_embedding(hidden_states)
        hidden_states = ops.dropout(hidden_states, config.dropout, self.training)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(
                hidden_states, causal_mask, encoder_hidden_states, encoder_attention_mask, cache
            )
        if cache is not None:
            cache.advance(seq_length)
        if config.final_norm:
            hidden_states = self.layer_norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class BartModel(nn.Module):
    def __init__(self, config: BartConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model, dtype)
        self.encoder = BartEncoder(config, f"{path}encoder", self.shared, dtype)
        self.decoder = BartDecoder(config, f"{path}decoder", self.shared, dtype)


def decoder_layout(
    layers: int, heads: int, width: int, crossed: bool = True, encoded: int | None = None
) -> tuple[LayerCache, ...]:
    """The cache of decoder layers whose heads share the width: self-attention first, then cross-attention.

    `encoded` is how many positions the encoder always has, if it does.
    """
    own = LayerCache(layout.FULL, heads, width // heads, width // heads)
    cross = LayerCache(layout.CROSS, heads, width // heads, width // heads, encoded)
    return (own,) * layers + ((cross,) * layers if crossed else ())


class BartForConditionalGeneration(EncoderDecoderModel):
    def __init__(self, config: BartConfig, dtype: DType, name: str = "BartForConditionalGeneration") -> None:
        super().__init__()
        self.config, self._name = config, name
        self.cache_layers = config.decoder_layers
        self.model = BartModel(config, "model.", dtype)
        if config.logits_bias:
            self.final_logits_bias = nn.buffer((1, config.vocab_size), dtype)
        self.lm_head = nn.Head(self.model.shared, config.d_model, config.vocab_size, dtype)

    @property
    def name(self) -> str:
        return self._name

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return decoder_layout(self.config.decoder_layers, self.config.decoder_attention_heads, self.config.d_model)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model.encoder(input_ids, attention_mask)  # type: ignore[no-any-return]

    def decode(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, cache: Cache | None) -> Tensor:
        return self.model.decoder(decoder_input_ids, encoder_hidden_states, cache)  # type: ignore[no-any-return]

    def logits(self, sequence_output: Tensor) -> Tensor:
        lm_logits: Tensor = self.lm_head(sequence_output)
        if self.config.logits_bias:
            lm_logits = lm_logits + self.final_logits_bias
        return lm_logits


class BartDecoderWrapper(nn.Module):
    def __init__(self, config: BartConfig, dtype: DType) -> None:
        super().__init__()
        self.decoder = BartDecoder(config, "model.decoder", None, dtype)


class BartForCausalLM(CausalModel):
    """The decoder alone, whose cross-attention nothing reads."""

    takes_positions = False
    head_name: ClassVar[str] = "lm_head"

    def __init__(self, config: BartConfig, dtype: DType, name: str = "BartForCausalLM") -> None:
        super().__init__()
        self.config, self._name = config, name
        self.cache_layers = config.decoder_layers
        self.model = BartDecoderWrapper(config, dtype)
        self.lm_head = nn.Head(self.model.decoder.embed_tokens, config.d_model, config.vocab_size, dtype)

    @property
    def name(self) -> str:
        return self._name

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return decoder_layout(config.decoder_layers, config.decoder_attention_heads, config.d_model, crossed=False)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        if attention_mask is not None or positions is not None:
            raise NotModelledError(f"padding and positions of {self.name}", hint=COUNTED)
        hidden_states = self.model.decoder(input_ids, None, cache)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None if labels is None else token_loss(logits, labels)
        return CausalOutput(logits, loss, cache)


def build_as(
    settings: type[BartConfig], config: Mapping[str, Any], dtype: DType, where: str, seq2seq: str = ""
) -> CausalModel:
    """The model of a relative; `seq2seq` is the name of its class with a head, where it is not the usual one."""
    seq2seq = seq2seq or f"{settings.prefix}ForConditionalGeneration"
    name = architecture(config, (seq2seq, f"{settings.prefix}ForCausalLM"), where)
    read = settings.read(config, where)
    if name == seq2seq:
        return BartForConditionalGeneration(read, dtype, name)
    return BartForCausalLM(read, dtype, name)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(BartConfig, config, dtype, where)
