"""Models that are already in memory: a `torch.nn.Module` or a transformers config, told by what they can do.

Nothing is imported: whoever holds such an object has imported its library already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import InputError
from weigh.sources.source import Source


def read_live(thing: Any) -> Source:
    """The config of a live model or config, and the model's tensors by name and shape.

    Raises:
        InputError: it is neither.
    """
    name = type(thing).__name__
    holder = thing if callable(getattr(thing, "to_dict", None)) else getattr(thing, "config", None)
    to_dict = getattr(holder, "to_dict", None)
    if not callable(to_dict):
        raise InputError(
            f"a {name} is no model", hint="Give a name, a path, a dict, a transformers config, or a model that has one."
        )
    config: Any = to_dict()
    if not isinstance(config, Mapping):
        raise InputError(f"to_dict() of a {name} gave a {type(config).__name__}", hint="It should give a dict.")
    if not callable(getattr(thing, "named_parameters", None)):
        return Source(name, dict(config), f"a live {name}", name)
    parameters = list(thing.named_parameters())
    shapes = {key: tuple(int(size) for size in tensor.shape) for key, tensor in parameters}
    dtype = str(parameters[0][1].dtype) if parameters else None
    return Source(name, dict(config), f"a live {name}", name, shapes=shapes, stored_dtype=dtype)
