"""Towers that see and hear for Gemma 4 (transformers 5.23)."""

from __future__ import annotations

from weigh.ghost import nn
from weigh.models.parts import Parts
from weigh.models.towers.parts import Audio, Maker, Tower, Vision
from weigh.records import dataclass


def clippable(make: Maker, width_in: int, width_out: int, clipped: bool) -> Parts:
    """`Gemma4ClippableLinear`: the bounds of what goes in and comes out are buffers."""
    bounds = ("input_min", "input_max", "output_min", "output_max") if clipped else ()
    buffers = {name: nn.buffer((), make.dtype) for name in bounds}
    return Parts(linear=make.linear(width_in, width_out, bias=False), **buffers)


@dataclass(frozen=True)
class Gemma4Vision(Tower):
    """`Gemma4VisionModel`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    patch_size: int = 16
    position_embedding_size: int = 10240
    use_clipped_linears: bool = False
    standardize: bool = False

    def layer(self, make: Maker) -> nn.Module:
        """`Gemma4VisionEncoderLayer`."""
        width, inner, clipped = self.hidden_size, self.intermediate_size, self.use_clipped_linears
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        return Parts(
            self_attn=Parts(
                q_proj=clippable(make, width, queries, clipped),
                k_proj=clippable(make, width, keys, clipped),
                v_proj=clippable(make, width, keys, clipped),
                o_proj=clippable(make, queries, width, clipped),
                q_norm=make.rms_norm(self.head_dim),
                k_norm=make.rms_norm(self.head_dim),
            ),
            mlp=Parts(
                gate_proj=clippable(make, width, inner, clipped),
                up_proj=clippable(make, width, inner, clipped),
                down_proj=clippable(make, inner, width, clipped),
            ),
            **{f"{name}_layernorm": make.rms_norm(width) for name in norms},
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width = self.hidden_size
        standard = ("std_bias", "std_scale") if self.standardize else ()
        return Vision(
            patch_embedder=Parts(
                position_embedding_table=make.tensor(2, self.position_embedding_size, width),
                input_proj=make.linear(3 * self.patch_size**2, width, bias=False),
            ),
            encoder=Parts(
                rotary_emb=make.rotary((self.head_dim // 2 + 1) // 2),
                layers=make.stack(self.num_hidden_layers, lambda: self.layer(make)),
            ),
            **{name: nn.buffer((width,), make.dtype) for name in standard},
        )


@dataclass(frozen=True)
class Gemma4Audio(Tower):
    """`Gemma4AudioModel`: a conformer."""

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    subsampling_conv_channels: tuple[int, ...] = (128, 32)
    conv_kernel_size: int = 5
    use_clipped_linears: bool = True
    output_proj_dims: int = 1536

    def layer(self, make: Maker) -> nn.Module:
        """`Gemma4AudioLayer`."""
        width, clipped = self.hidden_size, self.use_clipped_linears
        head_dim = width // self.num_attention_heads

        def feed_forward() -> Parts:
            return Parts(
                ffw_layer_1=clippable(make, width, 4 * width, clipped),
                ffw_layer_2=clippable(make, 4 * width, width, clipped),
                pre_layer_norm=make.rms_norm(width),
                post_layer_norm=make.rms_norm(width),
            )

        return Parts(
            feed_forward1=feed_forward(),
            feed_forward2=feed_forward(),
            self_attn=Parts(
                per_dim_scale=make.tensor(head_dim),
                **{name: clippable(make, width, width, clipped) for name in ("q_proj", "k_proj", "v_proj", "post")},
                relative_k_proj=make.linear(width, width, bias=False),
                softcap=nn.buffer((), make.dtype),
            ),
            lconv1d=Parts(
                linear_start=clippable(make, width, 2 * width, clipped),
                linear_end=clippable(make, width, width, clipped),
                depthwise_conv1d=make.conv(width, width, self.conv_kernel_size, groups=width, bias=False),
                pre_layer_norm=make.rms_norm(width),
                conv_norm=make.rms_norm(width),
            ),
            norm_pre_attn=make.rms_norm(width),
            norm_post_attn=make.rms_norm(width),
            norm_out=make.rms_norm(width),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width, (first, second) = self.hidden_size, self.subsampling_conv_channels
        return Audio(
            subsample_conv_projection=Parts(
                layer0=Parts(conv=make.conv(1, first, 3, 3, bias=False), norm=make.rms_norm(first)),
                layer1=Parts(conv=make.conv(first, second, 3, 3, bias=False), norm=make.rms_norm(second)),
                input_proj_linear=make.linear(first // 4 * second, width, bias=False),
            ),
            rel_pos_enc=Parts(inv_timescales=nn.buffer((1, 1, width // 2), make.dtype)),
            layers=make.stack(self.num_hidden_layers, lambda: self.layer(make)),
            output_proj=make.linear(width, self.output_proj_dims),
        )
