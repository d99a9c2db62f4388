"""Towers that hear: Whisper's encoder and those made after it (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from weigh.dtypes import FLOAT32
from weigh.ghost import nn
from weigh.models.parts import Parts
from weigh.models.towers.parts import Audio, Maker, Tower
from weigh.records import dataclass


@dataclass(frozen=True)
class WhisperAudio(Tower):
    """`Qwen2AudioEncoder`, `VoxtralEncoder` and `AudioFlamingo3Encoder`, which are one."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 20
    num_mel_bins: int = 128
    max_source_positions: int = 1500

    aliases: ClassVar[Mapping[str, str]] = {
        "d_model": "hidden_size",
        "encoder_layers": "num_hidden_layers",
        "encoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
    }

    def layer(self, make: Maker) -> nn.Module:
        """`WhisperEncoderLayer`: keys have no bias."""
        width = self.hidden_size
        return Parts(
            self_attn=Parts(
                k_proj=make.linear(width, width, bias=False),
                v_proj=make.linear(width, width),
                q_proj=make.linear(width, width),
                out_proj=make.linear(width, width),
            ),
            self_attn_layer_norm=make.layer_norm(width),
            fc1=make.linear(width, self.intermediate_size),
            fc2=make.linear(self.intermediate_size, width),
            final_layer_norm=make.layer_norm(width),
        )

    def layers(self, make: Maker) -> nn.Module:
        """All of them."""
        return make.stack(self.num_hidden_layers, lambda: self.layer(make))

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width = self.hidden_size
        return Audio(
            conv1=make.conv(self.num_mel_bins, width, 3),
            conv2=make.conv(width, width, 3),
            embed_positions=make.table(self.max_source_positions, width),
            layers=self.layers(make),
            layer_norm=make.layer_norm(width),
        )


@dataclass(frozen=True)
class OmniAudio(WhisperAudio):
    """`Qwen2_5OmniAudioEncoder`: positions are computed, and it projects to the language model."""

    output_dim: int = 3584

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width = self.hidden_size
        return Audio(
            conv1=make.conv(self.num_mel_bins, width, 3),
            conv2=make.conv(width, width, 3),
            positional_embedding=Parts(positional_embedding=nn.buffer((self.max_source_positions, width), FLOAT32)),
            audio_bos_eos_token=make.table(2, self.output_dim),
            layers=self.layers(make),
            ln_post=make.layer_norm(width),
            proj=make.linear(width, self.output_dim),
        )
