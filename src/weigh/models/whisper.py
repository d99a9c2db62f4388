"""Whisper's tensors, as `transformers/models/whisper/modeling_whisper.py` (5.23) names them: counted, not run.

The encoder reads frames of a mel spectrogram through two convolutions; the layers are BART's, without a bias of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.bart import BartConfig, BartDecoderLayer, BartEncoderLayer, decoder_layout
from weigh.models.common import CausalModel
from weigh.models.config import Probability, architecture
from weigh.models.parts import Counted, Make, Parts


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


class WhisperEncoderLayer(BartEncoderLayer):
    key_bias = False


class WhisperDecoderLayer(BartDecoderLayer):
    key_bias = False


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    name = architecture(config, ("WhisperForConditionalGeneration", "WhisperForCausalLM", "WhisperModel"), where)
    read, make = WhisperConfig.read(config, where), Make(dtype)
    width = read.d_model
    frames = make.embedding(read.max_source_positions, width)
    frames.weight.requires_grad = False
    encoder = Parts(
        conv1=make.conv(read.num_mel_bins, width, 3),
        conv2=make.conv(width, width, 3),
        embed_positions=frames,
        layers=nn.Stack("model.encoder.layers", read.encoder_layers, lambda _: WhisperEncoderLayer(read, dtype)),
        layer_norm=make.norm(width),
    )
    decoder = Parts(
        embed_tokens=(tokens := make.embedding(read.vocab_size, width)),
        embed_positions=make.embedding(read.max_target_positions, width),
        layers=nn.Stack("model.decoder.layers", read.decoder_layers, lambda _: WhisperDecoderLayer(read, dtype)),
        layer_norm=make.norm(width),
    )
    both = name != "WhisperForCausalLM"
    kept = decoder_layout(read.decoder_layers, read.decoder_attention_heads, width, crossed=both)
    if name == "WhisperModel":
        return Counted(name, kept, encoder=encoder, decoder=decoder)
    model = Parts(encoder=encoder if both else None, decoder=decoder)
    return Counted(name, kept, model=model, proj_out=make.head(tokens, width, read.vocab_size))
