"""Loading, evaluating and saving in a training's report: where jobs die besides their steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.errors import UnknownNameError
from weigh.report.memory import Memory
from weigh.report.text import table, wrap
from weigh.runtimes.phases import JobPhase, Surroundings, whole_model
from weigh.trace.events import EVALUATE, LOAD, OPTIMIZER_STATE
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.dims import Size
    from weigh.dtypes import DType
    from weigh.recipes.trained import TrainingRun
    from weigh.report.fit import Fit
    from weigh.report.training import TrainingReport
    from weigh.runtimes import Runtime
    from weigh.sources.source import Source

STEPS = "steps"


def job_phases(
    report: TrainingReport, program: Runtime, version: tuple[int, ...] | None, evaluate: Callable[[], TrainingRun]
) -> tuple[JobPhase, ...]:
    """The phases of a job in their order, its steps among them."""
    r, memory = report.recipe, report.memory
    states: dict[int, int] = {}
    for allocation, count in memory.live_at_end():
        if allocation.purpose == OPTIMIZER_STATE:
            size = _bytes(allocation.num_bytes)
            states[size] = states.get(size, 0) + count
    held = [(_bytes(p.tensor.num_bytes), p.count, p.tensor.requires_grad) for p in report.run.parameters]

    def evaluated() -> int:
        return Memory(evaluate().trace, report.parts, memory.rounded).peak_of(lambda p: p.mark.phase == EVALUATE)

    surroundings = Surroundings(
        recipe=r,
        version=version,
        build=lambda: whole_model(report.source.config, r, report.source.where, program.loop),
        stored=_stored(report.source),
        held=sum(size * count for size, count, _ in held),
        trained=sum(size * count for size, count, trained in held if trained),
        units=tuple(size * r.mesh.shard for size, count, _ in held for _ in range(count)) if r.shard == "fsdp1" else (),
        states=states,
        loaded=memory.peak_of(lambda p: p.mark.phase == LOAD),
        resident=_bytes(memory.phases[-1].after),
        evaluated=evaluated,
    )
    host = sum(_bytes(size) for size in report.run.elsewhere.values())
    steps = JobPhase(STEPS, report.peak, host, host * r.gpus_per_node, 0, "forward, backward, update")
    loading, *others = program.phases(surroundings)
    return loading, steps, *others


def _bytes(size: Size) -> int:
    """A size of a report's run, which has no arrays."""
    assert isinstance(size, int)
    return size


def _stored(source: Source) -> DType | None:
    """In which dtype the checkpoint is, as its header or else its config says."""
    spelled = source.checkpoint.float_dtype if source.checkpoint is not None else source.dtype
    try:
        return dtypes.get(str(spelled)) if spelled else None
    except UnknownNameError:
        return None


def lines(phases: tuple[JobPhase, ...], processes: int, fit: Fit | None) -> list[str]:
    """The phases as a table, which of them is the worst or too much for the device, and which are not weighed."""
    head: tuple[str, ...] = ("around the steps", "device", "host, one process", f"host, a node of {processes}")
    rows: list[tuple[str, ...]] = [head]
    for p in phases:
        if p.device is not None:
            cells = tuple("?" if size is None else format_bytes(size) for size in (p.device, p.host, p.node))
            rows.append((p.name, *cells))
    if processes == 1:
        rows = [row[:3] for row in rows]
    missing: dict[str, list[str]] = {}
    for p in phases:
        if p.device is None or p.host is None:
            missing.setdefault(p.what, []).append(p.name)
    return [
        *(table(rows, "<>>>"[: len(rows[0])]) if len(rows) > 2 else ()),
        *(f"  {line}" for line in wrap(_worst(phases) + _too_much(phases, fit), 86) if len(rows) > 2),
        *(f"  {line}" for what, names in missing.items() for line in wrap(f"{', '.join(names)}: {what}", 86)),
        "",
    ]


def working(phases: tuple[JobPhase, ...]) -> list[str]:
    """What happens in each phase, and what was read."""
    said = []
    for p in phases:
        mapped = f"; files of {format_bytes(p.mapped)} are mapped, whose pages the system can drop" if p.mapped else ""
        said += wrap(f"{p.name}: {p.what}{mapped}{f' ({p.source})' if p.source else ''}", 86)
    return [f"  {line}" for line in said]


def _too_much(phases: tuple[JobPhase, ...], fit: Fit | None) -> str:
    """What does not fit beside steps that may."""
    if fit is None or fit.verdict == "no":
        return ""
    names = [p.name for p in phases if p.device is not None and p.device > fit.capacity and p.name != STEPS]
    return f" Too much for {fit.device.marketing_name}: {', '.join(names)}." if names else ""


def _worst(phases: tuple[JobPhase, ...]) -> str:
    """Which takes most, on the device and on the host."""
    device = max((p for p in phases if p.device is not None), key=lambda p: p.device or 0)
    host = max((p for p in phases if p.node is not None), key=lambda p: p.node or 0)
    said = f"Most on the device: {device.name}, {format_bytes(device.device or 0)}."
    return f"{said} Most on the host: {host.name}, {format_bytes(host.node)}." if host.node else said
