"""Where a model's parameters are held, for techniques that put other tensors in their places."""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor

Place = tuple[Module, str]
"""A module and the attribute that is the parameter."""


def places(model: Module) -> dict[int, list[Place]]:
    """Where each tensor is held, by its `id`; tied ones in several places."""
    found: dict[int, list[Place]] = {}
    for module in model.modules():
        for attribute, tensor in module.own_tensors():
            found.setdefault(id(tensor), []).append((module, attribute))
    return found


def managed(modules: list[Module]) -> list[tuple[Module, list[Tensor]]]:
    """Each module with the parameters in it that belong to none before it."""
    found: list[tuple[Module, list[Tensor]]] = []
    taken: set[int] = set()
    for module in modules:
        own = [p.tensor for p in module.parameters() if id(p.tensor) not in taken]
        taken.update(map(id, own))
        found.append((module, own))
    return found
