"""The trace: what a run allocated and freed, in order, and why.

Everything that weighs memory writes one of these (a ghost run, a real PyTorch step traced with fake tensors, a memory
snapshot) and everything that answers a question reads one. It holds no framework and no model.
"""

from __future__ import annotations

from collections.abc import Iterator

from weigh.dims import Shape, Size
from weigh.records import dataclass, field

WEIGHT = "weight"
BUFFER = "buffer"
GRADIENT = "gradient"
OPTIMIZER_STATE = "optimizer state"
ACTIVATION = "activation"
KV_CACHE = "kv cache"
RECURRENT_STATE = "recurrent state"
"""What recurrent layers keep of the tokens they have seen, however many: states, and a convolution's last inputs."""
INPUT = "input"
TEMPORARY = "temporary"
COMMUNICATION = "communication"
WORKSPACE = "workspace"
"""Memory that a library asks the framework's allocator for."""
UNSHARDED = "unsharded weight"
"""A weight put together from its shards for as long as it is needed."""

UNATTRIBUTED = "unattributed"
"""Memory that a recording shows without saying what for."""

PURPOSES = (
    WEIGHT,
    BUFFER,
    GRADIENT,
    OPTIMIZER_STATE,
    ACTIVATION,
    KV_CACHE,
    RECURRENT_STATE,
    INPUT,
    TEMPORARY,
    COMMUNICATION,
    UNSHARDED,
    WORKSPACE,
    UNATTRIBUTED,
)

LOAD = "load"
FORWARD = "forward"
BACKWARD = "backward"
CLIP = "clip"
STEP = "step"
EVALUATE = "evaluate"
PREFILL = "prefill"
DECODE = "decode"

PHASES = (LOAD, FORWARD, BACKWARD, CLIP, STEP, EVALUATE, PREFILL, DECODE)


class Allocation:
    """One storage: how many bytes, made by which op of which module, and what for.

    `purpose` is what the storage became in the end: a gradient is one from its birth in the backward pass on.
    `unit` is the repeated block (see `Repeat`) that owns it, or None.
    """

    __slots__ = ("dtype", "num_bytes", "op", "path", "phase", "purpose", "shape", "unit")

    def __init__(
        self, num_bytes: Size, op: str, path: str, purpose: str, phase: str, shape: Shape, dtype: str, unit: int | None
    ) -> None:
        self.num_bytes = num_bytes
        self.op = op
        self.path = path
        self.purpose = purpose
        self.phase = phase
        self.shape = shape
        self.dtype = dtype
        self.unit = unit

    def __repr__(self) -> str:
        return f"{self.num_bytes} {self.path or '(root)'} {self.op} {self.purpose} {list(self.shape)} {self.dtype}"


class Call:
    """One op that ran: its floating-point operations, and the bytes it reads and writes (each operand once)."""

    __slots__ = ("bytes_read", "bytes_written", "event", "flops", "op", "path", "unit")

    def __init__(
        self, event: int, op: str, path: str, flops: Size, bytes_read: Size, bytes_written: Size, unit: int | None
    ) -> None:
        self.event = event
        self.unit = unit
        self.op = op
        self.path = path
        self.flops = flops
        self.bytes_read = bytes_read
        self.bytes_written = bytes_written


@dataclass(frozen=True, slots=True)
class Mark:
    """From event number `event` on the run is in `phase` of round `round` (a training step, or one generation)."""

    event: int
    phase: str
    round: int


@dataclass(frozen=True, slots=True)
class Span:
    """Events `start` to `stop` happen `count` times in a row.

    `unit` is None for plain events. Else these are the blocks in the middle of a stack, told by the run of block
    `unit`: the real run of that block comes right after them, and the real run of the stack's other end right before.
    """

    start: int
    stop: int
    count: int
    unit: int | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A stack of identical blocks of which only some were run.

    `path` is the container's ("model.layers"); `first`, `second` and `last` are the unit numbers of the three real
    groups of blocks, `period` the blocks in a group, and `extra` how many more groups stand between second and last.
    All three are one where it stands for all others, which is so only in runs whose memory is not asked for.
    """

    path: str
    first: int
    second: int
    last: int
    period: int
    extra: int


@dataclass(slots=True)
class Trace:
    """Allocations, the order of their births (+) and deaths (-), and the phases in which they fall.

    `events` holds `index + 1` for the birth and `-(index + 1)` for the death of `allocations[index]`. `spans` says in
    which order (and how often) the events happen; a plain trace has one span.
    """

    allocations: list[Allocation]
    events: list[int]
    marks: list[Mark]
    calls: list[Call] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)

    def __post_init__(self) -> None:
        spans = self.spans or [Span(0, len(self.events), 1)]
        for mark in self.marks:
            for number, span in enumerate(spans):
                if span.start < mark.event < span.stop:
                    if span.unit is not None:
                        raise AssertionError(f"a repeated span crosses the start of {mark.phase}")
                    spans[number : number + 1] = [Span(span.start, mark.event, 1), Span(mark.event, span.stop, 1)]
                    break
        self.spans = spans

    def changes(self) -> list[Size]:
        """The signed bytes of every stored event."""
        sizes = [a.num_bytes for a in self.allocations]
        return [sizes[e - 1] if e > 0 else -sizes[-e - 1] for e in self.events]

    def sections(self) -> Iterator[tuple[Mark, range]]:
        """The phases in order, each with the numbers of its spans (none crosses a phase)."""
        bounds = [*(m.event for m in self.marks[1:]), len(self.events)]
        number = 0
        for mark, stop in zip(self.marks, bounds, strict=False):
            first = number
            while number < len(self.spans) and self.spans[number].stop <= stop:
                number += 1
            yield mark, range(first, number)

    @property
    def num_events(self) -> int:
        """How many births and deaths happen, repeated ones counted."""
        return sum((s.stop - s.start) * s.count for s in self.spans)

    def __repr__(self) -> str:
        return f"Trace({len(self.allocations)} allocations, {self.num_events} events, {len(self.marks)} phases)"
