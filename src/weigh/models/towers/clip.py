"""Towers that are CLIP's or nearly: CLIP, SigLIP, SigLIP 2, and those of Idefics (transformers 5.23)."""

from __future__ import annotations

from typing import Any, ClassVar

from weigh.ghost import nn
from weigh.models.config import Keys, Pair
from weigh.models.parts import Parts, positions
from weigh.models.towers.parts import Maker, Tower, Vision, patches
from weigh.records import dataclass

PROJECTIONS = ("k_proj", "v_proj", "q_proj", "out_proj")


@dataclass(frozen=True)
class ClipVision(Tower):
    """`CLIPVisionModel`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: Pair = (224, 224)
    patch_size: Pair = (32, 32)

    order: ClassVar[tuple[str, ...]] = ("self_attn", "layer_norm1", "mlp", "layer_norm2")
    """Of the parts of a layer."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The heads divide the width."""
        keys.divides("num_attention_heads", found["num_attention_heads"], "hidden_size", found["hidden_size"])

    def layer(self, make: Maker) -> nn.Module:
        """`CLIPEncoderLayer`."""
        parts = {
            "layer_norm1": make.layer_norm(self.hidden_size),
            "self_attn": make.attention(self.hidden_size, PROJECTIONS),
            "layer_norm2": make.layer_norm(self.hidden_size),
            "mlp": make.mlp(self.hidden_size, self.intermediate_size),
        }
        return Parts(**{name: parts[name] for name in self.order})

    def encoder(self, make: Maker) -> nn.Module:
        """`CLIPEncoder`."""
        return Parts(layers=make.stack(self.num_hidden_layers, lambda: self.layer(make)))

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width, count = self.hidden_size, patches(self.image_size, self.patch_size) + 1
        return Vision(
            embeddings=Parts(
                class_embedding=make.tensor(width),
                patch_embedding=make.conv(self.num_channels, width, *self.patch_size, bias=False),
                position_embedding=make.table(count, width),
                position_ids=positions(count),
            ),
            pre_layrnorm=make.layer_norm(width),
            encoder=self.encoder(make),
            post_layernorm=make.layer_norm(width),
        )


@dataclass(frozen=True)
class SiglipVision(ClipVision):
    """`SiglipVisionModel`: no class token, and a head that pools with attention."""

    patch_size: Pair = (16, 16)
    vision_use_head: bool = True

    order: ClassVar[tuple[str, ...]] = ("layer_norm1", "self_attn", "layer_norm2", "mlp")

    def embeddings(self, make: Maker) -> nn.Module:
        """`SiglipVisionEmbeddings`."""
        count = patches(self.image_size, self.patch_size)
        return Parts(
            patch_embedding=make.conv(self.num_channels, self.hidden_size, *self.patch_size),
            position_embedding=make.table(count, self.hidden_size),
            position_ids=positions(count),
        )

    def head(self, make: Maker) -> nn.Module:
        """`SiglipMultiheadAttentionPoolingHead`."""
        width = self.hidden_size
        return Parts(
            probe=make.tensor(1, 1, width),
            attention=Parts(
                in_proj_weight=make.tensor(3 * width, width),
                in_proj_bias=make.tensor(3 * width),
                out_proj=make.linear(width, width),
            ),
            layernorm=make.layer_norm(width),
            mlp=make.mlp(width, self.intermediate_size),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Vision(
            embeddings=self.embeddings(make),
            encoder=self.encoder(make),
            post_layernorm=make.layer_norm(self.hidden_size),
            head=self.head(make) if self.vision_use_head else None,
        )


@dataclass(frozen=True)
class Siglip2Vision(SiglipVision):
    """`Siglip2VisionModel`: pictures come as patches."""

    num_patches: int = 256

    def embeddings(self, make: Maker) -> nn.Module:
        """`Siglip2VisionEmbeddings`."""
        return Parts(
            patch_embedding=make.linear(self.num_channels * self.patch_size[0] * self.patch_size[1], self.hidden_size),
            position_embedding=make.table(self.num_patches, self.hidden_size),
        )


@dataclass(frozen=True)
class Idefics2Vision(SiglipVision):
    """`Idefics2VisionTransformer`."""

    patch_size: Pair = (32, 32)
    vision_use_head: bool = False

    order = ClipVision.order

    def embeddings(self, make: Maker) -> nn.Module:
        """`Idefics2VisionEmbeddings`."""
        return Parts(
            patch_embedding=make.conv(self.num_channels, self.hidden_size, *self.patch_size),
            position_embedding=make.table(patches(self.image_size, self.patch_size), self.hidden_size),
        )


@dataclass(frozen=True)
class Idefics3Vision(Idefics2Vision):
    """`Idefics3VisionTransformer`, and SmolVLM's."""

    hidden_size: int = 1152
    num_attention_heads: int = 16


@dataclass(frozen=True)
class VideoLlama3Vision(SiglipVision):
    """`VideoLlama3VisionModel`: rotary positions, of height and width in turn."""

    vision_use_head: bool = False

    def embeddings(self, make: Maker) -> nn.Module:
        """`VideoLlama3VisionEmbeddings`."""
        return Parts(patch_embedding=make.conv(self.num_channels, self.hidden_size, *self.patch_size))

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Vision(
            rotary_pos_emb=make.rotary((self.hidden_size // self.num_attention_heads // 2 + 1) // 2),
            embeddings=self.embeddings(make),
            encoder=self.encoder(make),
            post_layernorm=make.layer_norm(self.hidden_size),
        )
