"""What a training program does around its steps: it loads the model, evaluates and saves, each with a peak of its own.

A phase has two places: the device of the rank that is weighed, and the host, where the process that asks for most and
all processes of its node together are counted. On the host only what tensors ask for is counted: Python, PyTorch and
the CUDA libraries take 1 to 3 GB a process besides. A file that is mapped costs what the system can drop again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.state import recording
from weigh.recipes.loop import Loop
from weigh.recipes.training import Training
from weigh.records import dataclass

LOADING, EVALUATING, SAVING, SAVING_STATES = PHASES = ("load", "evaluate", "save the model", "save the optimizer")


@dataclass(frozen=True, slots=True)
class JobPhase:
    """One of them, weighed or not."""

    name: str
    device: int | None = None
    """The most bytes that are allocated on the device."""
    host: int | None = None
    """The most that the process that needs most asks for on the host."""
    node: int | None = None
    """The most that all processes of its node ask for together."""
    mapped: int = 0
    """Bytes of files that are read where they lie, in pages that all processes share and the system can drop."""
    what: str = ""
    """What happens, or why it is not weighed."""
    source: str = ""
    """What was read."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "device_bytes": self.device,
            "host_bytes": self.host,
            "node_bytes": self.node,
            "mapped_bytes": self.mapped,
            "what": self.what,
            "source": self.source,
        }


class Whole(NamedTuple):
    """A tensor of the whole model, as all ranks together have it."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    linear: bool
    """It is the weight of a plain linear layer in a block, which methods of quantization take."""

    @property
    def numel(self) -> int:
        """Its elements."""
        return prod(self.shape)

    @property
    def stacked(self) -> bool:
        """It holds several experts, of which files have one tensor each."""
        return len(self.shape) == 3 and ".experts." in self.name

    @property
    def num_bytes(self) -> int:
        """In its dtype."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What phases are computed from."""

    recipe: Training
    version: tuple[int, ...] | None
    """The program's release, where one is named."""
    build: Callable[[], tuple[Sequence[Whole], int]]
    """Builds the whole model, as `whole_model` does."""
    stored: DType | None
    """In which the checkpoint has them; None where nobody knows."""
    held: int
    """Bytes of parameters on the rank."""
    trained: int
    """Bytes of those that are trained."""
    units: tuple[int, ...]
    """Bytes of each unit of FSDP1, gathered."""
    states: Mapping[int, int]
    """Storages of the optimizer on the rank: bytes -> how many."""
    loaded: int
    """The device's peak until the first step, as the run has it."""
    resident: int
    """Bytes allocated between two steps."""
    evaluated: Callable[[], int]
    """Runs an evaluation, and says its peak."""

    @cached_property
    def _built(self) -> tuple[Sequence[Whole], int]:
        return self.build()

    @property
    def tensors(self) -> Sequence[Whole]:
        """The model's, in its own order, as the program holds them before any technique."""
        return self._built[0]

    @property
    def vocabulary(self) -> int:
        """How many logits there are for a token."""
        return self._built[1]

    @property
    def processes(self) -> int:
        """On each node."""
        return self.recipe.gpus_per_node

    @property
    def num_bytes(self) -> int:
        """Of the whole model."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def stacked(self) -> bool:
        """Some tensors hold several experts, of which files have one each."""
        return any(tensor.stacked for tensor in self.tensors)

    @property
    def state_bytes(self) -> int:
        """Of the optimizer on the rank."""
        return sum(size * count for size, count in self.states.items())

    def gathered(self, tensor: Whole) -> int:
        """Bytes of a tensor that FSDP2 gathers: its first dimension is padded to a whole number of shards."""
        rows, ranks = tensor.shape[0], self.recipe.mesh.shard
        return -(-rows // ranks) * ranks * (tensor.num_bytes // rows)


class Level:
    """Bytes in one place, and the most that there ever were."""

    def __init__(self, start: int = 0) -> None:
        self.now = self.peak = start

    def take(self, num_bytes: int) -> None:
        """So many more."""
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

    def drop(self, num_bytes: int) -> None:
        """So many less."""
        self.now -= num_bytes


def whole_model(config: Mapping[str, Any], recipe: Training, where: str, loop: Loop) -> tuple[tuple[Whole, ...], int]:
    """Every tensor of a model that a program builds, tied ones once, in the model's order; and how many logits."""
    with recording():
        model = loop.build(config, recipe, where)
        found = [
            Whole(name, parameter.tensor.shape, parameter.tensor.dtype, _is_linear(parameter))  # type: ignore[arg-type]
            for parameter in model.parameters()
            for name in parameter.names
        ]
        heads = [module for module in model.modules() if module.role == nn.HEAD]
        widths = [tensor.shape[0] for head in heads for _, tensor in head.own_tensors()]
    return tuple(_block_by_block(found)), max(map(int, widths), default=0)  # type: ignore[arg-type]


def _block_by_block(tensors: Sequence[Whole]) -> list[Whole]:
    """A block's tensors together: one that stands for many is listed with all its names at once."""
    stacks: dict[str, int] = {}

    def place(tensor: Whole) -> tuple[int, int]:
        stack, number = _in_stack(tensor.name)
        return stacks.setdefault(stack, len(stacks)), number

    return sorted(tensors, key=place)


def _in_stack(name: str) -> tuple[str, int]:
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return (name, 0) if number is None else (".".join(parts[:number]), int(parts[number]))


def _is_linear(parameter: nn.Parameter) -> bool:
    return parameter.module.__class__ is nn.Linear and parameter.place[-1] == "weight"


def in_order(tensors: Iterable[Whole]) -> list[Whole]:
    """By their names, numbers as numbers (transformers' `dot_natural_key`)."""
    return sorted(tensors, key=lambda tensor: [_part(part) for part in tensor.name.split(".")])


def _part(part: str) -> tuple[int, str, int]:
    letters = part.rstrip("0123456789")
    return (1 if letters else 0, letters, int(part[len(letters) :] or -1))


def unknown(name: str, why: str) -> JobPhase:
    """A phase that is not weighed."""
    return JobPhase(name, what=f"not weighed: {why}")


def not_read(program: str) -> Iterator[JobPhase]:
    """All of them, of a program whose source nobody read for this."""
    for name in PHASES:
        yield unknown(name, f"the source of {program} was not read for this")
