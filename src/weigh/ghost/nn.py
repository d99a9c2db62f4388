"""Modules with named parameters and buffers, and the parts that families are made of.

A module says what it is (`role`): embedding, attention, mlp, norm, head, ... Techniques find modules by role and
name, and reports group by it. Every module knows its path once `name_modules` has run over the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from weigh.dims import Shape, Size
from weigh.dtypes import FLOAT32, DType
from weigh.ghost import ops
from weigh.ghost.repeat import Plan, blocks_in_turn
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor, empty
from weigh.records import replace
from weigh.trace.events import BUFFER, WEIGHT

if TYPE_CHECKING:
    from fractions import Fraction  # few models need it, and it takes 3 ms to import

EMBEDDING, ATTENTION, MIXER, MLP, NORM, HEAD, ROTARY, BLOCK = (
    "embedding",
    "attention",
    "mixer",
    "mlp",
    "norm",
    "head",
    "rotary",
    "block",
)
"""A mixer lets tokens see earlier ones without attention: by a recurrence or a convolution."""
VISION, AUDIO, PROJECTOR = TOWERS = ("vision", "audio", "projector")
"""Roles of the parts that see or hear: whole towers, which no technique looks into."""


def parameter(shape: Shape, dtype: DType) -> Tensor:
    """A weight that wants a gradient."""
    tensor = empty(shape, dtype, "load", purpose=WEIGHT)
    tensor.requires_grad = True
    return tensor


def buffer(shape: Shape, dtype: DType) -> Tensor:
    """A tensor of the model that is not trained."""
    return empty(shape, dtype, "load", purpose=BUFFER)


class Module:
    """A part of a model: parameters, buffers and other modules, in the order in which they were set."""

    role: ClassVar[str] = ""
    positional: ClassVar[int] = 1
    """How many of its arguments upstream gives a block by position, which a reentrant checkpoint then saves."""
    active_share: Fraction | int = 1
    """The share of its own parameters that one token is computed with: less than all of them in experts."""

    def __init__(self) -> None:
        self.path = ""
        self.training = True
        self.count = 1
        """How many modules this one stands for (see `weigh.ghost.repeat`)."""
        self.unit: int | None = None
        self.wrap: Callable[..., Any] | None = None
        """What a technique put around `forward`: it is called with the forward function and the arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ledger = state.ledger
        before = ledger.path
        ledger.path = self.path
        try:
            if self.wrap is not None:
                return self.wrap(self.forward, *args, **kwargs)
            return self.forward(*args, **kwargs)
        finally:
            ledger.path = before

    def wrap_in(self, outer: Callable[..., Any]) -> None:
        """Put `outer` around `forward` and around whatever is around it already."""
        inner = self.wrap
        self.wrap = outer if inner is None else lambda forward, *args: outer(partial(inner, forward), *args)

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules inside, by attribute name."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[Module]:
        """This module and all inside it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def elements_of(self, parameter: str) -> Size:
        """Elements of the weight that a parameter stands for; more than it has itself where they are packed."""
        return getattr(self, parameter).numel  # type: ignore[no-any-return]

    def active_share_of(self, parameter: str) -> Fraction | int:
        """The share of one of its own parameters that a token is computed with."""
        return self.active_share

    def own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers that this module holds itself, by attribute name."""
        for name, value in self.__dict__.items():
            if value.__class__ is Tensor:
                yield name, value

    def parameters(self) -> list[Parameter]:
        """Every parameter once, in order, a tied one under the first of its names."""
        found: list[Parameter] = []
        seen: set[int] = set()
        for module, place in self.placed(()):
            for attribute, tensor in module.own_tensors():
                if id(tensor) not in seen and tensor.storage.purpose == WEIGHT:
                    seen.add(id(tensor))
                    found.append(Parameter(tensor, (*place, attribute), module))
        return found

    def placed(self, place: Place) -> Iterator[tuple[Module, Place]]:
        """This module and all inside it, each with its place."""
        yield self, place
        for name, child in self.children():
            yield from child.placed((*place, name))

    def train(self, mode: bool = True) -> None:
        """Dropout on, or off."""
        for module in self.modules():
            module.training = mode


Place = tuple[str | range, ...]
"""The way to a module: attribute names, and the numbers of all the blocks that a real one stands for."""


class Parameter:
    """A parameter, the module that holds it, and where it stands (many times in a compressed stack)."""

    __slots__ = ("module", "place", "tensor")

    def __init__(self, tensor: Tensor, place: Place, module: Module) -> None:
        self.tensor = tensor
        self.place = place
        self.module = module

    @property
    def names(self) -> list[str]:
        """Every name it stands for, in order."""
        names = [""]
        for part in self.place:
            if isinstance(part, str):
                names = [f"{n}.{part}" for n in names]
            else:
                names = [f"{n}.{number}" for n in names for number in part]
        return [n[1:] for n in names]

    @property
    def count(self) -> int:
        """How many parameters this one stands for."""
        count = 1
        for part in self.place:
            if isinstance(part, range):
                count *= len(part)
        return count

    @property
    def blocks(self) -> tuple[Place, range, Place] | None:
        """The way to the outermost numbered modules that it is in, the numbers of those, and the way on to it."""
        for at, part in enumerate(self.place):
            if isinstance(part, range) or part.isdecimal():
                numbers = part if isinstance(part, range) else range(int(part), int(part) + 1)
                return self.place[:at], numbers, self.place[at + 1 :]
        return None

    @property
    def active_share(self) -> Fraction | int:
        """The share of it that a token is computed with."""
        return self.module.active_share_of(str(self.place[-1]))

    @property
    def numel(self) -> Size:
        """Elements of one of them, unpacked."""
        return self.module.elements_of(str(self.place[-1]))


class Stack(Module):
    """Blocks in a row, of which a compressed stack holds three (see `weigh.ghost.repeat`).

    Iterate to run them in turn.
    """

    def __init__(
        self, path: str, length: int, build: Callable[[int], Module], period: int = 1, lead: int = 0, tail: int = 0
    ) -> None:
        super().__init__()
        self.length = length
        plan = Plan(path, length, period, lead, tail)
        self.repeat = plan.repeat
        self.indices, self.units = plan.indices, plan.units
        self.blocks: list[Module] = []
        for index, unit, count in zip(plan.indices, plan.units, plan.counts, strict=True):
            with inside_unit(unit):
                block = build(index)
            block.unit, block.count = unit, count
            self.blocks.append(block)
        self._period = period

    def __iter__(self) -> Iterator[Module]:
        return blocks_in_turn(self.blocks, self.units)

    def __len__(self) -> int:
        return self.length

    def children(self) -> Iterator[tuple[str, Module]]:
        """The real blocks, by their index in the whole stack."""
        for index, block in zip(self.indices, self.blocks, strict=True):
            yield str(index), block

    def placed(self, place: Place) -> Iterator[tuple[Module, Place]]:
        """As for any module; a real block's place has the numbers of all its copies."""
        yield self, place
        for index, block in zip(self.indices, self.blocks, strict=True):
            yield from block.placed((*place, range(index, index + self._period * block.count, self._period)))


def name_modules(root: Module) -> None:
    """Give every module its path, and every parameter its own name in the ledger."""

    def walk(module: Module, path: str) -> None:
        module.path = path
        if isinstance(module, Stack) and module.repeat is not None:
            repeats = state.ledger.repeats
            repeats[module.repeat] = replace(repeats[module.repeat], path=path)
        for attribute, tensor in module.own_tensors():
            storage = tensor.storage
            if storage.number and not storage.path:
                storage.ledger.allocations[storage.number - 1].path = f"{path}.{attribute}" if path else attribute
        for name, child in module.children():
            walk(child, f"{path}.{name}" if path else name)

    walk(root, "")


class Linear(Module):
    """`nn.Linear`: weight (out, in)."""

    def __init__(self, width_in: Size, width_out: Size, dtype: DType, bias: bool = False) -> None:
        super().__init__()
        self.weight = parameter((width_out, width_in), dtype)
        self.bias = parameter((width_out,), dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return ops.linear(x, self.weight, self.bias)


class MlpLinear(Linear):
    """One of an MLP whose layers stand in the block itself."""

    role = MLP


class Head(Linear):
    """The output layer: a linear whose weight may be the embedding's."""

    role = HEAD

    def __init__(
        self, tied_to: Embedding | None, width: Size, vocabulary: Size, dtype: DType, bias: bool = False
    ) -> None:
        if tied_to is None:
            super().__init__(width, vocabulary, dtype, bias)
            return
        Module.__init__(self)
        self.weight = tied_to.weight
        self.bias = parameter((vocabulary,), dtype) if bias else None


class Conv1D(Module):
    """transformers' `Conv1D`: a linear layer whose weight is (in, out)."""

    def __init__(self, width_in: Size, width_out: Size, dtype: DType, bias: bool = True) -> None:
        super().__init__()
        self.weight = parameter((width_in, width_out), dtype)
        self.bias = parameter((width_out,), dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        shape = (*x.shape[:-1], self.weight.shape[1])
        flat = x.view(-1, x.shape[-1])
        out = ops.addmm(self.bias, flat, self.weight) if self.bias is not None else ops.mm(flat, self.weight)
        return out.view(*shape)


class Embedding(Module):
    """`nn.Embedding`: weight (rows, width)."""

    role = EMBEDDING

    def __init__(self, rows: Size, width: Size, dtype: DType) -> None:
        super().__init__()
        self.weight = parameter((rows, width), dtype)

    def forward(self, indices: Tensor) -> Tensor:
        """(...) -> (..., width)."""
        return ops.embedding(indices, self.weight)


class LayerNorm(Module):
    """`nn.LayerNorm` over the last dimension."""

    role = NORM

    def __init__(self, width: Size, dtype: DType, bias: bool = True, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.weight = parameter((width,), dtype) if elementwise_affine else None
        self.bias = parameter((width,), dtype) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return ops.layer_norm(x, self.weight, self.bias)


class RMSNorm(Module):
    """transformers' `LlamaRMSNorm`: computed in fp32, cast back, then scaled."""

    role = NORM

    def __init__(self, width: Size, dtype: DType) -> None:
        super().__init__()
        self.weight = parameter((width,), dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., width) -> (..., width); kernels may have their own."""
        fused: Callable[[Tensor, Tensor], Tensor] | None = state.overrides.get("rms_norm")
        if fused is not None:
            return fused(hidden_states, self.weight)
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-6)
        return self.weight * hidden_states.to(input_dtype)


class Dropout(Module):
    """`nn.Dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return ops.dropout(x, self.p, self.training)


class Activation(Module):
    """An activation function of transformers' `ACT2FN`, by its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = activation(name)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return self.function(x)


def gelu_new(x: Tensor) -> Tensor:
    """`NewGELUActivation`: eight elementwise ops."""
    return 0.5 * x * (1.0 + ops.tanh(0.8 * (x + 0.044715 * x.pow(3.0))))


def quick_gelu(x: Tensor) -> Tensor:
    """`QuickGELUActivation`."""
    return x * ops.sigmoid(1.702 * x)


def gelu_fast(x: Tensor) -> Tensor:
    """`FastGELUActivation`."""
    return 0.5 * x * (1.0 + ops.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def relu2(x: Tensor) -> Tensor:
    """`ReLUSquaredActivation`."""
    return ops.relu(x).pow(2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": ops.gelu,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": ops.gelu,
    "linear": lambda x: x,
    "quick_gelu": quick_gelu,
    "relu": ops.relu,
    "relu2": relu2,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function behind a name in a config.

    Raises `UnknownNameError` for a name that is not modelled.
    """
    from weigh.errors import UnknownNameError

    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
