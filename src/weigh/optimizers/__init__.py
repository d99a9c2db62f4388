"""Optimizers: what they keep beside each parameter, and what they allocate while they step.

One file per optimizer, with PyTorch's implementations of it: `foreach` (lists; CUDA's default), `fused` (one kernel)
and `forloop` (one parameter at a time; the CPU's default).
"""

from __future__ import annotations

from weigh.errors import UnknownNameError, UsageError
from weigh.optimizers.base import IMPLEMENTATIONS, Optimizer

__all__ = ["OPTIMIZERS", "Optimizer", "optimizer"]

OPTIMIZERS = ("adam", "adamw", "paged_adamw", "sgd")


def optimizer(
    name: str, implementation: str = "foreach", momentum: float = 0.0, weight_decay: float | None = None
) -> Optimizer:
    """The optimizer of that name.

    `weight_decay` defaults to PyTorch's: 0.01 for AdamW, else 0. `momentum` is SGD's.

    Raises:
        UnknownNameError: no such optimizer or implementation.
        UsageError: a momentum for an optimizer that has none.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError("optimizer implementation", implementation, IMPLEMENTATIONS)
    if name == "sgd":
        from weigh.optimizers.sgd import SGD

        return SGD(implementation, momentum, weight_decay or 0.0)
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    if momentum:
        raise UsageError(f"{name} takes no momentum", where="momentum", hint="Use sgd, or leave it out.")
    if name == "paged_adamw":
        from weigh.optimizers.paged import PagedAdamW

        return PagedAdamW("fused")
    from weigh.optimizers.adam import Adam

    decoupled = name == "adamw"
    return Adam(implementation, decoupled, (0.01 if decoupled else 0.0) if weight_decay is None else weight_decay)
