"""Sweeps: one recipe for many settings at once, a few runs in all.

The sizes of a recipe (batch, sequence, prompt, ...) are given as arrays, one element a setting. A run goes through
with polynomials in place of numbers (`weigh.dims`); where PyTorch does two different things (a batch of one is
contiguous where others are copied), the settings are cut in two and each part is run by itself. The polynomials are
evaluated at the end, in chunks that fit the processor's cache.

Leaves out: breakdowns and moments, which differ from setting to setting; run a single setting for these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from weigh.dims import AmbiguousDimension, Array, Axes, Dim, Size
from weigh.errors import UsageError
from weigh.recipes import generation, trained
from weigh.recipes.generation import Generation
from weigh.recipes.training import Training
from weigh.records import dataclass, fields, replace
from weigh.trace.events import Trace
from weigh.trace.peak import PhasePeak, phase_peaks

CHUNK = 16384
"""Settings that are evaluated at once: a few dozen arrays of 128 KiB each."""


@dataclass(frozen=True, slots=True)
class SweepPhase:
    """The bytes live at the start, at the highest point and at the end of one phase: an array each."""

    phase: str
    round: int
    before: Array
    peak: Array
    after: Array


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found, an element for every setting."""

    phases: tuple[SweepPhase, ...]
    flops: Array
    """Floating-point operations of the whole run, in double precision."""
    runs: int
    """How many parts the settings were cut into."""

    @property
    def peak(self) -> Array:
        """The highest point of all phases."""
        first, *others = (p.peak for p in self.phases)
        namespace = first.__array_namespace__()
        for other in others:
            first = namespace.maximum(first, other)
        return first


def sweep(
    config: Mapping[str, Any],
    recipe: Training | Generation,
    *,
    where: str = "config",
    rounded: bool = False,
    **arrays: Array,
) -> Sweep:
    """Run a recipe for many settings: each of `arrays` is named as a field of the recipe, and all are of one length.

    Arrays are NumPy's, or others that follow the array-API standard and can be written to. `rounded` counts each
    storage in multiples of 512 bytes, as the CUDA allocator does.

    Raises:
        UsageError: no array is given, a name is no field of the recipe, or the arrays are not alike or below 1.
        InputError: the config cannot be read.
        OverflowError: a setting needs 2**63 bytes or more.
    """
    names = {f.name for f in fields(recipe)}
    unknown = sorted(arrays.keys() - names)
    if unknown or not arrays:
        problem = f"{unknown[0]!r} is no setting of {type(recipe).__name__}" if unknown else "a sweep needs an array"
        raise UsageError(problem, where="sweep", hint="Give batch=, sequence= or the like as arrays.")
    axes = _axes(arrays)[0]
    result: _Result | None = None
    runs = 0
    for part, peaks, flops in _runs(config, recipe, where, rounded, arrays, None):
        runs += 1
        if result is None:
            result = _Result(len(axes), peaks, next(iter(arrays.values())))
        result.write(part, peaks, flops)
    assert result is not None
    return result.finish(runs)


@dataclass(frozen=True, slots=True)
class _Part:
    """The settings of one run: its axes, and where its settings stand in the whole (None: it is the whole)."""

    axes: Axes
    indices: Array | None


def _axes(arrays: Mapping[str, Array]) -> tuple[Axes, dict[str, Any]]:
    axes = Axes()
    try:
        return axes, {name: axes.new(array) for name, array in arrays.items()}
    except ValueError as error:
        raise UsageError(str(error), where="sweep", hint="Give arrays of one length, of sizes from 1 on.") from None


def _runs(
    config: Mapping[str, Any],
    recipe: Training | Generation,
    where: str,
    rounded: bool,
    arrays: Mapping[str, Array],
    indices: Array | None,
) -> Iterator[tuple[_Part, list[PhasePeak], Size]]:
    """Run these settings, or cut them in two and run each part."""
    axes, sizes = _axes(arrays)
    try:
        trace = _trace(config, replace(recipe, **sizes), where)
        peaks = phase_peaks(trace, rounded)
    except AmbiguousDimension as question:
        condition = question.condition
    else:
        yield _Part(axes, indices), peaks, _flops(trace)
        return
    namespace = condition.__array_namespace__()
    for answer in (condition, namespace.logical_not(condition)):
        (inside,) = namespace.nonzero(answer)
        mine = {name: namespace.take(array, inside) for name, array in arrays.items()}
        of_whole = inside if indices is None else namespace.take(indices, inside)
        yield from _runs(config, recipe, where, rounded, mine, of_whole)


def _trace(config: Mapping[str, Any], recipe: Training | Generation, where: str) -> Trace:
    if isinstance(recipe, Training):
        return trained.run(config, recipe, where).trace
    return generation.run(config, recipe, where).trace


def _flops(trace: Trace) -> Size:
    times = {repeat.second: 1 + repeat.extra for repeat in trace.repeats}
    total: Size = 0
    for call in trace.calls:
        total = total + call.flops * (1 if call.unit is None else times.get(call.unit, 1))
    return total


class _Result:
    """The arrays that the parts are written into."""

    def __init__(self, length: int, peaks: list[PhasePeak], like: Array) -> None:
        namespace = like.__array_namespace__()
        empty: Callable[..., Array] = namespace.empty
        self.phases = tuple(
            SweepPhase(p.mark.phase, p.mark.round, *(empty(length, dtype=namespace.int64) for _ in range(3)))
            for p in peaks
        )
        self.flops = empty(length, dtype=namespace.float64)

    def write(self, part: _Part, peaks: list[PhasePeak], flops: Size) -> None:
        """Evaluate one part, chunk by chunk."""
        places = [array for p in self.phases for array in (p.before, p.peak, p.after)]
        sizes = [size for p in peaks for size in (p.before, p.peak, p.after)]
        for start in range(0, len(part.axes), CHUNK):
            stop = min(start + CHUNK, len(part.axes))
            where = slice(start, stop) if part.indices is None else part.indices[start:stop]
            for place, values in zip(places, part.axes.evaluate(sizes, start, stop), strict=True):
                place[where] = values
            self.flops[where] = flops.evaluate_float(start, stop) if isinstance(flops, Dim) else float(flops)

    def finish(self, runs: int) -> Sweep:
        """What was written."""
        return Sweep(self.phases, self.flops, runs)
