"""Activations that wait on the host between the forward and the backward pass.

`SaveOnHost` is `torch.autograd.graph.save_on_cpu` around the model (`torch/autograd/graph.py`, 2.13): whatever a node
saves, parameters too, is copied to the host, once for each node, and copied back as the node runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from weigh.dims import Shape
from weigh.dtypes import DType
from weigh.ghost.host import Host, host_of
from weigh.ghost.nn import Module
from weigh.ghost.state import saved_tensors_hooks, state
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.checkpointing import Packed
from weigh.trace.events import ACTIVATION

ACTIVATIONS = "activations that wait on the host for the backward pass, pinned"


class OnHost(Packed):
    """A saved tensor on the host."""

    __slots__ = ("copy", "dtype", "requires_grad", "shape")

    def __init__(self, host: Host, tensor: Tensor) -> None:
        self.copy: Tensor | None = host.empty(tensor.shape, tensor.dtype, ACTIVATION)
        self.shape: Shape = tensor.shape
        self.dtype: DType = tensor.dtype
        self.requires_grad = tensor.requires_grad

    def unpack(self) -> Tensor:
        """A copy on the device."""
        found = empty(self.shape, self.dtype, "aten::_to_copy", purpose=ACTIVATION)
        found.requires_grad = self.requires_grad
        return found


@dataclass(frozen=True, slots=True)
class SaveOnHost(Technique):
    """`save_on_cpu` around the model's forward pass."""

    def apply(self, model: Module) -> None:
        """Wrap the model."""
        model.wrap_in(partial(_run, host_of(model, ACTIVATIONS)))


def _run(host: Host, forward: Callable[..., Any], *args: Any) -> Any:
    if not state.grad_enabled:
        return forward(*args)
    with saved_tensors_hooks(partial(OnHost, host)):
        return forward(*args)
