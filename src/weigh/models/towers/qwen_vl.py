"""The vision transformers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, and those made after them (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from weigh.ghost import nn
from weigh.models.config import Pair
from weigh.models.parts import Parts
from weigh.models.towers.parts import Maker, Tower, Vision
from weigh.records import dataclass


@dataclass(frozen=True)
class QwenVision(Tower):
    """What they share: patches in time and space, blocks with one projection for queries, keys and values."""

    depth: int = 32
    hidden_size: int = 3584
    num_heads: int = 16
    in_channels: int = 3
    patch_size: Pair = (14, 14)
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    aliases: ClassVar[Mapping[str, str]] = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}

    @property
    def width(self) -> int:
        """Of the blocks."""
        return self.hidden_size

    @property
    def out_width(self) -> int:
        """Of a token for the language model."""
        raise NotImplementedError

    @property
    def merged(self) -> int:
        """Width of the patches that make one token."""
        return self.width * self.spatial_merge_size**2

    def patch_embed(self, make: Maker, bias: bool) -> nn.Module:
        """The convolution that makes patches."""
        return Parts(
            proj=make.conv(self.in_channels, self.width, self.temporal_patch_size, *self.patch_size, bias=bias)
        )

    def attention(self, make: Maker) -> nn.Module:
        """`VisionAttention`."""
        return Parts(qkv=make.linear(self.width, 3 * self.width), proj=make.linear(self.width, self.width))

    def block(self, make: Maker) -> nn.Module:
        """A layer."""
        raise NotImplementedError

    def blocks(self, make: Maker) -> nn.Module:
        """All layers."""
        return make.stack(self.depth, lambda: self.block(make))

    def rotary(self, make: Maker) -> nn.Module:
        """Frequencies of height and width in turn."""
        return make.rotary((self.width // self.num_heads // 2 + 1) // 2)

    def sequential_merger(self, make: Maker, norm: nn.Module) -> nn.Module:
        """`PatchMerger`."""
        merged = self.merged
        return Parts(
            ln_q=norm, mlp=make.sequence(make.linear(merged, merged), None, make.linear(merged, self.out_width))
        )


@dataclass(frozen=True)
class Qwen2VLVision(QwenVision):
    """`Qwen2VisionTransformerPretrainedModel`, whose `hidden_size` is the language model's."""

    embed_dim: int = 1280
    mlp_ratio: int = 4

    @property
    def width(self) -> int:
        """Of the blocks."""
        return self.embed_dim

    @property
    def out_width(self) -> int:
        """Of a token for the language model."""
        return self.hidden_size

    def block(self, make: Maker) -> nn.Module:
        """`Qwen2VLVisionBlock`."""
        width = self.width
        return Parts(
            norm1=make.layer_norm(width),
            norm2=make.layer_norm(width),
            attn=self.attention(make),
            mlp=make.mlp(width, width * self.mlp_ratio),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Vision(
            patch_embed=self.patch_embed(make, bias=False),
            rotary_pos_emb=self.rotary(make),
            blocks=self.blocks(make),
            merger=self.sequential_merger(make, make.layer_norm(self.width)),
        )


@dataclass(frozen=True)
class Qwen25VLVision(QwenVision):
    """`Qwen2_5_VisionTransformerPretrainedModel`."""

    intermediate_size: int = 3420
    out_hidden_size: int = 3584

    @property
    def out_width(self) -> int:
        """Of a token for the language model."""
        return self.out_hidden_size

    def block(self, make: Maker) -> nn.Module:
        """`Qwen2_5_VLVisionBlock`."""
        return Parts(
            norm1=make.rms_norm(self.width),
            norm2=make.rms_norm(self.width),
            attn=self.attention(make),
            mlp=make.gated_mlp(self.width, self.intermediate_size, bias=True),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Vision(
            patch_embed=self.patch_embed(make, bias=False),
            rotary_pos_emb=self.rotary(make),
            blocks=self.blocks(make),
            merger=self.sequential_merger(make, make.rms_norm(self.width)),
        )


@dataclass(frozen=True)
class Exaone45Vision(Qwen25VLVision):
    """`Exaone4_5_VisionModel`: Qwen2.5-VL's with fewer heads of keys and values."""

    num_key_value_heads: int = 8

    def attention(self, make: Maker) -> nn.Module:
        """`Exaone4_5_VisionAttention`."""
        groups = self.num_heads + 2 * self.num_key_value_heads
        return Parts(
            proj=make.linear(self.width, self.width),
            qkv=make.linear(self.width, groups * (self.width // self.num_heads)),
        )


@dataclass(frozen=True)
class OmniVision(Qwen25VLVision):
    """`Qwen2_5OmniVisionEncoder`: Qwen2.5-VL's with three projections."""

    def attention(self, make: Maker) -> nn.Module:
        """`Qwen2_5OmniVisionAttention`."""
        return Parts(**{name: make.linear(self.width, self.width) for name in ("q", "k", "v", "proj")})


@dataclass(frozen=True)
class Qwen35Vision(QwenVision):
    """`Qwen3_5VisionModel`: a table of positions, and mergers that norm."""

    depth: int = 27
    hidden_size: int = 1152
    patch_size: Pair = (16, 16)
    intermediate_size: int = 4304
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304

    @property
    def out_width(self) -> int:
        """Of a token for the language model."""
        return self.out_hidden_size

    @property
    def deepstack(self) -> int:
        """How many layers reach into the language model."""
        return 0

    def block(self, make: Maker) -> nn.Module:
        """`Qwen3VLVisionBlock`."""
        width, names = self.width, ("linear_fc1", "linear_fc2")
        return Parts(
            norm1=make.layer_norm(width),
            norm2=make.layer_norm(width),
            attn=self.attention(make),
            mlp=make.mlp(width, self.intermediate_size, names=names),
        )

    def merger(self, make: Maker, normed: int) -> nn.Module:
        """`Qwen3VLVisionPatchMerger`."""
        return Parts(
            norm=make.layer_norm(normed),
            linear_fc1=make.linear(self.merged, self.merged),
            linear_fc2=make.linear(self.merged, self.out_width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        return Vision(
            patch_embed=self.patch_embed(make, bias=True),
            pos_embed=make.table(self.num_position_embeddings, self.width),
            rotary_pos_emb=self.rotary(make),
            blocks=self.blocks(make),
            merger=self.merger(make, self.width),
            deepstack_merger_list=make.stack(self.deepstack, lambda: self.merger(make, self.merged))
            if self.deepstack
            else None,
        )


@dataclass(frozen=True)
class Qwen3VLVision(Qwen35Vision):
    """`Qwen3VLVisionModel`: some of its layers reach into the language model."""

    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    @property
    def deepstack(self) -> int:
        """How many layers reach into the language model."""
        return len(self.deepstack_visual_indexes)


@dataclass(frozen=True)
class Glm4vVision(QwenVision):
    """`Glm4vVisionModel`."""

    depth: int = 24
    hidden_size: int = 1536
    num_heads: int = 12
    intermediate_size: int = 13696
    out_hidden_size: int = 4096
    image_size: Pair = (336, 336)
    attention_bias: bool = False

    @property
    def out_width(self) -> int:
        """Of a token for the language model."""
        return self.out_hidden_size

    def attention(self, make: Maker) -> nn.Module:
        """`Glm4vVisionAttention`."""
        return Parts(
            qkv=make.linear(self.width, 3 * self.width, self.attention_bias),
            proj=make.linear(self.width, self.width, bias=False),
        )

    def block(self, make: Maker) -> nn.Module:
        """`Glm4vVisionBlock`, whose MLP is as wide as the language model."""
        return Parts(
            norm1=make.rms_norm(self.width),
            norm2=make.rms_norm(self.width),
            attn=self.attention(make),
            mlp=make.gated_mlp(self.width, self.out_width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        out, count = self.out_width, (self.image_size[0] // self.patch_size[0]) ** 2
        return Vision(
            embeddings=Parts(position_embedding=make.table(count, self.width)),
            patch_embed=self.patch_embed(make, bias=True),
            rotary_pos_emb=self.rotary(make),
            blocks=self.blocks(make),
            merger=Parts(
                proj=make.linear(out, out, bias=False),
                post_projection_norm=make.layer_norm(out),
                gate_proj=make.linear(out, self.intermediate_size, bias=False),
                up_proj=make.linear(out, self.intermediate_size, bias=False),
                down_proj=make.linear(self.intermediate_size, out, bias=False),
            ),
            post_conv_layernorm=make.rms_norm(self.width),
            downsample=make.conv(self.width, out, self.spatial_merge_size, self.spatial_merge_size),
            post_layernorm=make.rms_norm(self.width),
        )
