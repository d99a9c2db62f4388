"""Kimi K2.5, as `transformers/models/kimi_k25/modeling_kimi_k25.py` (5.23) writes it.

DeepSeek-V3 with a tower: counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Keys, Pair
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.parts import Parts
from weigh.models.towers.parts import Maker, Projector, Tower, Vision
from weigh.records import dataclass

MODEL_TYPES = ("kimi_k25",)


@dataclass(frozen=True)
class KimiVision(Tower):
    """`Kimi_K25VisionModel`."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    patch_size: Pair = (14, 14)
    pos_emb_height: int = 64
    pos_emb_width: int = 64
    pos_emb_time: int = 4
    merge_kernel_size: Pair = (2, 2)

    def layer(self, make: Maker) -> nn.Module:
        """`Kimi_K25VisionEncoderLayer`."""
        width = self.hidden_size
        return Parts(
            norm1=make.layer_norm(width),
            norm2=make.layer_norm(width),
            attn=Parts(**{name: make.linear(width, width) for name in ("proj", "q_proj", "k_proj", "v_proj")}),
            mlp=make.mlp(width, self.intermediate_size),
        )

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        width = self.hidden_size
        return Vision(
            patch_embed=Parts(
                proj=make.conv(3, width, *self.patch_size),
                pos_emb=Parts(
                    position_embeddings=make.tensor(self.pos_emb_height, self.pos_emb_width, width),
                    time_position_embeddings=nn.buffer((self.pos_emb_time + 1, width), FLOAT32),
                ),
            ),
            rotary_emb=make.rotary((width // self.num_attention_heads // 2 + 1) // 2),
            layers=make.stack(self.num_hidden_layers, lambda: self.layer(make)),
            final_layernorm=make.layer_norm(width),
        )


class KimiK25Model(MultimodalModel):
    def forward(
        self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Of text alone, in which pictures and films are looked for first."""
        multimodal_mask = ops.logical_or(ops.equal_to(input_ids), ops.equal_to(input_ids))
        llm_input_ids = ops.clone(input_ids)
        inputs_embeds = self.text.embed_tokens(llm_input_ids)
        hidden_states: Tensor = self.text(input_ids, cache, attention_mask, positions, inputs_embeds)
        del multimodal_mask
        return hidden_states


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    check_class(config, "Kimi_K25ForConditionalGeneration", where=where)
    make = Maker(dtype)
    tower = KimiVision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "deepseek_v3")
    if text["model_type"] == "kimi_k2":
        text["model_type"] = "deepseek_v3"
    language = text_model(text, ties(config, text, default=True), dtype, f"{where}: text_config")
    height, width = tower.merge_kernel_size
    merged = tower.hidden_size * height * width
    model = KimiK25Model(
        "language_model",
        vision_tower=tower.build(make),
        language_model=language.model,
        mm_projector=Projector(
            pre_norm=make.layer_norm(Keys(config, where).size("projection_hidden_size", default=1152)),
            in_proj=make.linear(merged, merged),
            out_proj=make.linear(merged, language.config.hidden_size),
        ),
    )
    return ConditionalGeneration(language, model)
