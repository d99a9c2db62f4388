"""What a config from outside must say before anything is built from it.

The upstream classes fill in what is missing with the sizes of one published model, so that half a config would be
weighed as another model with a straight face. Here a size that is missing is an error that names its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import InputError
from weigh.models import FAMILIES, unknown_family
from weigh.models.config import Keys

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_STACKS = (("encoder_layers", "num_hidden_layers"), ("decoder_layers",))
COMMON: tuple[tuple[str, ...], ...] = (
    ("hidden_size", "n_embd", "d_model"),
    _LAYERS,
    _HEADS,
    ("vocab_size",),
)
"""The sizes that every config must give, each under one of the names in use."""
_ENCODER_DECODER: tuple[tuple[str, ...], ...] = (
    ("d_model", "hidden_size"),
    *_STACKS,
    ("encoder_attention_heads", "num_attention_heads"),
    ("decoder_attention_heads",),
    ("vocab_size",),
)
_BARTS = ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus", "plbart", "whisper")
SIZES: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(_BARTS, _ENCODER_DECODER),
    "distilbert": (
        ("dim", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("vocab_size",),
    ),
    "bloom": (
        ("hidden_size", "n_embed"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("vocab_size",),
    ),
    "chatglm": (
        ("hidden_size",),
        ("num_layers",),
        ("num_attention_heads",),
        ("padded_vocab_size",),
        ("ffn_hidden_size",),
    ),
    "dbrx": (
        ("d_model", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("vocab_size",),
    ),
    "falcon": (("hidden_size", "n_embed"), ("num_hidden_layers",), ("num_attention_heads",), ("vocab_size",)),
    "gpt2": (
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("vocab_size",),
        ("n_positions", "n_ctx", "max_position_embeddings"),
    ),
    "llama": (
        ("hidden_size",),
        ("num_hidden_layers",),
        ("num_attention_heads",),
        ("vocab_size",),
        ("intermediate_size",),
    ),
    "nemotron_h": (("hidden_size",), ("num_attention_heads",), ("vocab_size",)),
    "rwkv": (("hidden_size",), _LAYERS, ("vocab_size",)),
    "xlstm": (("hidden_size", "embedding_dim"), (*_LAYERS, "num_blocks"), ("num_heads",), ("vocab_size",)),
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2"), (("hidden_size",), _LAYERS, ("vocab_size",), ("state_size",))),
    "opt": (
        ("hidden_size",),
        ("num_hidden_layers",),
        ("num_attention_heads",),
        ("vocab_size",),
        ("ffn_dim",),
        ("max_position_embeddings",),
    ),
    **dict.fromkeys(
        ("mt5", "t5", "umt5"),
        (
            ("d_model", "hidden_size"),
            ("num_layers", "num_hidden_layers"),
            ("num_heads", "num_attention_heads"),
            ("vocab_size",),
            ("d_kv", "head_dim"),
            ("d_ff",),
        ),
    ),
}
"""By family, where it is known more exactly which."""

NESTED = ("text_config", "vision_config", "audio_config")
"""Configs inside a config. Published ones leave out what is the default of upstream's class, so none of their keys must
be there; a language model's config is one of them, or its keys stand among the model's own."""

MOST_LAYERS = 10_000
"""Published models have at most some hundreds; beyond this, a number is a slip."""


def check(config: Mapping[str, Any], where: str = "config") -> None:
    """Raise `InputError` where the `model_type` is no known one, a size is missing, or there are absurdly many layers.

    >>> check({"model_type": "llama", "hidden_size": 64})
    Traceback (most recent call last):
    weigh.errors.InputError: config: num_hidden_layers: is missing. Add 'num_hidden_layers', a positive whole number.
    """
    model_type = config.get("model_type")
    if model_type is None:
        raise InputError("has no model_type", where=where, hint=f"Add one of: {', '.join(sorted(FAMILIES))}.")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise unknown_family(str(model_type), where)
    nested = [key for key in NESTED if isinstance(config.get(key), Mapping)]
    for key in nested:
        _check_layers(config[key], f"{where}: {key}")
    if "text_config" in nested:
        return
    keys = Keys(config, where)
    for names in SIZES.get(model_type, COMMON):
        keys.size(*names)
    _check_layers(config, where)


def _check_layers(config: Mapping[str, Any], where: str) -> None:
    for key in (*_LAYERS, *(name for names in _STACKS for name in names), "depth"):
        size = Keys(config, where).size(key, default=1)
        if size > MOST_LAYERS:
            raise InputError(f"is {size}", where=f"{where}: {key}", hint=f"weigh takes up to {MOST_LAYERS} layers.")
