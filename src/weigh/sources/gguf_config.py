"""The config of a model of which only a GGUF file is there: its key-value pairs in a `config.json`'s words.

llama.cpp's names (`gguf-py/gguf/constants.py`) say what its runtime needs, so that some of it has to be read off the
tensors: tied embeddings are a missing `output.weight`, biases are there or not. An architecture that is not in
`ARCHITECTURES`, or a size that the file does not say, is an error that names it.
"""

# ruff: noqa: ARG001  what an architecture needs beyond its names is a function of one signature

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import InputError, NotModelledError
from weigh.sources.gguf import Array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from weigh.sources.checkpoint import Checkpoint

COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""Most architectures' names for what most families call alike."""
HEAD = {"attention.key_length": "head_dim"}
WINDOW = {"attention.sliding_window": "sliding_window"}
EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
LOCAL_EXPERTS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
}
NEOX = {**COMMON, "attention.layer_norm_epsilon": "layer_norm_eps"}
MAMBA = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "ssm.conv_kernel": "conv_kernel",
    "ssm.state_size": "state_size",
    "ssm.inner_size": "intermediate_size",
    "ssm.time_step_rank": "time_step_rank",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
}
DEEPSEEK = {
    **COMMON,
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
    "rope.dimension_count": "qk_rope_head_dim",
}
SHARED = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
DELTA = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": "linear_inner_size",
    "full_attention_interval": "full_attention_interval",
}
ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    "llama": ("llama", COMMON | HEAD | LOCAL_EXPERTS),
    "arcee": ("arcee", COMMON | HEAD),
    "smollm3": ("smollm3", COMMON),
    "seed_oss": ("seed_oss", COMMON | HEAD),
    "exaone4": ("exaone4", COMMON | HEAD | WINDOW),
    "granite": ("granite", COMMON),
    "olmo": ("olmo", COMMON),
    "olmo2": ("olmo2", COMMON),
    "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", COMMON | HEAD),
    "qwen2moe": (
        "qwen2_moe",
        COMMON | EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    ),
    "qwen3moe": ("qwen3_moe", COMMON | EXPERTS | HEAD),
    "olmoe": ("olmoe", COMMON | EXPERTS),
    "granitemoe": (
        "granitemoe",
        COMMON | LOCAL_EXPERTS,
    ),
    "glm4": ("glm4", COMMON | HEAD),
    "glm4moe": (
        "glm4_moe",
        {**DEEPSEEK, **HEAD, "rope.dimension_count": "rotary_width"},
    ),
    "gemma": ("gemma", COMMON | HEAD),
    "gemma2": ("gemma2", COMMON | HEAD | WINDOW),
    "gemma3": ("gemma3_text", COMMON | HEAD | WINDOW),
    "phi2": ("phi", NEOX),
    "phi3": ("phi3", COMMON | WINDOW),
    "gpt2": ("gpt2", GPT2),
    "gptneox": ("gpt_neox", NEOX),
    "bloom": ("bloom", {"embedding_length": "hidden_size", "block_count": "n_layer", "attention.head_count": "n_head"}),
    "starcoder": ("gpt_bigcode", GPT2),
    "starcoder2": ("starcoder2", {**COMMON, "attention.layer_norm_epsilon": "norm_epsilon"}),
    "stablelm": ("stablelm", NEOX),
    "command-r": ("cohere", NEOX),
    "cohere2": ("cohere2", NEOX | WINDOW),
    "deepseek2": ("deepseek_v3", DEEPSEEK),
    "gpt-oss": (
        "gpt_oss",
        COMMON | HEAD | WINDOW | EXPERTS | {"expert_count": "num_local_experts"},
    ),
    "mamba": ("mamba", MAMBA),
    "falcon": (
        "falcon",
        {
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_kv_heads",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "vocab_size": "vocab_size",
        },
    ),
    "phimoe": ("phimoe", NEOX | LOCAL_EXPERTS),
    "nemotron": (
        "nemotron",
        NEOX | {"attention.layer_norm_epsilon": "norm_eps", "attention.layer_norm_rms_epsilon": "norm_eps"},
    ),
    "dots1": ("dots1", DEEPSEEK | HEAD),
    "qwen35": ("qwen3_5_text", COMMON | HEAD | DELTA),
    "qwen35moe": ("qwen3_5_moe_text", COMMON | HEAD | DELTA | EXPERTS | SHARED),
    "qwen3next": ("qwen3_next", COMMON | HEAD | DELTA | EXPERTS | SHARED),
    "gemma4": (
        "gemma4_text",
        {**COMMON, **HEAD, **WINDOW, **EXPERTS, "expert_used_count": "top_k_experts"}
        | {"attention.key_length": "global_head_dim", "attention.key_length_swa": "head_dim"}
        | {"embedding_length_per_layer_input": "hidden_size_per_layer_input"}
        | {"attention.shared_kv_layers": "num_kv_shared_layers"},
    ),
}
"""llama.cpp's architecture -> the family that it is, and the keys of that family's config by those of the file."""
IGNORED = (
    *(
        "rope.",
        "attention.scale",
        "attention.causal",
        "attention.clamp_kqv",
        "attn_logit_softcapping",
        "ssm.dt_b_c_rms",
    ),
    *("final_logit_softcapping", "logit_scale", "residual_scale", "embedding_scale", "use_parallel_residual"),
    *("tensor_data_layout", "pooling_type", "interleave_moe_layer_step", "attention.value_length", "quantize."),
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "context_length", "attention.head_count_kv"),
    *("attention.key_length", "attention.sliding_window", "expert_gating_func", "nextn_predict_layers"),
    *("attention.temperature", "expert_weights_", "attention.output_scale", "feed_forward_length", "ssm.group_count"),
)
"""What else a file may say of its architecture; it shapes no tensor, or is read below."""


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config of a GGUF file.

    Raises:
        InputError: a size is missing or differs from layer to layer.
        NotModelledError: the architecture's names are not known, or it says something that they do not cover.
    """
    metadata = checkpoint.metadata
    architecture = metadata.get("general.architecture")
    where = f"{checkpoint.where}: general.architecture"
    if not isinstance(architecture, str):
        raise InputError("is missing", where=where, hint="Is this a model? A vocabulary or a projector alone is none.")
    if architecture not in ARCHITECTURES:
        raise NotModelledError(
            f"GGUF's architecture {architecture[:80]!r}",
            where=where,
            hint=f"Name the config.json as well. Known: {', '.join(sorted(ARCHITECTURES))}.",
        )
    model_type, names = ARCHITECTURES[architecture]
    pairs = _pairs(metadata, architecture)
    config: dict[str, Any] = {"model_type": model_type}
    for key, value in pairs.items():
        if f"{architecture}.{key}" in _EACH and isinstance(value, list):
            continue
        if key in names:
            config[names[key]] = _single(value, f"{checkpoint.where}: {architecture}.{key}")
        elif not key.startswith(IGNORED) and value not in (0, 0.0, False):
            raise NotModelledError(f"GGUF's {architecture}.{key[:80]}", where=checkpoint.where)
    if "vocab_size" not in config:
        config["vocab_size"] = _vocabulary(checkpoint)
    config["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    special = _SPECIAL.get(architecture)
    if special is not None:
        special(config, pairs, checkpoint)
    return config


def _pairs(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    prefix = f"{architecture}."
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def _single(value: Any, where: str) -> Any:
    """One number for all layers."""
    if isinstance(value, list) and value and all(v == value[0] for v in value):
        return value[0]
    if isinstance(value, list | Array | str):
        raise NotModelledError("a GGUF file whose layers differ in it", where=where, hint="Name the config.json.")
    return value


def _vocabulary(checkpoint: Checkpoint) -> int:
    """Rows of the embedding: what the model has, with padding that the tokenizer lacks."""
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        return embedding.shape[0]
    tokens = checkpoint.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        return len(tokens)
    if isinstance(tokens, Array):
        return tokens.length
    raise InputError("is missing", where=f"{checkpoint.where}: vocab_size", hint="The file has no embedding.")


def _biased(checkpoint: Checkpoint, tensor: str) -> bool:
    return f"blk.0.{tensor}.bias" in checkpoint.tensors


def _llama(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Llama, Mistral and Mixtral are one architecture to llama.cpp."""
    if config.get("num_local_experts"):
        config["model_type"] = "mixtral"
        return
    if _biased(checkpoint, "attn_q"):
        if not _biased(checkpoint, "attn_output"):
            raise NotModelledError("a Llama with biases at queries, keys and values only", where=checkpoint.where)
        config["attention_bias"] = True
    if _biased(checkpoint, "ffn_up"):
        config["mlp_bias"] = True


def _gemma3(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Every sixth layer sees everything (llama.cpp's `set_swa_pattern(6)`)."""
    config["sliding_window_pattern"] = 6


def _gpt2(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    config["n_inner"] = pairs.get("feed_forward_length")


def _starcoder(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    _gpt2(config, pairs, checkpoint)
    config["multi_query"] = pairs.get("attention.head_count_kv") == 1


def _cohere(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in checkpoint.tensors


def _glm4(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    _rotary(config, pairs)
    config["attention_bias"] = _biased(checkpoint, "attn_q")


def _mamba(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """A config says how many times wider its mixers are."""
    inner, width = config.pop("intermediate_size", None), config.get("hidden_size")
    if isinstance(inner, int) and isinstance(width, int) and width > 0:
        if inner % width:
            raise NotModelledError("a Mamba whose mixers are no whole times wider", where=checkpoint.where)
        config["expand"] = inner // width


def _neox(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    _rotary(config, pairs)
    config["use_parallel_residual"] = pairs.get("use_parallel_residual", True)


def _rotary(config: dict[str, Any], pairs: Mapping[str, Any], *_: Any) -> None:
    """How much of a head is turned."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    turned = pairs.get("rope.dimension_count")
    if isinstance(heads, int) and isinstance(width, int) and isinstance(turned, int) and heads > 0 and width > 0:
        config["partial_rotary_factor"] = turned / (config.get("head_dim") or width // heads)


def _stablelm(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    _rotary(config, pairs)
    config["use_qkv_bias"] = _biased(checkpoint, "attn_q")
    config["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in checkpoint.tensors
    config["qk_layernorm"] = "blk.0.attn_q_norm.weight" in checkpoint.tensors


def _starcoder2(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    config["use_bias"] = _biased(checkpoint, "attn_q")


def _experts(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Experts are as wide as their tensors are, where no key says it."""
    found = checkpoint.tensors.get("blk.0.ffn_gate_exps.weight")
    if "moe_intermediate_size" not in config and found is not None and len(found.shape) == 3:
        config["moe_intermediate_size"] = found.shape[1]
    shared = checkpoint.tensors.get("blk.0.ffn_gate_shexp.weight")
    if config["model_type"] == "qwen2_moe" and shared is not None:
        config.setdefault("shared_expert_intermediate_size", shared.shape[0])
    config.setdefault("intermediate_size", config.get("moe_intermediate_size"))


def _olmoe(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    config.pop("moe_intermediate_size", None)


def _gpt_oss(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Its only feed-forward layers are experts."""
    width = config.pop("moe_intermediate_size", None)
    if width is not None:
        config["intermediate_size"] = width


def _glm4_moe(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    turned = config.pop("rotary_width", None)
    if isinstance(turned, int) and isinstance(config.get("head_dim"), int):
        config["partial_rotary_factor"] = turned / config["head_dim"]
    config["attention_bias"] = _biased(checkpoint, "attn_q")
    config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in checkpoint.tensors
    _next_tokens(config, pairs)


def _next_tokens(config: dict[str, Any], pairs: Mapping[str, Any]) -> None:
    """llama.cpp counts the layers that predict further tokens as blocks, a config does not."""
    further = pairs.get("nextn_predict_layers")
    if isinstance(further, int) and further:
        config["num_nextn_predict_layers"] = further
        config["num_hidden_layers"] -= further


def _deepseek(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """DeepSeek-V2 gates by softmax, V3 by sigmoid (`expert_gating_func` 2). Latent attention counts as one key head."""
    if pairs.get("expert_gating_func") != 2:
        config["model_type"] = "deepseek_v2"
    rope = config.get("qk_rope_head_dim")
    key = pairs.get("attention.key_length_mla") or pairs.get("attention.key_length")
    value = pairs.get("attention.value_length_mla") or pairs.get("attention.value_length")
    if not all(isinstance(size, int) for size in (rope, key, value)):
        raise InputError("has no sizes of its heads", where=checkpoint.where, hint="Name the config.json as well.")
    config["qk_nope_head_dim"] = key - rope  # type: ignore[operator]
    config["v_head_dim"] = value
    config["num_key_value_heads"] = config.get("num_attention_heads")
    config.setdefault("q_lora_rank", None)
    _next_tokens(config, pairs)


def _delta(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Value heads are as many as the file's time step rank, and share its inner size."""
    inner, heads = config.pop("linear_inner_size", None), config.get("linear_num_value_heads")
    if isinstance(inner, int) and isinstance(heads, int) and heads > 0:
        config["linear_value_head_dim"] = inner // heads


def _gemma4(config: dict[str, Any], pairs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Layers with full attention have wider heads and, without values of their own, fewer of them."""
    each = pairs.get("attention.head_count_kv")
    config.setdefault("head_dim", config.get("global_head_dim"))
    if isinstance(each, list) and each:
        config["num_key_value_heads"] = each[0]
        config["num_global_key_value_heads"] = each[-1]
        config["attention_k_eq_v"] = each[0] != each[-1]
    config["enable_moe_block"] = bool(config.get("num_experts"))
    config.setdefault("hidden_size_per_layer_input", 0)


_SPECIAL: dict[str, Callable[[dict[str, Any], Mapping[str, Any], Checkpoint], None]] = {
    "llama": _llama,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "starcoder": _starcoder,
    "command-r": _cohere,
    "glm4": _glm4,
    "mamba": _mamba,
    "starcoder2": _starcoder2,
    "gptneox": _neox,
    "phi2": _rotary,
    "phi3": _rotary,
    "stablelm": _stablelm,
    "qwen2moe": _experts,
    "qwen3moe": _experts,
    "olmoe": _olmoe,
    "gpt-oss": _gpt_oss,
    "glm4moe": _glm4_moe,
    "deepseek2": _deepseek,
    "qwen35": _delta,
    "qwen35moe": _delta,
    "qwen3next": _delta,
    "gemma4": _gemma4,
}
_EACH = frozenset(("gemma4.attention.head_count_kv",))
"""Keys that may differ from layer to layer, because the architecture's function reads them."""
"""What an architecture needs beyond its names."""
