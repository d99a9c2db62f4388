"""Every tensor and buffer of multimodal models of random sizes, against transformers on the meta device.

Names, shapes, order and ties; a config without a part of it has upstream's defaults for that part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from weigh import models
from weigh.dtypes import FLOAT32
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import recording

Config = dict[str, Any]


def clip(draw: st.DrawFn, model_type: str = "clip_vision_model") -> Config:
    heads = draw(st.integers(1, 4))
    return {
        "model_type": model_type,
        "hidden_size": 2 * heads * draw(st.integers(1, 6)),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": draw(st.integers(1, 6)),
        "num_attention_heads": heads,
        "num_channels": draw(st.integers(1, 4)),
        "image_size": draw(st.integers(8, 40)),
        "patch_size": draw(st.integers(1, 8)),
    }


def siglip(draw: st.DrawFn) -> Config:
    return clip(draw, "siglip_vision_model") | {"vision_use_head": draw(st.booleans())}


def pixtral(draw: st.DrawFn) -> Config:
    heads = draw(st.integers(1, 3))
    return clip(draw, "pixtral") | {"num_attention_heads": heads, "hidden_size": 4 * heads * draw(st.integers(1, 5))}


def internvl(draw: st.DrawFn) -> Config:
    names = ("attention_bias", "use_qk_norm", "use_mask_token", "use_absolute_position_embeddings", "use_mean_pooling")
    flags = {name: draw(st.booleans()) for name in names}
    return clip(draw, "internvl_vision") | flags | {"norm_type": draw(st.sampled_from(("layer_norm", "rms_norm")))}


def qwen_vision(draw: st.DrawFn, model_type: str, **more: Any) -> Config:
    heads = draw(st.integers(1, 3))
    width = 4 * heads * draw(st.integers(1, 4))
    return {
        "model_type": model_type,
        "depth": draw(st.integers(1, 6)),
        "hidden_size": width,
        "num_heads": heads,
        "in_channels": draw(st.integers(1, 4)),
        "patch_size": draw(st.integers(1, 6)),
        "spatial_merge_size": draw(st.integers(1, 3)),
        "temporal_patch_size": draw(st.integers(1, 3)),
        **more,
    }


def text(draw: st.DrawFn, model_type: str, head_dim: int | None = None) -> Config:
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 3))
    width = 2 * draw(st.integers(1, 6))
    return {
        "model_type": model_type,
        "vocab_size": draw(st.integers(2, 400)),
        "hidden_size": heads * width,
        "intermediate_size": draw(st.integers(1, 60)),
        "num_hidden_layers": draw(st.integers(1, 6)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "pad_token_id": None,
        **({"head_dim": 2 * draw(st.integers(1, 6))} if head_dim else {}),
    }


def llava(draw: st.DrawFn, model_type: str) -> Config:
    layers = st.just(-2) | st.lists(st.integers(-2, -1), min_size=1, max_size=3)
    return {
        "model_type": model_type,
        "vision_config": draw(st.sampled_from((clip, siglip)))(draw),
        "text_config": text(draw, draw(st.sampled_from(("llama", "mistral", "qwen2")))),
        "vision_feature_layer": draw(layers),
        **({} if model_type == "vipllava" else {"multimodal_projector_bias": draw(st.booleans())}),
    }


def qwen_vl(draw: st.DrawFn, model_type: str) -> Config:
    more: dict[str, Callable[[], Config]] = {
        "qwen2_vl": lambda: {"embed_dim": 24, "num_heads": draw(st.sampled_from((1, 2, 3))), "mlp_ratio": 3},
        "qwen2_5_vl": lambda: {"intermediate_size": draw(st.integers(1, 40)), "out_hidden_size": 12},
    }
    deepstack = draw(st.lists(st.integers(0, 5), max_size=3))
    after = {"intermediate_size": 20, "out_hidden_size": 12, "num_position_embeddings": 9}
    vision = more[model_type]() if model_type in more else after | {"deepstack_visual_indexes": deepstack}
    kind = "qwen3_vl_moe_text" if model_type.endswith("moe") else f"{model_type}_text"
    language = text(draw, kind, head_dim=None if model_type in more else 1)
    if model_type.endswith("moe"):
        language |= {"num_experts": draw(st.integers(2, 5)), "moe_intermediate_size": draw(st.integers(1, 30))}
        language |= {"decoder_sparse_step": draw(st.integers(1, 3)), "mlp_only_layers": [0]}
    return {
        "model_type": model_type,
        "vision_config": qwen_vision(draw, f"{model_type}_vision") | vision,
        "text_config": language,
    }


def idefics(draw: st.DrawFn, model_type: str) -> Config:
    vision = clip(draw, {"smolvlm": "smolvlm_vision"}.get(model_type, f"{model_type}_vision"))
    config = {"model_type": model_type, "vision_config": vision, "text_config": text(draw, "mistral")}
    if model_type == "idefics2":
        sizes = ("resampler_n_latents", "resampler_depth", "resampler_head_dim")
        heads = {"resampler_n_heads": 4, "num_key_value_heads": 2}
        return config | {"perceiver_config": heads | {name: draw(st.integers(1, 6)) for name in sizes}}
    return config | {"scale_factor": draw(st.integers(1, 3))}


def merging(draw: st.DrawFn, model_type: str) -> Config:
    kind = "qwen3" if model_type == "lighton_ocr" else "mistral"
    return {
        "model_type": model_type,
        "vision_config": pixtral(draw),
        "text_config": text(draw, kind, head_dim=1),
        "spatial_merge_size": draw(st.integers(1, 3)),
    }


def gemma3(draw: st.DrawFn, model_type: str) -> Config:
    return {
        "model_type": model_type,
        "vision_config": siglip(draw) | {"image_size": 32, "patch_size": 4},
        "text_config": text(draw, "gemma3_text", head_dim=1),
        "mm_tokens_per_image": 4,
    }


def paligemma(draw: st.DrawFn, model_type: str) -> Config:
    language = text(draw, draw(st.sampled_from(("gemma", "gemma2"))), head_dim=1)
    return {
        "model_type": model_type,
        "vision_config": siglip(draw),
        "text_config": language,
        "projection_dim": language["hidden_size"],
    }


def cohere2(draw: st.DrawFn, model_type: str) -> Config:
    return {
        "model_type": model_type,
        "vision_config": siglip(draw),
        "text_config": text(draw, "cohere2"),
        "alignment_intermediate_size": 2 * draw(st.integers(1, 20)),
        "downsample_factor": draw(st.integers(1, 3)),
    }


def internvl_model(draw: st.DrawFn, model_type: str) -> Config:
    ocr = model_type == "qianfan_ocr"
    return {
        "model_type": model_type,
        "vision_config": internvl(draw) | ({"model_type": "qianfan_ocr_vision"} if ocr else {}),
        "text_config": text(draw, "qwen3" if ocr else "qwen2", head_dim=1 if ocr else None),
        "downsample_ratio": draw(st.sampled_from((0.25, 0.5, 1.0))),
    }


def kimi(draw: st.DrawFn, model_type: str) -> Config:
    heads = draw(st.integers(1, 3))
    language = text(draw, "deepseek_v3") | {
        "num_key_value_heads": None,
        "kv_lora_rank": 6,
        "q_lora_rank": draw(st.none() | st.just(5)),
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 3,
        "v_head_dim": 5,
        "moe_intermediate_size": 7,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    }
    language["num_key_value_heads"] = language["num_attention_heads"]
    width = 4 * heads * draw(st.integers(1, 4))
    vision = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": draw(st.integers(1, 5))}
    vision |= {"intermediate_size": 9, "pos_emb_height": 3, "pos_emb_width": 3, "merge_kernel_size": [1, 2]}
    return {
        "model_type": model_type,
        "vision_config": vision,
        "text_config": language,
        "projection_hidden_size": width,
    }


def exaone(draw: st.DrawFn, model_type: str) -> Config:
    groups = draw(st.integers(1, 2))
    more = {"intermediate_size": 11, "out_hidden_size": 8, "num_heads": 2 * groups, "num_key_value_heads": groups}
    vision = qwen_vision(draw, "exaone4_5_vision") | more
    vision["hidden_size"] = 8 * groups * draw(st.integers(1, 3))
    return {"model_type": model_type, "vision_config": vision, "text_config": text(draw, "exaone4")}


def video_llama3(draw: st.DrawFn, model_type: str) -> Config:
    vision = clip(draw, "video_llama_3_vision")
    vision["hidden_size"] *= 2
    return {"model_type": model_type, "vision_config": vision, "text_config": text(draw, "qwen2")}


def ovis2(draw: st.DrawFn, model_type: str) -> Config:
    language = text(draw, "qwen2")
    flags = {"qkv_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    vision = clip(draw, "ovis2_vision") | flags | {"vocab_size": draw(st.integers(6, 60)), "hidden_stride": 2}
    sizes = {"hidden_size": language["hidden_size"], "vocab_size": language["vocab_size"]}
    return {"model_type": model_type, "vision_config": vision, "text_config": language} | sizes


def qwen35(draw: st.DrawFn, model_type: str) -> Config:
    language = text(draw, f"{model_type}_text", head_dim=1) | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    language |= {"linear_key_head_dim": 4, "linear_value_head_dim": 6}
    if model_type.endswith("moe"):
        language |= {"num_experts": 3, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 7}
    after = {"intermediate_size": 20, "out_hidden_size": 12, "num_position_embeddings": 9}
    return {
        "model_type": model_type,
        "vision_config": qwen_vision(draw, f"{model_type}_vision") | after,
        "text_config": language,
    }


def glm4v(draw: st.DrawFn, model_type: str) -> Config:
    moe = model_type.endswith("moe")
    language = text(draw, "glm4v_moe_text" if moe else "glm4v_text")
    if moe:
        language |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 5}
        language |= {"first_k_dense_replace": draw(st.integers(0, 3))}
    kind = "glm4v_moe_vision" if moe else "glm4v_vision"
    more = {"intermediate_size": 9, "out_hidden_size": 14, "image_size": 20, "attention_bias": draw(st.booleans())}
    return {"model_type": model_type, "vision_config": qwen_vision(draw, kind) | more, "text_config": language}


def llama4(draw: st.DrawFn, model_type: str) -> Config:
    language = text(draw, "llama4_text", head_dim=1) | {"num_local_experts": 2, "intermediate_size_mlp": 9}
    language |= {"interleave_moe_layer_step": draw(st.integers(1, 2))}
    sizes = {"projector_input_dim": 6, "projector_output_dim": 6, "vision_output_dim": 10, "num_attention_heads": 2}
    vision = clip(draw, "llama4_vision_model") | sizes | {"hidden_size": 8 * draw(st.integers(1, 3))}
    return {"model_type": model_type, "vision_config": vision, "text_config": language}


def whisper(draw: st.DrawFn, model_type: str) -> Config:
    heads = draw(st.integers(1, 3))
    return {
        "model_type": model_type,
        "d_model": 4 * heads * draw(st.integers(1, 3)),
        "encoder_attention_heads": heads,
        "encoder_layers": draw(st.integers(1, 5)),
        "encoder_ffn_dim": draw(st.integers(1, 30)),
        "num_mel_bins": draw(st.integers(1, 9)),
        "max_source_positions": draw(st.integers(1, 30)),
    }


def hearing(draw: st.DrawFn, model_type: str) -> Config:
    kind = draw(st.sampled_from(("llama", "qwen2")))
    language = text(draw, kind, head_dim=1 if kind == "llama" else None)
    return {
        "model_type": model_type,
        "audio_config": whisper(draw, f"{model_type}_encoder"),
        "text_config": language | ({"head_dim": 4} if model_type == "voxtral" else {}),
    }


def omni(draw: st.DrawFn, model_type: str) -> Config:
    vision = qwen_vision(draw, "qwen2_5_omni_vision_encoder") | {"intermediate_size": 9, "out_hidden_size": 12}
    return {
        "model_type": model_type,
        "vision_config": vision,
        "audio_config": whisper(draw, "qwen2_5_omni_audio_encoder") | {"output_dim": 12},
        "text_config": text(draw, "qwen2_5_omni_text"),
    }


def aligned(draw: st.DrawFn, model_type: str) -> Config:
    return {"model_type": model_type, "vision_config": siglip(draw), "text_config": text(draw, "llama")}


def liquid(draw: st.DrawFn, model_type: str) -> Config:
    vision = clip(draw, "siglip2_vision_model") | {"num_patches": 16, "vision_use_head": draw(st.booleans())}
    flags = {"projector_bias": draw(st.booleans()), "projector_use_layernorm": draw(st.booleans())}
    return {
        "model_type": model_type,
        "vision_config": vision,
        "text_config": text(draw, "lfm2") | {"intermediate_size": 400},
    } | flags


def gemma4(draw: st.DrawFn, model_type: str) -> Config:
    kv_heads, layers = draw(st.integers(1, 2)), draw(st.integers(2, 6))
    heads, flags = kv_heads * draw(st.integers(1, 3)), ("use_clipped_linears", "standardize")
    vision = clip(draw, "gemma4_vision") | {name: draw(st.booleans()) for name in flags}
    vision |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 4 * draw(st.integers(1, 4))}
    audio = {"hidden_size": 4 * draw(st.integers(1, 6)), "num_hidden_layers": draw(st.integers(1, 4))}
    audio |= {"num_attention_heads": 2, "subsampling_conv_channels": [8, 4], "use_clipped_linears": draw(st.booleans())}
    kinds = {"layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"], "num_hidden_layers": layers}
    small = {"hidden_size_per_layer_input": draw(st.integers(0, 9)), "vocab_size_per_layer_input": 50}
    return {
        "model_type": model_type,
        "vision_config": draw(st.none() | st.just(vision)),
        "audio_config": draw(st.none() | st.just(audio | {"output_proj_dims": draw(st.integers(1, 20))})),
        "text_config": text(draw, "gemma4_text", head_dim=1) | kinds | small | {"num_kv_shared_layers": 0},
    }


DRAWN: dict[str, Callable[[st.DrawFn, str], Config]] = {
    "audioflamingo3": hearing,
    "cohere2_vision": cohere2,
    "deepseek_vl": aligned,
    "exaone4_5": exaone,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "glm46v": glm4v,
    "glm4v": glm4v,
    "glm4v_moe": glm4v,
    "idefics2": idefics,
    "idefics3": idefics,
    "internvl": internvl_model,
    "kimi_k25": kimi,
    "lfm2_vl": liquid,
    "lighton_ocr": merging,
    "llama4": llama4,
    "llava": llava,
    "llava_next": llava,
    "llava_next_video": llava,
    "llava_onevision": llava,
    "mistral3": merging,
    "ovis2": ovis2,
    "paligemma": paligemma,
    "qwen2_5_omni_thinker": omni,
    "qianfan_ocr": internvl_model,
    "qwen2_5_vl": qwen_vl,
    "qwen2_audio": hearing,
    "qwen2_vl": qwen_vl,
    "qwen3_5": qwen35,
    "qwen3_5_moe": qwen35,
    "qwen3_vl": qwen_vl,
    "qwen3_vl_moe": qwen_vl,
    "smolvlm": idefics,
    "video_llama_3": video_llama3,
    "video_llava": llava,
    "vipllava": llava,
    "voxtral": hearing,
}


NAMED = {
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
}
"""Classes that no automatic one finds."""


def upstream(config: Config) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    """Names and shapes of transformers' parameters (a tied one once), and the bytes of its buffers."""
    with torch.device("meta"):
        made = transformers.CONFIG_MAPPING[config["model_type"]](**config)
        if config["model_type"] in NAMED:
            model = getattr(transformers, NAMED[config["model_type"]])(made)
        else:
            model = transformers.AutoModelForMultimodalLM.from_config(made)
    model.tie_weights()
    named = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    return named, sum(b.numel() * b.element_size() for b in model.buffers())


def ghost(config: Config, unroll: bool) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    with recording() as ledger, unrolled(unroll):
        parameters = models.build(config, FLOAT32).parameters()
    buffers = sum(a.num_bytes for a in ledger.allocations if a.purpose == "buffer")
    return [(n, p.tensor.shape) for p in parameters for n in p.names], buffers


TIED: tuple[Config, ...] = ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False})


@pytest.mark.torch
@pytest.mark.parametrize("family", sorted(DRAWN))
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_every_tensor(family: str, data: st.DataObject) -> None:
    config = DRAWN[family](data.draw, family) | data.draw(st.sampled_from(TIED))
    theirs, their_buffers = upstream(config)
    ours, our_buffers = ghost(config, unroll=True)
    assert ours == theirs
    assert our_buffers == their_buffers
    compressed, _ = ghost(config, unroll=False)
    assert sorted(compressed) == sorted(theirs)
