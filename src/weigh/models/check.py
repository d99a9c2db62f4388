"""What a config from outside must say before anything is built from it.

The upstream classes fill in what is missing with the sizes of one published model, so that half a config would be
weighed as another model with a straight face. Here a size that is missing is an error that names its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import InputError, UnknownNameError
from weigh.models import FAMILIES
from weigh.models.config import Keys

_WIDTH, _LAYERS, _HEADS = ("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads")
SIZES: dict[str, tuple[tuple[str, ...], ...]] = {
    "gpt2": (_WIDTH, _LAYERS, _HEADS, ("vocab_size",), ("n_positions", "n_ctx", "max_position_embeddings")),
    "llama": (_WIDTH[1:], _LAYERS[1:], _HEADS[1:], ("vocab_size",), ("intermediate_size",)),
}
"""By family: the sizes that a config must give, each under one of its names."""

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
        raise UnknownNameError("model_type", str(model_type), FAMILIES, where=where)
    keys = Keys(config, where)
    for names in SIZES.get(model_type, ()):
        size = keys.size(*names)
        if names[-1] in _LAYERS and size > MOST_LAYERS:
            key = next(name for name in names if config.get(name) is not None)
            raise InputError(f"is {size}", where=f"{where}: {key}", hint=f"weigh takes up to {MOST_LAYERS} layers.")
