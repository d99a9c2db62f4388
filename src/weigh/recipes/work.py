"""The operations of one pass through a model, with what each computes and moves.

They come from the same run as the memory. What is moved depends on the program: PyTorch runs every op by itself,
through the device's memory (`EAGER`); engines fuse what works element by element, read keys and values as they keep
them, and gather only the experts that a batch reaches (`FUSED`). How fast a device does it is `weigh.recipes.pace`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from weigh import models
from weigh.ghost.repeat import one_of_each
from weigh.recipes import generation
from weigh.recipes.generation import Generation
from weigh.recipes.launches import launches
from weigh.records import dataclass, replace
from weigh.trace.events import DECODE, PREFILL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from weigh.dims import Size
    from weigh.dtypes import DType
    from weigh.ghost.nn import Parameter
    from weigh.trace.events import Call, Trace

EAGER, FUSED = "eager", "fused"

TIED = "tied"
"""The embedding's matrix, as a head that is tied to it reads it."""

_PRODUCTS = ("mm", "linear")
_ATTENTION = ("attention", "attn")
_OWN = (*_PRODUCTS, *_ATTENTION, "conv", "scan", "delta", "recurrent", "embedding")
"""In the names of ops that fused engines run as kernels of their own; the others ride along with those."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation, however often it runs alike."""

    name: str
    path: str
    """Of the module that runs it."""
    flops: int
    weights: int
    """Bytes of parameters that it reads."""
    other: int
    """Bytes of all else that it reads and writes; of keys and values only where ops run by themselves."""
    count: int
    """Times that it runs in the pass."""
    share: float = 1.0
    """Of its module's weights, those that one token goes through: less than 1 for experts."""

    @property
    def routed(self) -> bool:
        """Whether a token goes through some of the weights only."""
        return self.share < 1

    def times(self, batch: int, tokens: int) -> Op:
        """For a batch of so many instead of one, of so many tokens instead of a `batch`-th of them."""
        read = reached(self.share, tokens) / reached(self.share, tokens // batch) if self.routed else 1.0
        return replace(self, flops=self.flops * batch, weights=round(self.weights * read), other=self.other * batch)


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's parameters."""

    shared: float
    """That every token goes through."""
    routed: float
    """Of experts, of which a token goes through some."""
    looked_up: float = 0.0
    """Of an embedding, unless the head is tied to it: of that a token reads a row."""

    def over(self, other: Weights) -> Weights:
        """How many times the other's bytes these are, part by part."""
        pairs = ((self.shared, other.shared), (self.routed, other.routed), (self.looked_up, other.looked_up))
        return Weights(*(mine / theirs if theirs else 1.0 for mine, theirs in pairs))


AS_RUN = Weights(1.0, 1.0)
"""Weights that are stored in the format of the run."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass through the model."""

    ops: tuple[Op, ...]
    layers: int
    kernels: int
    """That an engine which fuses starts, whatever the batch."""
    hidden: int
    """Bytes of the activations that a layer hands on, which tensor parallelism sums up."""
    tokens: int
    """Positions that are computed, in all sequences."""

    def times(self, batch: int) -> Pass:
        """For so many sequences instead of one: what each computes and moves, and the weights once.

        As a run of the batch says, but for vectors of parameters, which are counted for each sequence.
        """
        tokens = self.tokens * batch
        ops = tuple(op.times(batch, tokens) for op in self.ops)
        return replace(self, ops=ops, hidden=self.hidden * batch, tokens=tokens)

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return sum(op.flops * op.count for op in self.ops)

    @property
    def weights(self) -> int:
        """Bytes of parameters that are read."""
        return sum(op.weights * op.count for op in self.ops)

    @property
    def launches(self) -> int:
        """Operations that run one by one."""
        return sum(op.count for op in self.ops)


def passes(
    config: Mapping[str, Any], dtype: DType, batch: int, prompt: int, where: str = "config"
) -> tuple[Pass, Pass]:
    """Reading prompts of so many tokens, and writing the token after them, in an engine that fuses.

    Raises:
        InputError: the config cannot be read.
        NotModelledError: the model's run is not described.
    """
    attention = models.default_attention(config)
    recipe = Generation(batch=batch, prompt=prompt, new_tokens=2, dtype=dtype, attention=attention)
    with one_of_each():
        return of_run(generation.run(config, recipe, where), FUSED)


def of_run(run: generation.GenerationRun, way: str) -> tuple[Pass, Pass]:
    """The prefill of a run, and its last step."""
    held, layers, width = _held(run), _layers(run), _whole(run.parameters[0].tensor.shape[-1])
    kernels = launches(run.parameters)
    batch = _whole(run.recipe.batch) * run.recipe.beams * run.recipe.returned
    last = max(mark.round for mark in run.trace.marks if mark.phase == DECODE)
    first, then = (
        Pass(
            tuple(_ops(_calls(run.trace, phase, round), held, tokens, run.recipe.dtype, way)),
            layers,
            kernels,
            tokens * width * run.recipe.dtype.itemsize,
            tokens,
        )
        for phase, round, tokens in ((PREFILL, 0, batch * _whole(run.recipe.prompt)), (DECODE, last, batch))
    )
    return first, then


def by_themselves(trace: Trace, phases: Iterable[str], round: int) -> Pass:
    """The operations of some phases of a round, as PyTorch runs them one by one."""
    ops = (op for phase in phases for op in _ops(_calls(trace, phase, round), {TIED: (0, 1.0)}, 0, None, EAGER))
    return Pass(tuple(ops), 0, 0, 0, 0)


def _calls(trace: Trace, phase: str, round: int) -> Iterable[tuple[Call, int]]:
    """The calls of a phase, each with how often it stands for itself."""
    times = {repeat.second: 1 + repeat.extra for repeat in trace.repeats}
    starts = [mark.event for mark in trace.marks]
    for call in trace.calls:
        mark = trace.marks[bisect_right(starts, call.event) - 1]
        if mark.phase == phase and mark.round == round:
            yield call, 1 if call.unit is None else times.get(call.unit, 1)


def weights_of(parameters: Iterable[Parameter]) -> Weights:
    """Those of a model, in the format that it is built in."""
    rows = [(p.names[0], p.count * _whole(p.tensor.num_bytes), p.active_share < 1) for p in parameters]
    routed = sum(size for _, size, some in rows if some)
    table = rows[0][1] if any("head" in name.split(".")[0] for name, _, _ in rows) else 0
    return Weights(sum(size for _, size, _ in rows) - routed - table, routed, table)


def _held(run: generation.GenerationRun) -> dict[str, tuple[int, float]]:
    """Bytes of matrices by module, and the share of them that one token is computed with."""
    held: dict[str, tuple[int, float]] = {TIED: (_whole(run.parameters[0].tensor.num_bytes), 1.0)}
    for parameter in run.parameters:
        if len(parameter.tensor.shape) >= 2:
            for name in parameter.names:
                path = name.rpartition(".")[0]
                size = held.get(path, (0, 1.0))[0] + _whole(parameter.tensor.num_bytes)
                held[path] = (size, float(parameter.active_share))
    return held


def _whole(size: Size) -> int:
    assert isinstance(size, int), "a pass is of one setting"
    return size


def _layers(run: generation.GenerationRun) -> int:
    """Blocks of the longest stack."""
    found: dict[object, set[int]] = {}
    for parameter in run.parameters:
        if parameter.blocks is not None:
            stack, alike, _ = parameter.blocks
            found.setdefault(stack, set()).update(alike)
    return max(map(len, found.values()), default=1)


def _ops(
    calls: Iterable[tuple[Call, int]], held: dict[str, tuple[int, float]], tokens: int, dtype: DType | None, way: str
) -> Iterable[Op]:
    gathered: set[tuple[str, int | None]] = set()
    for call, count in calls:
        flops, read, written = map(_whole, (call.flops, call.bytes_read, call.bytes_written))
        weights, other, through = 0, read + written, 1.0
        if "embedding" in call.op:
            other = 2 * written  # the rows that are looked up, not the table
        elif any(part in call.op for part in _PRODUCTS) and (path := _home(call, read, held)) is not None:
            size, share = held[path]
            if share == 1:
                weights, other = min(size, read), max(0, read - size) + written
                most = 0 if dtype is None else 2 * size // dtype.itemsize * tokens
                if way == FUSED and flops > most:  # latent attention: the new tokens alone, not all that it has kept
                    flops, other = most, other * most // flops
            elif way == FUSED:  # the products of a layer together read every expert that a token was sent to
                once, through = (call.path, call.unit), share
                weights = 0 if once in gathered else round(size * reached(share, tokens))
                other = 2 * written
                gathered.add(once)
        elif way == FUSED:
            if not any(part in call.op for part in _OWN):
                continue
            if any(part in call.op for part in (*_ATTENTION, *_PRODUCTS)):
                other = 0  # keys and values, which the engine keeps in its own way
        yield Op(call.op, call.path, flops, weights, other, count, through)


def _home(call: Call, read: int, held: dict[str, tuple[int, float]]) -> str | None:
    """The module whose matrix a product reads: its own, or the embedding where the head is tied to it."""
    if call.path in held:
        return call.path
    return TIED if call.unit is None and read >= held[TIED][0] > 0 else None


def reached(share: float, tokens: int) -> float:
    """The share of the experts that a batch reaches, if every token picks its own at random.

    With k of E experts a token, one is missed by a token with probability 1 - k/E, and by all of them with that to the
    power of their number. Routers are trained to spread tokens; where they do not, fewer are read.

    >>> reached(2 / 8, 1), round(reached(2 / 8, 16), 3)
    (0.25, 0.99)
    """
    return 1 - (1 - share) ** tokens
