"""InternVL's tower, as `transformers/models/internvl/modeling_internvl.py` (5.23) writes it."""

from __future__ import annotations

from weigh.ghost import nn
from weigh.models.config import Pair
from weigh.models.parts import Parts
from weigh.models.towers.parts import Maker, Tower, Vision, patches
from weigh.records import dataclass


@dataclass(frozen=True)
class InternVLVision(Tower):
    """`InternVLVisionModel`."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    attention_bias: bool = False
    use_qk_norm: bool = False
    norm_type: str = "layer_norm"
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = True
    use_mean_pooling: bool = True

    def layer(self, make: Maker) -> nn.Module:
        """`InternVLVisionLayer`."""
        width = self.hidden_size
        norm = make.layer_norm if self.norm_type == "layer_norm" else make.rms_norm
        attention = make.attention(
            width, ("q_proj", "k_proj", "v_proj", "projection_layer"), self.attention_bias, out_bias=True
        )
        if self.use_qk_norm:
            attention.q_norm = make.rms_norm(width)  # type: ignore[attr-defined]
            attention.k_norm = make.rms_norm(width)  # type: ignore[attr-defined]
        return Parts(
            lambda_1=make.tensor(width),
            lambda_2=make.tensor(width),
            attention=attention,
            mlp=make.mlp(width, self.intermediate_size),
            layernorm_before=norm(width),
            layernorm_after=norm(width),
        )

    def layernorm(self, make: Maker) -> nn.Module | None:
        """Only where nothing is pooled."""
        return None if self.use_mean_pooling else make.layer_norm(self.hidden_size)

    def encoder(self, make: Maker) -> dict[str, nn.Module | None]:
        """The layers and the norm behind them, in upstream's order and under its names."""
        layers = make.stack(self.num_hidden_layers, lambda: self.layer(make))
        return {"encoder": Parts(layer=layers), "layernorm": self.layernorm(make)}

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width, positions = self.hidden_size, patches(self.image_size, self.patch_size) + 1
        return Vision(
            embeddings=Parts(
                cls_token=make.tensor(1, 1, width),
                mask_token=make.tensor(1, 1, width) if self.use_mask_token else None,
                position_embeddings=make.tensor(1, positions, width) if self.use_absolute_position_embeddings else None,
                patch_embeddings=Parts(projection=make.conv(self.num_channels, width, *self.patch_size)),
            ),
            **self.encoder(make),
        )


@dataclass(frozen=True)
class QianfanVision(InternVLVision):
    """`QianfanOCRVisionModel`: biases, and no encoder around the layers."""

    attention_bias: bool = True

    def encoder(self, make: Maker) -> dict[str, nn.Module | None]:
        """The norm stands before the layers that it follows."""
        layers = make.stack(self.num_hidden_layers, lambda: self.layer(make))
        return {"layernorm": self.layernorm(make), "layers": layers}
