"""Every tensor of random configs of every family, compressed and unrolled.

Names, shapes, order and ties, against transformers on the meta device.
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


def _gpt2(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    return {
        "n_positions": draw(st.integers(1, 300)),
        "n_embd": heads * draw(st.integers(1, 24)),
        "n_layer": draw(st.integers(1, 9)),
        "n_head": heads,
        "n_inner": draw(st.none() | st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }


DECODERS: dict[str, tuple[str, ...]] = {
    "aria_text": ("attention_bias", "mlp_bias"),
    "dots1": ("attention_bias",),
    "ernie4_5_moe": ("use_bias",),
    "exaone_moe": (),
    "flex_olmo": ("attention_bias",),
    "granitemoeshared": ("attention_bias",),
    "hunyuan_v1_moe": ("attention_bias",),
    "hy_v3": ("attention_bias", "mlp_bias"),
    "llama4_text": ("attention_bias",),
    "minimax_m2": (),
    "phimoe": ("attention_bias", "lm_head_bias"),
    "solar_open": ("attention_bias",),
    "apertus": ("attention_bias",),
    "arcee": ("attention_bias", "mlp_bias"),
    "bitnet": ("attention_bias",),
    "cohere": ("attention_bias", "use_qk_norm"),
    "cohere2": ("attention_bias",),
    "cwm": ("mlp_bias",),
    "doge": ("attention_bias", "mlp_bias"),
    "ernie4_5": ("use_bias",),
    "exaone4": (),
    "gemma": ("attention_bias",),
    "gemma2": ("attention_bias",),
    "gemma3_text": ("attention_bias",),
    "glm": ("attention_bias",),
    "glm4": ("attention_bias",),
    "glm4_moe": ("attention_bias", "use_qk_norm"),
    "gpt_oss": ("attention_bias",),
    "granite": ("attention_bias", "mlp_bias"),
    "granite_swa": ("attention_bias", "mlp_bias"),
    "granitemoe": ("attention_bias",),
    "hunyuan_v1_dense": ("attention_bias",),
    "hyperclovax": ("attention_bias", "mlp_bias", "use_post_norm"),
    "internlm3": (),
    "jais2": ("attention_bias", "mlp_bias"),
    "llama": ("attention_bias", "mlp_bias"),
    "ministral3": (),
    "mistral": (),
    "mixtral": (),
    "nanochat": ("attention_bias",),
    "olmo": ("attention_bias",),
    "olmo2": ("attention_bias",),
    "olmo3": ("attention_bias",),
    "olmoe": ("attention_bias",),
    "phi3": (),
    "qwen2": (),
    "qwen2_moe": ("qkv_bias",),
    "qwen3": ("attention_bias",),
    "qwen3_moe": ("attention_bias",),
    "seed_oss": ("attention_bias", "attention_out_bias", "mlp_bias"),
    "smollm3": ("attention_bias", "mlp_bias"),
    "stablelm": ("use_qkv_bias", "qk_layernorm", "use_parallel_residual"),
    "starcoder2": ("use_bias",),
    "vaultgemma": ("attention_bias",),
}
"""The relatives of Llama, and the flags that give them more tensors."""
EXPERTS = {
    "aria_text": "moe_num_experts",
    "dots1": "n_routed_experts",
    "ernie4_5_moe": "moe_num_experts",
    "exaone_moe": "num_experts",
    "flex_olmo": "num_experts",
    "granitemoeshared": "num_local_experts",
    "hunyuan_v1_moe": "num_experts",
    "hy_v3": "num_experts",
    "llama4_text": "num_local_experts",
    "minimax_m2": "num_local_experts",
    "phimoe": "num_local_experts",
    "solar_open": "n_routed_experts",
    "glm4_moe": "n_routed_experts",
    "gpt_oss": "num_local_experts",
    "granitemoe": "num_local_experts",
    "mixtral": "num_local_experts",
    "olmoe": "num_experts",
    "qwen2_moe": "num_experts",
    "qwen3_moe": "num_local_experts",
}
"""Those with experts, and what a config calls their number."""
INNER = {"moe_intermediate_size": st.integers(1, 60)}
STEPS = {"decoder_sparse_step": st.integers(1, 3), "mlp_only_layers": st.none() | st.lists(st.integers(0, 9))}
SPARSE: dict[str, dict[str, Any]] = {
    "ernie4_5_moe": {
        **INNER,
        "moe_layer_start_index": st.integers(0, 4),
        "moe_layer_end_index": st.integers(1, 9) | st.just(-1),
        "moe_layer_interval": st.integers(1, 3),
        "moe_num_shared_experts": st.integers(0, 2),
    },
    "dots1": {**INNER, "first_k_dense_replace": st.integers(0, 5), "n_shared_experts": st.integers(1, 3)},
    "exaone_moe": {**INNER, "first_k_dense_replace": st.integers(0, 5), "num_shared_experts": st.integers(1, 3)},
    "granitemoeshared": {"shared_intermediate_size": st.integers(0, 60)},
    "hy_v3": {**INNER, "num_shared_experts": st.integers(1, 3)},
    "llama4_text": {"intermediate_size_mlp": st.integers(1, 60), "interleave_moe_layer_step": st.integers(1, 3)},
    "solar_open": INNER,
    "glm4_moe": {**INNER, "first_k_dense_replace": st.integers(0, 5), "n_shared_experts": st.integers(1, 3)},
    "qwen2_moe": {**INNER, **STEPS, "shared_expert_intermediate_size": st.integers(1, 60)},
    "qwen3_moe": {**INNER, **STEPS},
}
"""Their experts' own sizes, and which layers have any."""
WITHOUT_HEAD_DIM = ("bitnet", "nanochat", "stablelm")
"""Whose heads share the width."""
WITH_HEAD_DIM = ("hunyuan_v1_dense", "hunyuan_v1_moe")
"""Where upstream fails without."""
LAYER_TYPES = (
    "cohere2",
    "cwm",
    "exaone4",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "granite_swa",
    "olmo3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "smollm3",
    "vaultgemma",
)


def _decoder(draw: st.DrawFn, family: str) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 12))
    explicit = family in WITH_HEAD_DIM or (family not in WITHOUT_HEAD_DIM and draw(st.booleans()))
    layers = draw(st.integers(1, 9))
    config: dict[str, Any] = {
        "hidden_size": heads * draw(st.integers(1, 40)) if explicit else heads * head_dim,
        "intermediate_size": draw(st.integers(1, 300)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": draw(st.booleans()),
    }
    config |= {flag: draw(st.booleans()) for flag in DECODERS[family]}
    if family in EXPERTS:
        config |= {EXPERTS[family]: draw(st.integers(2, 6)), "num_experts_per_tok": draw(st.integers(1, 2))}
        config |= {key: draw(numbers) for key, numbers in SPARSE.get(family, {}).items()}
    if family in LAYER_TYPES and draw(st.booleans()):
        types = st.sampled_from(["full_attention", "sliding_attention"])
        config |= {"layer_types": draw(st.lists(types, min_size=layers, max_size=layers)), "use_sliding_window": True}
        config["sliding_window"] = draw(st.integers(2, 100))
    return config | {"head_dim": head_dim} if explicit else config


def _flags(draw: st.DrawFn, *names: str) -> dict[str, bool]:
    return {name: draw(st.booleans()) for name in names}


def _plain(draw: st.DrawFn, inner: str = "intermediate_size", head_dim: int = 1, **sizes: int) -> dict[str, Any]:
    """Sizes under the names that most configs use."""
    heads = draw(st.integers(1, 8))
    return {
        "hidden_size": heads * head_dim * draw(st.integers(1, 12)),
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 9)),
        inner: draw(st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
        **sizes,
    }


def _gpt_neo(draw: st.DrawFn) -> dict[str, Any]:
    heads, times = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return {
        "hidden_size": heads * draw(st.integers(1, 24)),
        "num_heads": heads,
        "num_layers": 2 * times,
        "attention_types": [[["global", "local"], times]],
        "max_position_embeddings": draw(st.integers(1, 300)),
        "intermediate_size": draw(st.none() | st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }


def _mpt(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    return {
        "d_model": heads * draw(st.integers(1, 24)),
        "n_heads": heads,
        "n_layers": draw(st.integers(1, 9)),
        "max_seq_len": draw(st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }


def _opt(draw: st.DrawFn) -> dict[str, Any]:
    flags = ("do_layer_norm_before", "_remove_final_layer_norm", "enable_bias", "layer_norm_elementwise_affine")
    config = _plain(draw, "ffn_dim", max_position_embeddings=draw(st.integers(1, 300))) | _flags(draw, *flags)
    return config | {"word_embed_proj_dim": draw(st.none() | st.integers(1, 60))}


def _gpt_neox(draw: st.DrawFn) -> dict[str, Any]:
    config = _plain(draw, head_dim=4) | _flags(draw, "use_parallel_residual", "attention_bias")
    return config | {"rotary_pct": draw(st.sampled_from((0.25, 0.5, 1.0)))}


def _phi(draw: st.DrawFn) -> dict[str, Any]:
    config = _plain(draw, head_dim=4) | _flags(draw, "qk_layernorm")
    heads = config["num_attention_heads"]
    groups = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    return config | {"num_key_value_heads": draw(st.sampled_from((None, heads // groups)))}


def _falcon(draw: st.DrawFn) -> dict[str, Any]:
    config = _plain(draw, "ffn_hidden_size", head_dim=2) | _flags(draw, "alibi", "bias", "multi_query", "parallel_attn")
    heads = config["num_attention_heads"]
    if draw(st.booleans()):
        kv_heads = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
        norms = draw(st.sampled_from((None, 1, 2)))
        new = {"new_decoder_architecture": True, "parallel_attn": True, "num_ln_in_parallel_attn": norms}
        return config | new | {"num_kv_heads": kv_heads}
    return config


def _bloom(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 12))
    return {
        "hidden_size": heads * draw(st.integers(1, 12)),
        "n_head": heads,
        "n_layer": draw(st.integers(1, 9)),
        "tie_word_embeddings": draw(st.booleans()),
    }


def _gptj(draw: st.DrawFn, groups: int = 1) -> dict[str, Any]:
    heads, rotary = groups * draw(st.integers(1, 3)), 2 * draw(st.integers(1, 6))
    return {
        "n_embd": heads * (rotary + draw(st.integers(0, 5))),
        "n_head": heads,
        "n_layer": draw(st.integers(1, 9)),
        "n_positions": draw(st.integers(1, 300)),
        "n_inner": draw(st.none() | st.integers(1, 300)),
        "rotary_dim": rotary,
        "tie_word_embeddings": draw(st.booleans()),
    }


def _gpt_bigcode(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 8))
    return {
        "n_embd": heads * draw(st.integers(1, 24)),
        "n_head": heads,
        "n_layer": draw(st.integers(1, 9)),
        "n_positions": draw(st.integers(1, 300)),
        "n_inner": draw(st.none() | st.integers(1, 300)),
    } | _flags(draw, "multi_query", "tie_word_embeddings")


def _bert(draw: st.DrawFn) -> dict[str, Any]:
    sizes = {"max_position_embeddings": draw(st.integers(1, 300)), "type_vocab_size": draw(st.integers(1, 5))}
    return _plain(draw, **sizes)


def _distilbert(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    sizes = {"n_layers": draw(st.integers(1, 9)), "n_heads": heads, "dim": heads * draw(st.integers(1, 12))}
    inner = {"hidden_dim": draw(st.integers(1, 200)), "max_position_embeddings": draw(st.integers(1, 300))}
    return sizes | inner | _flags(draw, "tie_word_embeddings")


def _modernbert(draw: st.DrawFn) -> dict[str, Any]:
    flags = ("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias")
    return _plain(draw, head_dim=2) | _flags(draw, *flags)


def _bart(draw: st.DrawFn) -> dict[str, Any]:
    heads = {f"{part}_attention_heads": draw(st.sampled_from((1, 2, 4))) for part in ("encoder", "decoder")}
    layers = {f"{part}_layers": draw(st.integers(1, 9)) for part in ("encoder", "decoder")}
    inner = {f"{part}_ffn_dim": draw(st.integers(1, 200)) for part in ("encoder", "decoder")}
    width = {"d_model": 8 * draw(st.integers(1, 8)), "max_position_embeddings": draw(st.integers(1, 200))}
    return heads | layers | inner | width


def _t5(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "d_model": draw(st.integers(1, 100)),
        "d_kv": draw(st.integers(1, 20)),
        "d_ff": draw(st.integers(1, 300)),
        "num_layers": draw(st.integers(1, 9)),
        "num_decoder_layers": draw(st.none() | st.integers(1, 9)),
        "num_heads": draw(st.integers(1, 8)),
        "relative_attention_num_buckets": draw(st.integers(4, 40)),
        "feed_forward_proj": draw(st.sampled_from(("relu", "gated-gelu", "gated-silu"))),
    }


def _deepseek(draw: st.DrawFn) -> dict[str, Any]:
    heads, groups = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    return {
        "hidden_size": draw(st.integers(1, 60)),
        "intermediate_size": draw(st.integers(1, 100)),
        "moe_intermediate_size": draw(st.integers(1, 60)),
        "num_hidden_layers": draw(st.integers(1, 9)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "n_shared_experts": draw(st.integers(1, 3)),
        "n_routed_experts": groups * draw(st.integers(2, 4)),
        "n_group": groups,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "kv_lora_rank": draw(st.integers(1, 40)),
        "q_lora_rank": draw(st.none() | st.integers(1, 40)),
        "qk_rope_head_dim": 2 * draw(st.integers(1, 8)),
        "qk_nope_head_dim": draw(st.integers(1, 16)),
        "v_head_dim": draw(st.integers(1, 16)),
        "first_k_dense_replace": draw(st.integers(0, 5)),
    } | _flags(draw, "attention_bias", "tie_word_embeddings")


def _deepseek_v2(draw: st.DrawFn) -> dict[str, Any]:
    config = _deepseek(draw) | _flags(draw, "mlp_bias")
    return config | {"hidden_size": config["num_attention_heads"] * draw(st.integers(1, 20))}


def _persimmon(draw: st.DrawFn) -> dict[str, Any]:
    return _plain(draw, head_dim=4) | _flags(draw, "qk_layernorm")


def _xglm(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    return {
        "d_model": heads * 2 * draw(st.integers(2, 12)),
        "attention_heads": heads,
        "num_layers": draw(st.integers(1, 9)),
        "ffn_dim": draw(st.integers(1, 300)),
        "max_position_embeddings": draw(st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }


def _old_gpt(draw: st.DrawFn, **sizes: int) -> dict[str, Any]:
    heads = draw(st.integers(1, 8))
    return {
        "n_embd": heads * 2 * draw(st.integers(1, 12)),
        "n_head": heads,
        "n_layer": draw(st.integers(1, 9)),
        "n_positions": draw(st.integers(1, 100)),
        "tie_word_embeddings": draw(st.booleans()),
        **sizes,
    }


def _gpt_neox_japanese(draw: st.DrawFn) -> dict[str, Any]:
    config = _plain(draw, head_dim=4) | {"intermediate_multiple_size": draw(st.integers(1, 5))}
    return config | {"rotary_pct": draw(st.sampled_from((0.5, 1.0)))}


def _nemotron(draw: st.DrawFn) -> dict[str, Any]:
    config = _plain(draw, head_dim=4) | _flags(draw, "attention_bias", "mlp_bias")
    kv_heads = draw(st.sampled_from([n for n in range(1, 9) if config["num_attention_heads"] % n == 0]))
    head_dim = draw(st.sampled_from((None, 8, 12)))
    return config | {"num_key_value_heads": kv_heads, "head_dim": head_dim, "partial_rotary_factor": 0.5}


def _dbrx(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    experts = {"ffn_hidden_size": draw(st.integers(1, 50)), "moe_num_experts": draw(st.integers(1, 5))}
    return {
        "d_model": heads * 2 * draw(st.integers(1, 9)),
        "n_heads": heads,
        "n_layers": draw(st.integers(1, 9)),
        "attn_config": {"kv_n_heads": kv_heads, "rope_theta": 1e4},
        "ffn_config": experts,
    }


def _latent(draw: st.DrawFn) -> dict[str, Any]:
    sizes = {"kv_lora_rank": st.integers(1, 40), "q_lora_rank": st.none() | st.integers(1, 40)}
    sizes |= {"qk_nope_head_dim": st.integers(1, 16), "v_head_dim": st.integers(1, 16)}
    config = _plain(draw, qk_rope_head_dim=2 * draw(st.integers(1, 8))) | {k: draw(v) for k, v in sizes.items()}
    return config | {"num_key_value_heads": config["num_attention_heads"]} | _flags(draw, "attention_bias")


def _helium(draw: st.DrawFn) -> dict[str, Any]:
    config = _plain(draw, head_dim=2)
    heads = config["num_attention_heads"]
    groups = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    own = {"head_dim": config["hidden_size"] // heads, "num_key_value_heads": heads // groups}
    return config | own | _flags(draw, "attention_bias", "mlp_bias")


def _gemma4(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads, layers = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    types = draw(st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=layers, max_size=layers))
    types[0], types[-1] = "sliding_attention", "full_attention"
    shared = draw(st.integers(0, layers - 1 - types.index("full_attention")))
    return {
        "hidden_size": draw(st.integers(1, 60)),
        "intermediate_size": draw(st.integers(1, 100)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 12)),
        "global_head_dim": 4 * draw(st.integers(1, 12)),
        "layer_types": types,
        "sliding_window": 20,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": draw(st.integers(0, 20)),
        "vocab_size_per_layer_input": draw(st.integers(2, 50)),
    } | _flags(draw, "attention_bias", "attention_k_eq_v", "use_double_wide_mlp", "tie_word_embeddings")


SOME = st.integers(1, 9)


def _counted(**own: st.SearchStrategy[Any]) -> Callable[[st.DrawFn], dict[str, Any]]:
    """The usual sizes of a decoder with experts, and a family's own."""

    def config(draw: st.DrawFn) -> dict[str, Any]:
        kv_heads = draw(st.integers(1, 3))
        heads = kv_heads * draw(st.integers(1, 3))
        return {
            "hidden_size": heads * draw(st.integers(1, 9)),
            "intermediate_size": draw(st.integers(1, 60)),
            "moe_intermediate_size": draw(st.integers(1, 30)),
            "num_hidden_layers": draw(st.integers(1, 9)),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "num_experts_per_tok": 1,
            "head_dim": draw(st.sampled_from((6, 12))),
            "tie_word_embeddings": draw(st.booleans()),
        } | {key: draw(values) for key, values in own.items()}

    return config


def _longcat(draw: st.DrawFn) -> dict[str, Any]:
    other = ("intermediate_size", "moe_intermediate_size", "num_hidden_layers", "n_group", "topk_group")
    config = {k: v for k, v in _deepseek(draw).items() if k not in other}
    layers, zero = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    return config | {"q_lora_rank": 7, "num_layers": layers, "zero_expert_num": zero, "ffn_hidden_size": 8}


def _mamba(draw: st.DrawFn) -> dict[str, Any]:
    sizes = {name: draw(st.integers(1, most)) for name, most in (("state_size", 20), ("expand", 3), ("conv_kernel", 5))}
    return {
        "hidden_size": draw(st.integers(1, 100)),
        "num_hidden_layers": draw(st.integers(1, 9)),
        "time_step_rank": draw(st.just("auto") | st.integers(1, 20)),
        "tie_word_embeddings": draw(st.booleans()),
        **sizes,
    } | _flags(draw, "use_bias", "use_conv_bias", "residual_in_fp32")


def _mamba2(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    heads, head_dim = groups * draw(st.integers(1, 4)), draw(st.integers(1, 12))
    config = _mamba(draw) | {"num_heads": heads, "head_dim": head_dim, "n_groups": groups, "chunk_size": 8}
    expand = draw(st.sampled_from([n for n in (1, 2, 3) if heads * head_dim % n == 0]))
    return config | {"expand": expand, "hidden_size": heads * head_dim // expand}


ROBERTAS = ("camembert", "data2vec-text", "ernie", "roberta", "xlm-roberta")
BARTS = ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus", "plbart")
OTHERS: dict[str, Callable[[st.DrawFn], dict[str, Any]]] = {
    "bert": _bert,
    "biogpt": lambda draw: _plain(draw, max_position_embeddings=draw(st.integers(1, 300))),
    "bloom": _bloom,
    "codegen": lambda draw: _gptj(draw, 4),
    "ctrl": lambda draw: _old_gpt(draw, dff=draw(st.integers(1, 100))),
    "deepseek_v3": _deepseek,
    "deepseek_v32": lambda draw: _deepseek(draw) | {"q_lora_rank": 7, "index_head_dim": 6, "index_n_heads": 3},
    "glm_moe_dsa": lambda draw: (
        _deepseek(draw) | {"q_lora_rank": 7, "index_head_dim": 6, "index_n_heads": 3, "index_topk_freq": draw(SOME)}
    ),
    "cohere2_moe": _counted(
        first_k_dense_replace=st.integers(0, 1),
        num_experts=SOME,
        num_shared_experts=st.integers(0, 2),
        prefix_dense_intermediate_size=st.none() | SOME,
    ),
    "granitemoe_swa": _counted(num_local_experts=SOME, shared_intermediate_size=st.integers(0, 9)),
    "jetmoe": _counted(num_local_experts=st.integers(2, 4)),
    "kolibri1": _counted(num_experts=SOME, shared_expert_intermediate_size=SOME),
    "laguna": _counted(
        num_experts=SOME, shared_expert_intermediate_size=SOME, gating=st.sampled_from((True, False, "per-head", "x"))
    ),
    "longcat_flash": _longcat,
    "mellum": _counted(num_experts=SOME),
    "mimo_v2_flash": _counted(n_routed_experts=SOME, v_head_dim=SOME),
    "mistral4": _deepseek,
    "afmoe": _counted(num_dense_layers=st.integers(0, 4), num_experts=SOME, num_shared_experts=SOME),
    "axk1": lambda draw: _deepseek(draw) | {"q_lora_rank": draw(st.integers(1, 40)), "moe_layer_freq": 2},
    "dbrx": _dbrx,
    "deepseek_v2": _deepseek_v2,
    "glm4_moe_lite": _deepseek,
    "gpt2": _gpt2,
    "falcon": _falcon,
    "falcon_mamba": _mamba,
    "gemma4_text": _gemma4,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gpt_neox_japanese": _gpt_neox_japanese,
    "gptj": _gptj,
    "helium": _helium,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "minicpm3": _latent,
    "mpt": _mpt,
    "nemotron": _nemotron,
    "openai-gpt": _old_gpt,
    "opt": _opt,
    "persimmon": _persimmon,
    "phi": _phi,
    "t5": _t5,
    "xglm": _xglm,
    "mt5": _t5,
    "umt5": _t5,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "electra": lambda draw: _bert(draw) | {"embedding_size": draw(st.integers(1, 60))},
    **dict.fromkeys(ROBERTAS, _bert),
    **dict.fromkeys(BARTS, _bart),
    "youtu": _latent,
}
HEADS = dict.fromkeys(("bert", "distilbert", "electra", "modernbert", *ROBERTAS), "AutoModelForMaskedLM")
HEADS |= dict.fromkeys(("t5", "mt5", "umt5", *BARTS), "AutoModelForSeq2SeqLM")
HEADS["mistral4"] = "AutoModelForImageTextToText"
"""The classes of models that are no causal language models."""


def upstream(config: dict[str, Any]) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    """Names and shapes of transformers' parameters (a tied one once), and the bytes of its buffers."""
    settings_ = {k: v for k, v in config.items() if k != "model_type"}
    settings_ |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if config["model_type"] == "cwm":
        settings_["bos_token_id"] = 0  # which must be a number there
    with torch.device("meta"):
        head = getattr(transformers, HEADS.get(config["model_type"], "AutoModelForCausalLM"))
        model = head.from_config(transformers.CONFIG_MAPPING[config["model_type"]](**settings_))
    model.tie_weights()
    named = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    return named, sum(b.numel() * b.element_size() for b in model.buffers())


def ghost(config: dict[str, Any], unroll: bool) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    with recording() as ledger, unrolled(unroll):
        model = models.build(config, FLOAT32)
        parameters = model.parameters()
        named = [(n, p.tensor.shape) for p in parameters for n in p.names[:1]] if unroll else []
        buffers = sum(a.num_bytes for a in ledger.allocations if a.purpose == "buffer")
        if not unroll:
            named = [(n, p.tensor.shape) for p in parameters for n in p.names]
        return named, buffers


@pytest.mark.torch
@pytest.mark.parametrize("family", sorted((*DECODERS, *OTHERS)))
@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_every_tensor(family: str, data: st.DataObject) -> None:
    config = {"model_type": family, "vocab_size": data.draw(st.integers(2, 3000))}
    config |= OTHERS[family](data.draw) if family in OTHERS else _decoder(data.draw, family)
    theirs, their_buffers = upstream(config)
    ours, our_buffers = ghost(config, unroll=True)
    assert ours == theirs
    assert our_buffers == their_buffers
    compressed, _ = ghost(config, unroll=False)
    assert sorted(compressed) == sorted(theirs)
