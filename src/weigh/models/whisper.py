"""Whisper, as `transformers/models/whisper/modeling_whisper.py` (5.23) writes it.

The encoder reads frames of a mel spectrogram through two convolutions, always as many; the layers are BART's, with
attention that scales its queries itself and makes everything contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.bart import (
    BartAttention,
    BartConfig,
    BartDecoderLayer,
    BartEncoderLayer,
    check_layerdrop,
    decoder_layout,
)
from weigh.models.common import Cache, CausalModel, LayerCache, check_positions, create_causal_mask
from weigh.models.config import Keys, Probability, architecture
from weigh.models.parts import Counted, Parts
from weigh.models.seq2seq import EncoderDecoderModel
from weigh.records import dataclass


@dataclass(frozen=True)
class WhisperConfig(BartConfig):
    """The settings of `WhisperConfig` that shape tensors."""

    vocab_size: int = 51865
    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_ffn_dim: int = 1536
    encoder_attention_heads: int = 6
    decoder_layers: int = 4
    decoder_ffn_dim: int = 1536
    decoder_attention_heads: int = 6
    dropout: Probability = 0.0
    max_source_positions: int = 1500
    max_target_positions: int = 448

    prefix = "Whisper"
    pre_norm = True

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Nothing of the spectrogram is masked at random."""
        super().settle(keys, found)
        keys.cannot_run("apply_spec_augment", "spectrograms that are masked at random")


class WhisperAttention(BartAttention):
    def query(self, hidden_states: Tensor) -> Tensor:
        """Scaled here, so that the order of the arithmetic is the original's."""
        return self.split(self.q_proj(hidden_states) * 0.125)

    def keys_and_values(self, current_states: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, N, T, H), each split as it is projected."""
        key_states = self.split(self.k_proj(current_states))
        value_states = self.split(self.v_proj(current_states))
        return key_states, value_states

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, N, S, H), contiguous."""
        return super().split(x).contiguous()


class WhisperEncoderLayer(BartEncoderLayer):
    key_bias = False
    attention_class = WhisperAttention


class WhisperDecoderLayer(BartDecoderLayer):
    key_bias = False
    attention_class = WhisperAttention


class Conv1d(nn.Module):
    """`nn.Conv1d` over windows of three frames."""

    def __init__(self, width_in: int, width_out: int, stride: int, dtype: DType) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.parameter((width_out, width_in, 3), dtype)
        self.bias = nn.parameter((width_out,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) to (B, out, T / stride)."""
        return ops.conv1d(x, self.weight, self.bias, padding=1, stride=self.stride)


class WhisperEncoder(nn.Module):
    def __init__(self, config: WhisperConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.conv1 = Conv1d(config.num_mel_bins, width, 1, dtype)
        self.conv2 = Conv1d(width, width, 2, dtype)
        self.embed_positions = nn.Embedding(config.max_source_positions, width, dtype)
        self.embed_positions.weight.requires_grad = False
        layers = config.encoder_layers
        self.layers = nn.Stack(f"{path}.layers", layers, lambda _: WhisperEncoderLayer(config, dtype))
        self.layer_norm = nn.LayerNorm(width, dtype)

    def forward(self, input_features: Tensor) -> Tensor:
        """A spectrogram (B, bins, frames) to (B, frames / 2, D)."""
        check_layerdrop(self, self.config.encoder_layerdrop)
        inputs_embeds = ops.gelu(self.conv1(input_features))
        inputs_embeds = ops.gelu(self.conv2(inputs_embeds))
        inputs_embeds = inputs_embeds.permute(0, 2, 1)
        all_positions = ops.arange(self.config.max_source_positions)
        hidden_states = inputs_embeds + self.embed_positions(all_positions)
        hidden_states = ops.dropout(hidden_states, self.config.dropout, self.training)
        for encoder_layer in self.layers:
            hidden_states = encoder_layer(hidden_states, None)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class WhisperPositionalEmbedding(nn.Embedding):
    def forward(self, indices: Tensor) -> Tensor:
        """Positions (B, S) to (B, S, D)."""
        return ops.index_rows(self.weight, indices)


class WhisperDecoder(nn.Module):
    def __init__(self, config: WhisperConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, dtype)
        self.embed_positions = WhisperPositionalEmbedding(config.max_target_positions, config.d_model, dtype)
        layers = config.decoder_layers
        self.layers = nn.Stack(f"{path}.layers", layers, lambda _: WhisperDecoderLayer(config, dtype), tail=1)
        self.layer_norm = nn.LayerNorm(config.d_model, dtype)

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor | None, cache: Cache | None) -> Tensor:
        config = self.config
        check_layerdrop(self, config.decoder_layerdrop)
        batch, length = input_ids.shape
        check_positions("Whisper", "max_target_positions", config.max_target_positions, length, cache)
        inputs_embeds = self.embed_tokens(input_ids)
        position_ids = ops.arange(length) + (cache.offset(None) if cache is not None else 0)
        position_ids = ops.repeat(position_ids.unsqueeze(0), batch, 1)
        positions = self.embed_positions(position_ids)
        hidden_states = inputs_embeds + positions
        hidden_states = ops.dropout(hidden_states, config.dropout, self.training)
        causal_mask = create_causal_mask(inputs_embeds, cache, position_ids)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, causal_mask, encoder_hidden_states, None, cache)
        if cache is not None:
            cache.advance(length)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class WhisperModel(nn.Module):
    def __init__(self, config: WhisperConfig, path: str, dtype: DType) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(config, f"{path}encoder", dtype)
        self.decoder = WhisperDecoder(config, f"{path}decoder", dtype)


class WhisperForConditionalGeneration(EncoderDecoderModel):
    def __init__(self, config: WhisperConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.decoder_layers
        self.features = (config.num_mel_bins, 2 * config.max_source_positions)
        self.model = WhisperModel(config, "model.", dtype)
        self.proj_out = nn.Head(self.model.decoder.embed_tokens, config.d_model, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads, frames = config.decoder_attention_heads, config.max_source_positions
        return decoder_layout(config.decoder_layers, heads, config.d_model, encoded=frames)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """A spectrogram to the encoder's output; nothing of it is masked."""
        return self.model.encoder(input_ids)  # type: ignore[no-any-return]

    def decode(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, cache: Cache | None) -> Tensor:
        return self.model.decoder(decoder_input_ids, encoder_hidden_states, cache)  # type: ignore[no-any-return]

    def logits(self, sequence_output: Tensor) -> Tensor:
        return self.proj_out(sequence_output)  # type: ignore[no-any-return]


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`; without its head, or its encoder, it is counted."""
    name = architecture(config, ("WhisperForConditionalGeneration", "WhisperForCausalLM", "WhisperModel"), where)
    read = WhisperConfig.read(config, where)
    if name == "WhisperForConditionalGeneration":
        return WhisperForConditionalGeneration(read, dtype)
    layers, heads, crossed = read.decoder_layers, read.decoder_attention_heads, name == "WhisperModel"
    kept = decoder_layout(layers, heads, read.d_model, crossed, read.max_source_positions)
    if name == "WhisperModel":
        whole = WhisperModel(read, "", dtype)
        return Counted(name, kept, encoder=whole.encoder, decoder=whole.decoder)
    decoder = WhisperDecoder(read, "model.decoder", dtype)
    head = nn.Head(decoder.embed_tokens, read.d_model, read.vocab_size, dtype)
    return Counted(name, kept, model=Parts(decoder=decoder), proj_out=head)
