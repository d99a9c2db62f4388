"""DeepSeek-VL and LFM2-VL, as `transformers/models/deepseek_vl/modeling_deepseek_vl.py` (5.23): counted.

SigLIP towers and projectors of two layers, each under names of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, text_model, ties
from weigh.models.towers import auto_tower
from weigh.models.towers.parts import Maker, Projector

MODEL_TYPES = ("deepseek_vl", "lfm2_vl")


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    liquid = config["model_type"] == "lfm2_vl"
    check_class(config, f"{'Lfm2Vl' if liquid else 'DeepseekVL'}ForConditionalGeneration", where=where)
    keys, make = Keys(config, where), Maker(dtype)
    tower = auto_tower(part(config, "vision_config", f"siglip{'2' if liquid else ''}_vision_model"), where)
    text = part(config, "text_config", "lfm2" if liquid else "llama")
    tied = keys.flag("tie_embedding", "tie_word_embeddings", default=True) if liquid else ties(config, text, True)
    language = text_model(text, tied, dtype, f"{where}: text_config")
    seen, width = tower.hidden_size, language.config.hidden_size
    seeing = tower.build(make)
    if liquid:
        wide = seen * keys.size("downsample_factor", default=2) ** 2
        inner, bias = keys.size("projector_hidden_size", default=2560), keys.flag("projector_bias", default=True)
        projector = Projector(
            layer_norm=make.layer_norm(wide) if keys.flag("projector_use_layernorm", default=True) else None,
            linear_1=make.linear(wide, inner, bias),
            linear_2=make.linear(inner, width, bias),
        )
        parts = {"vision_tower": seeing, "multi_modal_projector": projector}
    else:
        projector = Projector(linear1=make.linear(seen, width), linear2=make.linear(width, width))
        parts = {"vision_model": seeing, "aligner": projector}
    return ConditionalGeneration(language, MultimodalModel("language_model", **parts, language_model=language.model))
