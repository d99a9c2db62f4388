"""Which part of a model something belongs to: its component and its layer, from module paths and roles.

Blocks of a stack are alike, so parts are looked up by pattern: `transformer.h.3.mlp` is `transformer.h.*.mlp`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from weigh.ghost import nn
from weigh.trace.events import ACTIVATION, CLIP, DECODE, INPUT, OPTIMIZER_STATE, PREFILL, STEP, TEMPORARY

if TYPE_CHECKING:
    from weigh.ghost.nn import Module
    from weigh.trace.events import Allocation

RESIDUAL, LOSS, OPTIMIZER, SAMPLING, INPUTS, OTHER = "residual", "loss", "optimizer", "sampling", "inputs", "other"
COMPONENTS = (
    nn.EMBEDDING,
    nn.ATTENTION,
    nn.MIXER,
    nn.MLP,
    nn.NORM,
    nn.ROTARY,
    *nn.TOWERS,
    RESIDUAL,
    nn.HEAD,
    LOSS,
    OPTIMIZER,
    SAMPLING,
    INPUTS,
)
"""In the order in which a step meets them."""

_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")  # between points; a checkpoint has tens of thousands of names
_LABELS = {nn.BLOCK: RESIDUAL}


def pattern(path: str) -> str:
    """A path without the numbers of its blocks.

    >>> pattern("model.layers.3.mlp.up_proj")
    'model.layers.*.mlp.up_proj'
    """
    return _NUMBER.sub("*", path)


def layer(path: str) -> int | None:
    """The number of the block that a path lies in; None outside of the blocks.

    >>> layer("model.layers.3.mlp.up_proj"), layer("lm_head")
    (3, None)
    """
    found = _NUMBER.search(path)
    return None if found is None else int(found[0])


class Parts:
    """The components of one model, by module path; of None, whose modules are not known, by purpose and phase only."""

    def __init__(self, model: Module | None) -> None:
        modules = () if model is None else model.modules()
        self._roles = {pattern(m.path): _LABELS.get(m.role, m.role) for m in modules if m.role}
        self._known: dict[str, str | None] = {}

    def role(self, path: str) -> str | None:
        """The role of the innermost module around a path that has one."""
        if path not in self._known:
            inner = pattern(path)
            while inner and inner not in self._roles:
                inner = inner.rpartition(".")[0]
            self._known[path] = self._roles.get(inner)
        return self._known[path]

    def layer(self, path: str) -> int | None:
        """The number of the language model's block that a path lies in: towers have layers of their own."""
        return None if self.role(path) in nn.TOWERS else layer(path)

    def component(self, allocation: Allocation) -> str:
        """What an allocation is part of; outside of all modules its purpose and phase decide."""
        role = self.role(allocation.path)
        if role is not None:
            return role
        if allocation.purpose == INPUT:
            return INPUTS
        if allocation.purpose == OPTIMIZER_STATE or allocation.phase in (STEP, CLIP):
            return OPTIMIZER
        if allocation.phase in (PREFILL, DECODE):
            return OTHER if allocation.path else SAMPLING
        at_loss = not allocation.path and allocation.purpose in (ACTIVATION, TEMPORARY)
        return LOSS if at_loss else OTHER  # flat shards, buckets and workspaces are of no module, and not the loss's
