"""`params.json`: the configs that Mistral and Meta publish beside their own checkpoints, in the words of `config.json`.

Mistral's keys: mistral-inference `args.py`, vLLM `transformers_utils/configs/mistral.py`. Meta's: llama `model.py`
(`ModelArgs` and the width of `FeedForward`). A key that is not known here is refused by name.
"""

from __future__ import annotations

from typing import Any

from weigh.errors import InputError, NotModelledError

SIZES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
}
OPTIONAL = {
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
    "max_position_embeddings": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "model_max_length": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
WITHOUT_MEMORY = frozenset(
    {
        *("model_type", "use_scaled_rope", "ffn_dim_multiplier", "multiple_of", "moe", "causal", "max_batch_size"),
        *("rope_scaling_factor", "rope_scaling", "version", "use_biases", "attn_bias"),
    }
)
"""Read below, or without influence on any tensor."""


def is_params(config: dict[str, Any]) -> bool:
    """Whether these are such keys: DistilBERT's `config.json` has some of them, and a `model_type`."""
    return "dim" in config and "n_layers" in config and not config.keys() & {"hidden_size", "model_type"}


def translate(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The same model as a `config.json`.

    Raises:
        InputError: a size is missing.
        NotModelledError: there is a key whose meaning is not known here.
    """
    for key in ("dim", "n_layers", "n_heads", "vocab_size"):
        if type(config.get(key)) is not int or config[key] < 1:
            hint = "Llama 1 and 2 have 32000 tokens." if key == "vocab_size" else "Give a positive whole number."
            raise InputError(f"is {config.get(key)!r}", where=f"{where}: {key}", hint=hint)
    known = {**SIZES, **OPTIONAL}
    for key, value in config.items():
        unknown = key not in known and key not in WITHOUT_MEMORY
        if (unknown or key in ("use_biases", "attn_bias")) and value not in (None, False, {}):
            raise NotModelledError(f"the key {key!r} of a params.json", where=where)
    found: dict[str, Any] = {"model_type": "llama" if "multiple_of" in config else "mistral"}
    found |= {known[key]: value for key, value in config.items() if key in known and value is not None}
    found.setdefault("tie_word_embeddings", False)
    found["dtype"] = "bfloat16"
    if "multiple_of" in config:
        found["intermediate_size"] = _width(config, where)
    if config.get("moe"):
        found |= _experts(config["moe"], where)
    return found


def _width(config: dict[str, Any], where: str) -> int:
    """Meta's: two thirds of four times the width, times a factor, rounded up."""
    multiple, factor = config["multiple_of"], config.get("ffn_dim_multiplier")
    if type(multiple) is not int or multiple < 1 or not (factor is None or isinstance(factor, int | float)):
        raise InputError(f"is {multiple!r}", where=f"{where}: multiple_of", hint="Give a positive whole number.")
    width = int(2 * 4 * config["dim"] / 3)
    if factor is not None:
        width = int(factor * width)
    return multiple * -(-width // multiple)


def _experts(moe: Any, where: str) -> dict[str, Any]:
    if not isinstance(moe, dict) or set(moe) != {"num_experts", "num_experts_per_tok"}:
        raise NotModelledError("such a 'moe' of a params.json", where=where)
    return {
        "model_type": "mixtral",
        "num_local_experts": moe["num_experts"],
        "num_experts_per_tok": moe["num_experts_per_tok"],
    }
