"""Module paths: `model.layers.3.mlp.up_proj` names the third of a stack's blocks, and which part of it."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=65536)
def moved(path: str, stack: str, shift: int) -> str:
    """`path` in the block `shift` places further on in the stack at `stack`; a path elsewhere stays as it is.

    >>> moved("model.layers.3.mlp", "model.layers", 2)
    'model.layers.5.mlp'
    >>> moved("model.norm", "model.layers", 2)
    'model.norm'
    """
    if not path.startswith(stack + "."):
        return path
    index, dot, rest = path[len(stack) + 1 :].partition(".")
    return f"{stack}.{int(index) + shift}{dot}{rest}" if index.isdecimal() else path
