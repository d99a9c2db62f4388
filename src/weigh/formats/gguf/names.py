"""What a converted model's tensors are called and shaped in GGUF, from the parameters of the ghost modules.

Read: llama.cpp's converter of spring 2026 (`conversion/*.py`, `gguf-py/gguf/tensor_mapping.py`). It renames, merges a
layer's experts, cuts fused projections where llama.cpp has two tensors, and turns Llama's queries and keys round (which
changes no size). Vectors, norms, routers and convolutions are written in fp32, all other tensors in the file's format.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from weigh.dtypes import FLOAT32, DType
from weigh.errors import NotModelledError
from weigh.formats.gguf.mixes import Tensor
from weigh.ghost import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from weigh.ghost.nn import Module

_TOP = {
    **dict.fromkeys("embed_tokens wte word_embeddings embed_in embeddings".split(), "token_embd"),
    **dict.fromkeys("norm ln_f final_layer_norm final_layernorm norm_f".split(), "output_norm"),
    **dict.fromkeys(("lm_head", "embed_out"), "output"),
    "wpe": "position_embd",
    "word_embeddings_layernorm": "token_embd_norm",
    "embedding_norm": "token_embd_norm",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "emb_ln": "token_embd_norm",
}
"""Outside of the blocks: the last part of the module's path."""
_TOGETHER = {"altup_projections": "altup_proj", "altup_unembed_projections": "altup_unembd_proj"}
"""Matrices of Gemma 3n's streams, which are one tensor."""
_ATTENTION = {
    **{f"{x}_proj": f"attn_{x}" for x in "qkv"},
    **dict.fromkeys("o_proj out_proj dense c_proj linear_attn_out".split(), "attn_output"),
    **dict.fromkeys("qkv_proj query_key_value c_attn Wqkv".split(), "attn_qkv"),
    **dict.fromkeys(("q_norm", "q_layernorm", "query_layernorm"), "attn_q_norm"),
    **dict.fromkeys(("k_norm", "k_layernorm", "key_layernorm"), "attn_k_norm"),
    "q_a_proj": "attn_q_a",
    "q_a_layernorm": "attn_q_a_norm",
    "q_b_proj": "attn_q_b",
    "kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "kv_a_layernorm": "attn_kv_a_norm",
}
_MLP = {
    **{f"{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
    **dict.fromkeys("gate_up_proj c_fc fc1 dense_h_to_4h fc_in".split(), "ffn_up"),
    **dict.fromkeys("c_proj fc2 dense_4h_to_h fc_out w2".split(), "ffn_down"),
    "w1": "ffn_gate",
    "w3": "ffn_up",
    **dict.fromkeys(("gate", "router", "router.layer", "router.proj"), "ffn_gate_inp"),
    "gate.wg": "ffn_gate_inp",
    "shared_expert_gate": "ffn_gate_inp_shexp",
    **{
        f"{s}.{x}_proj": f"ffn_{x}_shexp"
        for s in ("shared_expert", "shared_experts", "shared_mlp")
        for x in ("gate", "up", "down")
    },
}
_MIXER = {
    "in_proj": "ssm_in",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "out_proj": "ssm_out",
    "conv1d": "ssm_conv1d",
    "norm": "ssm_norm",
    "in_proj_ba": "ssm_ba",
    "in_proj_b": "ssm_beta",
    "in_proj_a": "ssm_alpha",
    "in_proj_qkv": "attn_qkv",
    "in_proj_z": "attn_gate",
}
_CONVOLUTION = {"in_proj": "shortconv.in_proj", "out_proj": "shortconv.out_proj", "conv": "shortconv.conv"}
_GROUPS = {
    **dict.fromkeys("self_attn attention self_attention attn".split(), _ATTENTION),
    **dict.fromkeys("mlp feed_forward block_sparse_moe moe".split(), _MLP),
    **dict.fromkeys(("linear_attn", "mamba", "mixer"), _MIXER),
    "conv": _CONVOLUTION,
}
_BLOCK = {
    **dict.fromkeys("input_layernorm ln_1 operator_norm norm norm_1".split(), "attn_norm"),
    **dict.fromkeys(
        "post_attention_layernorm ln_2 ffn_norm pre_feedforward_layernorm norm_2 pre_ff_layernorm".split(), "ffn_norm"
    ),
    "post_feedforward_layernorm": "post_ffw_norm",
    "ln_attn": "attn_norm",
    "ln_mlp": "attn_norm_2",
    "router.proj": "ffn_gate_inp",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}
_POST = dict.fromkeys(("gemma2", "gemma3", "gemma3n", "gemma4", "olmo2", "exaone4"), "post_attention_norm")
_SPECIAL: Mapping[str, Mapping[str, str]] = {
    **{name: {"post_attention_layernorm": stem} for name, stem in _POST.items()},
    **{
        name: {"post_attention_layernorm": "post_attention_norm"}
        for name in ("gpt-oss", "glm4moe", "qwen3next", "qwen35", "qwen35moe", "seed_oss")
    },
    "glm4": {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"},
    "nemotron_h": {
        **{f"mixer.{x}_proj": f"attn_{x}" for x in "qkv"},
        "mixer.o_proj": "attn_output",
        "mixer.up_proj": "ffn_up",
        "mixer.down_proj": "ffn_down",
    },
    "granitehybrid": {"post_attention_layernorm": "ffn_norm"},
}
"""Where an architecture calls a block's part otherwise."""
_VALUES = {
    "sinks": "attn_sinks.weight",
    "e_score_correction_bias": "exp_probs_b.bias",
    "A_log": "ssm_a",
    "D": "ssm_d",
    "dt_bias": "ssm_dt.bias",
    "layer_scalar": "layer_output_scale.weight",
    "bias": "exp_probs_b.bias",
    "correct_output_scale": "altup_correct_scale.weight",
    "per_expert_scale": "ffn_down_exps.scale",
    "scale": "ffn_gate_inp.scale",
}
"""Parameters that are no layer's weight or bias."""
_FP32 = re.compile(
    r"_norm\.weight$|ffn_gate_inp|^position_embd|ssm_conv1d|shortconv\.conv|altup_(correct|predict)_coef"
)
_PATH = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)$")
_ELSEWHERE = re.compile(
    r"(^|\.)(vision|visual|vision_tower|vision_model|audio_tower|multi_modal_projector|"
    r"embed_vision|embed_audio|mtp|aligner|projector)\b"
)


def converted(
    model: Module, architecture: str, dtype: DType, config: Mapping[str, Any], divides_latent: bool = True
) -> list[Tensor]:
    """The tensors that the converter writes, matrices in `dtype`.

    `divides_latent` is false of converters from before April 2025, which left latent attention's matrix whole.

    Raises:
        NotModelledError: a parameter whose name in GGUF is not known.
    """
    made = []
    for parameter in model.parameters():
        if _ELSEWHERE.search(parameter.names[0]):
            continue  # a projector is a file of its own
        shape: tuple[int, ...] = parameter.tensor.shape  # type: ignore[assignment]
        turned = isinstance(parameter.module, nn.Conv1D) or getattr(parameter.module, "is_transposed", False)
        if len(shape) > 1 and (turned or (architecture == "llama4" and ".experts." in parameter.names[0])):
            shape = (*shape[:-2], shape[-1], shape[-2]) if parameter.place[-1] not in _BIASES else shape
        for hugging in parameter.names:
            made += [Tensor(n, s, _as_written(n, s, dtype)) for n, s in _tensors(hugging, shape, architecture, config)]
    if not divides_latent:
        made = [t for t in made if "attn_v_b" not in t.name]
        made = [_whole(t, config) if "attn_k_b" in t.name else t for t in made]
    made += _corrections(config, made)
    return [*_once(made), *(Tensor(name, (size,), FLOAT32) for name, size in _frequencies(config, architecture))]


def _whole(keys: Tensor, config: Mapping[str, Any]) -> Tensor:
    heads, rank, key = keys.shape
    rows = heads * (key + config["v_head_dim"])
    return Tensor(keys.name.replace("attn_k_b", "attn_kv_b"), (rows, rank), keys.dtype)


def _corrections(config: Mapping[str, Any], made: list[Tensor]) -> list[Tensor]:
    """What transformers does not have as parameters and files have.

    Buffers: what sigmoid gates add to an expert's chance, scales of Gemma 4's layers. And keys and values of Gemma 3n's
    layers that read those of others, which its loader asks for.
    """
    if config.get("model_type") == "gemma3n_text":
        own = [t for t in made if t.name.startswith("blk.0.attn_") and t.name.split(".")[2][5] in "kv"]
        shared = range(config["num_hidden_layers"] - config["num_kv_shared_layers"], config["num_hidden_layers"])
        return [t._replace(name=t.name.replace("blk.0.", f"blk.{number}.")) for number in shared for t in own]
    if config.get("model_type") in ("gemma4", "gemma4_text"):
        norms = [t.name for t in made if t.name.endswith(".attn_norm.weight")]
        return [Tensor(name.replace("attn_norm", "layer_output_scale"), (1,), FLOAT32) for name in norms]
    if config.get("model_type") not in _CORRECTED:
        return []
    gates = [t for t in made if t.name.endswith("ffn_gate_inp.weight")]
    return [Tensor(t.name.replace("ffn_gate_inp.weight", "exp_probs_b.bias"), (t.shape[0],), FLOAT32) for t in gates]


_CORRECTED = frozenset("deepseek_v3 glm4_moe dots1 kimi_k2 glm4_moe_lite glm_moe_dsa minimax_m2 lfm2_moe".split())


def _once(tensors: list[Tensor]) -> list[Tensor]:
    """One of each name: a tied output layer is the embedding."""
    return list({t.name: t for t in tensors}.values())


def _as_written(name: str, shape: tuple[int, ...], dtype: DType) -> DType:
    return FLOAT32 if len(shape) < 2 or _FP32.search(name) or not name.endswith(".weight") else dtype


def _frequencies(config: Mapping[str, Any], architecture: str) -> list[tuple[str, int]]:
    """Factors of the rotary frequencies, which the converter works out."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if architecture == "gemma4":
        return [("rope_freqs.weight", config["global_head_dim"] // 2)]
    width = (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if "num_attention_heads" in config
        else 0
    )
    turned = int(width * (config.get("partial_rotary_factor") or 1.0))
    if kind == "llama3":
        return [("rope_freqs.weight", turned // 2)]
    if kind in ("longrope", "su"):
        return [(f"rope_factors_{which}.weight", turned // 2) for which in ("long", "short")]
    return []


_BIASES = ("gate_up_proj_bias", "down_proj_bias", "bias")


def _tensors(
    hugging: str, shape: tuple[int, ...], architecture: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in GGUF of one parameter."""
    found = _PATH.search(hugging)
    if found is None:
        stem, _, kind = hugging.rpartition(".")
        list_of, _, number = stem.rpartition(".")
        together = _TOGETHER.get(list_of.rpartition(".")[2])
        if together is not None:
            if number == "0":
                yield f"{together}.{kind}", (config["altup_num_inputs"] - 1, *shape)
            return
        name = _TOP.get(stem.rpartition(".")[2])
        if name is None:
            raise NotModelledError(f"the GGUF name of {hugging}")
        yield f"{name}.{kind}", shape
        return
    block, path = f"blk.{found[1]}.", found[2]
    if ".experts." in f".{path}":
        yield from _experts(block, path.rpartition("experts.")[2], shape, architecture == "gemma4")
    elif path.endswith("kv_b_proj.weight"):
        yield from _latent(block, shape, config)
    elif path.endswith("in_proj_qkvz.weight"):
        values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
        yield f"{block}attn_qkv.weight", (shape[0] - values, shape[1])
        yield f"{block}attn_gate.weight", (values, shape[1])
    elif ".shared_mlp." in f".{path}":
        shared = "_shexp" if config.get("num_local_experts") else ""
        for part in ("gate", "up") if "input_linear" in path else ("down",):
            yield f"{block}ffn_{part}{shared}.weight", (shape[0] // (1 if part == "down" else 2), shape[1])
    else:
        name = f"{block}{_stem(path, architecture, hugging)}"
        yield name, _shape(name, shape, architecture, config)


def _shape(name: str, shape: tuple[int, ...], architecture: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """As the converter turns it: without sizes of 1, or with one, and norms of groups in their groups."""
    if "conv" in name:
        return tuple(size for size in shape if size > 1)
    if architecture in _SCANNED and name.endswith(("ssm_a", "ssm_d")):
        return (*shape, 1)
    if architecture in _SCANNED and name.endswith("ssm_norm.weight"):
        groups = config.get("mamba_n_groups") or config.get("n_groups") or 1
        return groups, shape[0] // groups
    return shape[1:] if name.endswith("ffn_gate_inp_shexp.weight") else shape


_SCANNED = frozenset(("mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe"))
"""Architectures with Mamba 2's layers."""


def _stem(path: str, architecture: str, hugging: str) -> str:
    special = _SPECIAL.get(architecture, {})
    module, _, kind = path.rpartition(".")
    if kind not in ("weight", "bias") or (kind == "bias" and module in ("mlp.gate", "feed_forward")):
        if kind in _VALUES:
            return _VALUES[kind]
        raise NotModelledError(f"the GGUF name of {hugging}")
    group, _, part = module.partition(".")
    name = special.get(module) or _BLOCK.get(module) or _GROUPS.get(group, {}).get(part)
    if name is None:
        raise NotModelledError(f"the GGUF name of {hugging}")
    return f"{name}.{kind}"


def _experts(block: str, part: str, shape: tuple[int, ...], fused: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A layer's experts together, gates and ups in tensors of their own unless they are `fused`."""
    kind = "bias" if part.endswith("_bias") else "weight"
    stem = part.removesuffix("_bias").removesuffix(".weight").removesuffix("_proj")
    if stem == "gate_up" and not fused:
        for name in ("gate", "up"):
            yield f"{block}ffn_{name}_exps.{kind}", (shape[0], shape[1] // 2, *shape[2:])
    elif stem in ("down", "up", "gate", "gate_up"):
        yield f"{block}ffn_{stem}_exps.{kind}", shape
    else:
        raise NotModelledError(f"the GGUF name of {block}{part}")


def _latent(block: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Latent attention's up-projection as keys, turned round for each head, and values (since April 2025)."""
    heads, rank = config["num_attention_heads"], shape[1]
    key, value = config["qk_nope_head_dim"], config["v_head_dim"]
    yield f"{block}attn_k_b.weight", (heads, rank, key)
    yield f"{block}attn_v_b.weight", (heads, value, rank)
