"""What all optimizers share: the parameters they own, `zero_grad`, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from weigh.dims import Size
from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.state import by_owner, inside_unit, no_grad, state
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass

IMPLEMENTATIONS = ("foreach", "fused", "forloop")

WARM = 1000
"""Steps after which every optimizer does what it goes on doing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen beside the optimizer itself."""

    name: str
    implementation: str = "foreach"
    momentum: float = 0.0
    weight_decay: float | None = None
    """None is the default of the optimizer."""
    rank: int = 128
    """Of low-rank gradients (GaLore, APOLLO)."""
    targets: tuple[str, ...] = ("attn", "mlp", "attention")
    """Parts of the names of linear layers whose gradients are projected; or "all-linear"."""
    block: int | None = None
    """Values that share a scale, where states are quantized; None is the optimizer's own."""


class Optimizer:
    """Owns the trainable parameters and what it keeps beside them."""

    implementations: ClassVar[tuple[str, ...]] = IMPLEMENTATIONS
    """Those that there are, the default of CUDA first."""
    takes_momentum: ClassVar[bool] = False
    states_first: ClassVar[bool] = True
    """The states of all parameters are made before the first of them is updated."""
    default_decay: ClassVar[float] = 0.0
    clips: ClassVar[bool] = False
    """It clips the gradients in its step, or there are none left to clip."""
    shardable: ClassVar[bool] = True
    """It can update shards; False: it needs whole matrices, or each gradient as it comes."""

    hooks: ClassVar[bool] = False
    """It sees each gradient in the backward pass, as soon as it has come."""

    def __init__(self, choice: Choice) -> None:
        self.implementation = choice.implementation
        self.momentum = choice.momentum
        self.weight_decay = self.default_decay if choice.weight_decay is None else choice.weight_decay
        self.parameters: list[Parameter] = []
        self.state: dict[int, list[Tensor]] = {}
        self.elsewhere: dict[str, Size] = {}
        """Bytes that it keeps outside of the device's allocator, by what and where."""
        self.steps = 0
        """Taken so far, the one under way included."""

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters."""
        self.parameters = parameters

    def with_gradients(self) -> list[Tensor]:
        """The parameters that have a gradient, in order."""
        return [p.tensor for p in self.parameters if p.tensor.grad is not None]

    def groups(self) -> Iterator[list[Tensor]]:
        """The parameters with gradients, by dtype (`_group_tensors_by_device_and_dtype`).

        The dtype that was met last comes first: libstdc++'s `unordered_map` puts a new key at the front of its list.
        """
        grouped: dict[str, list[Tensor]] = {}
        for tensor in self.with_gradients():
            grouped.setdefault(tensor.dtype.name, []).append(tensor)
        yield from reversed(grouped.values())

    def gradients_one_by_one(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter with its gradient, inside the block that owns it."""
        for param in self.with_gradients():
            with inside_unit(param.storage.unit):
                assert param.grad is not None
                yield param, param.grad

    def one_by_one(self) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """Every parameter with its gradient and its state, inside the block that owns it."""
        for param, grad in self.gradients_one_by_one():
            yield param, grad, self.state_of(param)

    def new_state(self, param: Tensor) -> list[Tensor]:
        """What the optimizer keeps beside one parameter."""
        raise NotImplementedError

    def state_of(self, param: Tensor) -> list[Tensor]:
        """What is kept beside one parameter, made where it is not there yet."""
        if id(param) not in self.state:
            self.state[id(param)] = self.new_state(param)
        return self.state[id(param)]

    def states(self, params: list[Tensor], index: int) -> list[Tensor]:
        """The state of that number of each parameter."""
        return [self.state[id(p)][index] for p in params]

    def prepare(self) -> None:
        """Make the state of every parameter, as the first step would: what follows is the steady state."""
        self.steps = WARM
        for parameter in self.parameters:
            self.state_of(parameter.tensor)

    def step(self) -> None:
        """One update. States are made at the first one, as PyTorch does."""
        self.steps += 1
        with no_grad():
            if self.states_first:
                for param in self.with_gradients():
                    self.state_of(param)
            self._update()

    def _update(self) -> None:
        update = {"foreach": self.foreach, "fused": self.fused, "forloop": self.forloop}[self.implementation]
        # What a turn of the loop leaves alive dies in the next one's block, not in its own.
        with by_owner(state.ledger.by_owner and self.implementation != "forloop"):
            update()

    def foreach(self) -> None:
        """The update over lists of tensors."""
        raise NotImplementedError

    def fused(self) -> None:
        """The update in one kernel."""
        raise NotImplementedError

    def forloop(self) -> None:
        """The update of one parameter after the other."""
        raise NotImplementedError

    def decayed_gradients(self, params: list[Tensor]) -> list[Tensor]:
        """A copy of the gradients with the weight decay added, where there is one."""
        return ops.foreach("aten::_foreach_add", params) if self.weight_decay else []

    def decayed_gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        """`grad.add(param, alpha=weight_decay)`, where there is a weight decay."""
        return ops.like("aten::add", param) if self.weight_decay else grad

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
    for gradients in reversed(groups.values()):
        norms.extend(ops.foreach_norm(gradients))
    stacked = ops.stack_scalars(norms, sum(p.count for p in owners))
    total_norm = ops.vector_norm(stacked)
    del stacked, norms
    shifted = total_norm + 1e-6
    inverse = ops.reciprocal(shifted)
    clip_coef = inverse * 1.0
    del shifted, inverse
    clip_coef_clamped = ops.clamp(clip_coef)
    for gradients in reversed(groups.values()):
        ops.in_place("aten::_foreach_mul_", gradients)
    del clip_coef_clamped
