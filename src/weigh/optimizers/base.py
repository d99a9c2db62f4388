"""What all optimizers share: the parameters they own, `zero_grad`, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterator

from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor

IMPLEMENTATIONS = ("foreach", "fused", "forloop")


class Optimizer:
    """Owns the trainable parameters and what it keeps beside them."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation
        self.parameters: list[Parameter] = []
        self.state: dict[int, list[Tensor]] = {}

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters."""
        self.parameters = parameters

    def with_gradients(self) -> list[Tensor]:
        """The parameters that have a gradient, in order."""
        return [p.tensor for p in self.parameters if p.tensor.grad is not None]

    def groups(self) -> Iterator[list[Tensor]]:
        """The parameters with gradients, by dtype (`_group_tensors_by_device_and_dtype`)."""
        grouped: dict[str, list[Tensor]] = {}
        for tensor in self.with_gradients():
            grouped.setdefault(tensor.dtype.name, []).append(tensor)
        yield from grouped.values()

    def new_state(self, param: Tensor) -> list[Tensor]:
        """What the optimizer keeps beside one parameter."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the state of every parameter, as the first step would: what follows is the steady state."""
        for parameter in self.parameters:
            self.state[id(parameter.tensor)] = self.new_state(parameter.tensor)

    def step(self) -> None:
        """One update. States are made at the first one, as PyTorch does."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or keep them (filled with zeros in place)."""
        state.ledger.cut()
        if set_to_none:
            for parameter in self.parameters:
                with inside_unit(parameter.tensor.storage.unit):
                    parameter.tensor.grad = None


def clip_grad_norm(parameters: list[Parameter]) -> None:
    """`torch.nn.utils.clip_grad_norm_`: a norm for each gradient, their norm, and a scaling in place."""
    owners = [p for p in parameters if p.tensor.grad is not None]
    groups: dict[str, list[Tensor]] = {}
    for parameter in owners:
        gradient = parameter.tensor.grad
        assert gradient is not None
        groups.setdefault(gradient.dtype.name, []).append(gradient)
    norms: list[Tensor] = []
    for gradients in groups.values():
        norms.extend(ops.foreach_norm(gradients))
    stacked = ops.stack_scalars(norms, sum(p.count for p in owners))
    total_norm = ops.vector_norm(stacked)
    del stacked, norms
    shifted = total_norm + 1e-6
    inverse = ops.reciprocal(shifted)
    clip_coef = inverse * 1.0
    del shifted, inverse
    clip_coef_clamped = ops.clamp(clip_coef)
    for gradients in groups.values():
        ops.in_place("aten::_foreach_mul_", gradients)
    del clip_coef_clamped
