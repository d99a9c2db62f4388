"""Hooks on tensors: what a technique wants to be told on the way forward or back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor


class Hook(Op):
    """An identity whose node calls back once every gradient of its tensors has come, before it hands them on.

    It stands for `Tensor.register_hook` and for autograd functions that return their inputs.
    """

    name = "hook"
    source = "torch/autograd/function.py: inputs that are returned as they are cost nothing"
    view = True
    differentiable: ClassVar[int] = 1 << 30

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor, call: Callable[[], None]) -> tuple[Tensor, ...]:
        ctx.meta = call
        return tuple(t.alias() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> list[Any]:
        ctx.meta()
        return [*gradients, *[None] * (len(ctx.inputs) - len(gradients))]


def when_gradients_come(value: Any, call: Callable[[], None]) -> Any:
    """`value` with a hook on all its tensors that want gradients, as one; `value` itself where none does.

    `value` is a tensor, or a tuple, list or dict of such values; anything else is passed on.
    """
    found: list[Tensor] = []
    map_tensors(value, lambda t: found.append(t) if t.requires_grad else None)
    if not found:
        return value
    hooked = iter(apply(Hook, *found, call=call))
    return map_tensors(value, lambda t: next(hooked) if t.requires_grad else t)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with each of its tensors changed."""
    if value.__class__ is Tensor:
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, dict):
        return {key: map_tensors(v, change) for key, v in value.items()}
    return value
