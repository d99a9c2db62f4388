"""Two trainings side by side: the settings that differ, what each takes, and the tensors that make the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weigh.recipes.settings import words_of
from weigh.records import dataclass
from weigh.report.compare import difference, in_order, short
from weigh.report.header import header
from weigh.report.parts import pattern
from weigh.report.text import PLAIN, PLURAL, Style, table, wrap
from weigh.report.work import format_flops
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.report.training import TrainingReport

SHOWN = 15
"""Tensors that the text shows."""

Owner = tuple[str, str, str]
"""A purpose, a module with its blocks' numbers left out, and the op that allocated."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TrainingsComparison:
    """What `weigh compare A.toml B.toml` says."""

    a: TrainingReport
    """The first."""
    b: TrainingReport
    """The second."""
    names: tuple[str, str]
    """What they are called: their files."""

    def settings(self) -> dict[str, tuple[Any, Any]]:
        """What differs: the model, the program, the device, and the settings as they were run."""
        left, right = (_said(side) for side in (self.a, self.b))
        return {name: (left[name], right[name]) for name in left if left[name] != right[name]}

    def figures(self) -> dict[str, tuple[int, int]]:
        """Bytes, but for what is called parameters or operations."""
        left, right = (_figures(side) for side in (self.a, self.b))
        return {name: (left.get(name, 0), right.get(name, 0)) for name in in_order(list(left), list(right))}

    def owners(self) -> dict[Owner, tuple[int, int]]:
        """What tensors of a kind hold at each one's own peak, where that differs, the largest difference first."""
        left, right = (_owners(side) for side in (self.a, self.b))
        pairs = {owner: (left[owner], right[owner]) for owner in left | right}
        apart = {owner: pair for owner, pair in pairs.items() if pair[0] != pair[1]}
        return dict(sorted(apart.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/compare_trainings.json`."""
        return {
            **header("compare_trainings"),
            "trainings": list(self.names),
            "settings": {name: list(pair) for name, pair in self.settings().items()},
            "figures": {name: list(pair) for name, pair in self.figures().items()},
            "tensors": [
                {"purpose": purpose, "module": module, "op": op, "bytes": list(pair)}
                for (purpose, module, op), pair in self.owners().items()
            ],
        }

    def text(self, style: Style = PLAIN) -> str:
        """For a terminal."""
        chosen = [(name.replace("_", " "), short(a), short(b)) for name, a, b in _told_apart(self.settings())]
        rows = [("", *self.names, "difference")]
        rows += [(name, _amount(name, a), _amount(name, b), _change(a, b)) for name, (a, b) in self.figures().items()]
        lines = [style.bold(f"{self.names[0]} beside {self.names[1]}"), ""]
        lines += ["Settings that differ", *table(chosen, "<>>")] if chosen else ["Their settings agree."]
        lines += ["", *table(rows, "<>>>"), *self._tensors()]
        return "\n".join(lines)

    def _tensors(self) -> list[str]:
        """The largest differences."""
        owners = self.owners()
        if not owners:
            return []
        said = [(_signed(b - a), PLURAL[p], module or "-", op) for (p, module, op), (a, b) in owners.items()]
        lines = ["", "What makes the difference at the peaks, tensors of a kind together", *table(said[:SHOWN], "><<<")]
        if len(said) > SHOWN:
            rest = sum(b - a for a, b in list(owners.values())[SHOWN:])
            lines += wrap(f"and {len(said) - SHOWN} more kinds, {_signed(rest)} in all (--json has every one)", 88)
        return lines

    def svg(self) -> str:
        """Both peaks by purpose, as a picture."""
        from weigh.report.traces import TracesReport

        return TracesReport.of(self.a.run.trace, self.b.run.trace, self.names).svg()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.names[0]} beside {self.names[1]}>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text(), self.svg())


def _told_apart(settings: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ; of adapters that are on both sides their own ones, else the kind and the rank."""
    for name, (a, b) in settings.items():
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            own = [*a, *(key for key in b if key not in a)]
            yield from ((f"{name} {key}", a.get(key), b.get(key)) for key in own if a.get(key) != b.get(key))
        else:
            yield name, _kind_and_rank(a), _kind_and_rank(b)


def _kind_and_rank(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return value["kind"] + (f" of rank {value['rank']}" if "rank" in value else "")


def _said(side: TrainingReport) -> dict[str, Any]:
    device = None if side.device is None else side.device.name
    return {"model": side.source.name, "runtime": side.runtime, "device": device, **words_of(side.recipe)}


def _figures(side: TrainingReport) -> dict[str, int]:
    counts = side.as_dict()["parameters"]
    memory = side.memory
    return {
        "peak": side.peak,
        "first step": side.first_step,
        "steady state": side.steady_state,
        **{f"{PLURAL[purpose]} at the peak": size for purpose, size in memory.by_purpose().items()},
        **{f"{component} at the peak": size for component, size in memory.by_component().items()},
        "parameters": counts["total"],
        "trained parameters": counts["trainable"],
        "operations a step": int(sum(side.flops().values())),
    }


def _owners(side: TrainingReport) -> Counter[Owner]:
    memory = side.memory
    found: Counter[Owner] = Counter()
    for owner in memory.owners(None):
        found[owner.purpose, pattern(owner.module), owner.op] += owner.num_bytes
    return found


def _amount(name: str, value: int) -> str:
    if name == "operations a step":
        return format_flops(value)
    return f"{value:,}" if "parameters" in name else format_bytes(value)


def _change(left: int, right: int) -> str:
    return "gone" if left and not right else difference(left, right)


def _signed(num_bytes: int) -> str:
    return ("-" if num_bytes < 0 else "+") + format_bytes(abs(num_bytes))
