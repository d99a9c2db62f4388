"""Pixtral's tower, as `transformers/models/pixtral/modeling_pixtral.py` (5.23) writes it."""

from __future__ import annotations

from weigh.ghost import nn
from weigh.models.config import Pair
from weigh.models.parts import Parts
from weigh.models.towers.parts import Maker, Tower, Vision
from weigh.records import dataclass


@dataclass(frozen=True)
class PixtralVision(Tower):
    """`PixtralVisionModel`."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: Pair = (1024, 1024)
    patch_size: Pair = (16, 16)

    def layer(self, make: Maker) -> nn.Module:
        """`PixtralAttentionLayer`."""
        width = self.hidden_size
        return Parts(
            attention_norm=make.rms_norm(width),
            feed_forward=make.gated_mlp(width, self.intermediate_size),
            attention=make.attention(width, ("k_proj", "v_proj", "q_proj", "o_proj"), bias=False),
            ffn_norm=make.rms_norm(width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Vision(
            patch_conv=make.conv(self.num_channels, self.hidden_size, *self.patch_size, bias=False),
            ln_pre=make.rms_norm(self.hidden_size),
            transformer=Parts(layers=make.stack(self.num_hidden_layers, lambda: self.layer(make))),
            patch_positional_embedding=make.rotary(self.hidden_size // self.num_attention_heads // 2),
        )
