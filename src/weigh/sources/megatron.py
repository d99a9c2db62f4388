"""Megatron-LM's arguments (`--num-layers 32 --hidden-size 4096 ...`) and their names in a dict, as configs.

The names and defaults are those of `megatron/training/arguments.py`. Rotary positions, RMSNorm and SwiGLU make a Llama
(with biases at queries, keys and values a Qwen2, with normed queries and keys a Qwen3, with experts a Mixtral);
learned positions, LayerNorm and GELU make a GPT-2. Other combinations are refused by name.
"""

from __future__ import annotations

from typing import Any

from weigh.errors import InputError, NotModelledError

REFUSED = (
    *("multi_latent_attention", "mtp_num_layers", "moe_shared_expert_intermediate_size", "moe_ffn_hidden_size"),
    *(
        "moe_layer_freq",
        "heterogeneous_layers_config_path",
        "is_hybrid_model",
        "hybrid_override_pattern",
        "window_size",
    ),
    *("hybrid_attention_ratio", "experimental_attention_variant", "position_embedding_type_per_layer"),
)
"""Arguments that make another model, with other tensors."""


def is_megatron(config: dict[str, Any]) -> bool:
    """Whether these are such names."""
    return "model_type" not in config and {"num_layers", "hidden_size", "num_attention_heads"} <= config.keys()


def parse_arguments(text: str) -> dict[str, Any] | None:
    """The arguments in a command line; None where it is none.

    >>> parse_arguments("torchrun pretrain_gpt.py --num-layers 2 --swiglu --hidden-size=64")
    {'num_layers': 2, 'swiglu': True, 'hidden_size': 64}
    """
    if "--num-layers" not in text or len(text) > 1 << 16:
        return None
    import shlex

    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError:
        return None
    found: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = _value(value) if value else True
        elif name is not None and found[name] is True:
            found[name] = _value(word)
        else:
            name = None
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def translate(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The same model as a `config.json`.

    Raises:
        InputError: a size is missing.
        NotModelledError: no family here has this combination.
    """
    for name in REFUSED:
        if config.get(name) not in (None, False, 0):
            raise NotModelledError(f"Megatron's {name}", where=where)
    width, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    gated = bool(config.get("swiglu"))
    positions = config.get("position_embedding_type", "learned_absolute")
    if config.get("use_rotary_position_embeddings"):
        positions = "rope"
    norm = config.get("normalization", "LayerNorm")
    vocabulary = config.get("padded_vocab_size") or _padded(config, where)
    tied = not _flag(config, "untie_embeddings_and_output_weights", "share_embeddings_and_output_weights", False)
    biased = _flag(config, "disable_bias_linear", "add_bias_linear", False) is False
    feed_forward = config.get("ffn_hidden_size") or (int((4 * width * 2 / 3) / 64) * 64 if gated else 4 * width)
    shared = {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    if (positions, norm, gated, biased) == ("learned_absolute", "LayerNorm", False, True):
        return {
            "model_type": "gpt2",
            "n_layer": _size(config, "num_layers", where),
            "n_embd": width,
            "n_head": heads,
            "n_positions": _size(config, "max_position_embeddings", where),
            "n_inner": feed_forward,
            **shared,
        }
    if (positions, norm, gated) != ("rope", "RMSNorm", True):
        what = f"Megatron's {positions} with {norm} and {'SwiGLU' if gated else 'an MLP without gate'}"
        raise NotModelledError(what, where=where, hint="Give the config.json of a model that is built so.")
    grouped = config.get("group_query_attention") or config.get("num_query_groups")
    found = {
        "model_type": "llama",
        "num_hidden_layers": _size(config, "num_layers", where),
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_query_groups") or 1 if grouped else heads,
        "head_dim": config.get("kv_channels") or width // heads,
        "intermediate_size": feed_forward,
        **shared,
    }
    if "max_position_embeddings" in config:
        found["max_position_embeddings"] = config["max_position_embeddings"]
    return _variant(found, config, biased, where)


def _variant(found: dict[str, Any], config: dict[str, Any], biased: bool, where: str) -> dict[str, Any]:
    """Llama, or the relative of it that the arguments ask for."""
    marks = [name for name in ("add_qkv_bias", "qk_layernorm", "num_experts") if config.get(name)]
    if biased:
        marks.append("add_bias_linear")
        found |= {"attention_bias": True, "mlp_bias": True}
    if len(marks) > 1:
        raise NotModelledError(f"Megatron's {' with '.join(marks)}", where=where)
    if marks == ["add_qkv_bias"]:
        return found | {"model_type": "qwen2"}
    if marks == ["qk_layernorm"]:
        return found | {"model_type": "qwen3"}
    if marks == ["num_experts"]:
        experts = {"num_local_experts": config["num_experts"], "num_experts_per_tok": config.get("moe_router_topk", 2)}
        return found | {"model_type": "mixtral", **experts}
    return found


def _flag(config: dict[str, Any], argument: str, field: str, default: bool) -> bool:
    """An argument that switches something off, or the field of `TransformerConfig` that is its opposite."""
    if argument in config:
        return bool(config[argument])
    return not config[field] if field in config else default


def _padded(config: dict[str, Any], where: str) -> int:
    """The vocabulary, filled up so that every tensor-parallel rank has the same share."""
    multiple = config.get("make_vocab_size_divisible_by", 128) * config.get("tensor_model_parallel_size", 1)
    if type(multiple) is not int or multiple < 1:
        raise InputError(f"is {multiple!r}", where=f"{where}: make_vocab_size_divisible_by")
    return multiple * -(-_size(config, "vocab_size", where) // multiple)


def _size(config: dict[str, Any], name: str, where: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        hint = f"Give --{name.replace('_', '-')} and a positive whole number."
        raise InputError("is missing" if value is None else f"is {value!r}", where=f"{where}: {name}", hint=hint)
    return value
