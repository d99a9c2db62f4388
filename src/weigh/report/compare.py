"""Two models side by side: their parameters by component, what their sequences keep, and the keys that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.report.kv import KvReport
    from weigh.report.parameters import ParametersReport

NO_MATTER = frozenset(
    "_name_or_path architectures auto_map bos_token_id decoder_start_token_id eos_token_id pad_token_id torch_dtype "
    "transformers_version use_cache".split()
)
"""Keys that shape neither a model nor its run (`torch_dtype` is shown as the dtype)."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One of the models."""

    parameters: ParametersReport
    """Its parameters."""
    kv: KvReport | None
    """What one token of one of its sequences keeps; None where the family does not say."""

    def figures(self) -> dict[str, int | None]:
        """What is compared number by number."""
        p = self.parameters
        return {
            "parameters": p.total,
            **p.by_component(),
            "active": p.active,
            "without_embeddings": p.without_embeddings,
            "bytes": p.num_bytes,
            "kv_bytes_per_token": None if self.kv is None else self.kv.bytes_per_token,
            "state_bytes_per_sequence": None if self.kv is None else self.kv.state_bytes,
        }


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """Two models."""

    a: Side
    """The first."""
    b: Side
    """The second."""

    def figures(self) -> dict[str, tuple[int | None, int | None]]:
        """Every figure of both; a component that one of them lacks is 0 there."""
        left, right = self.a.figures(), self.b.figures()
        return {name: (left.get(name, 0), right.get(name, 0)) for name in in_order(list(left), list(right))}

    def keys(self) -> dict[str, tuple[Any, Any]]:
        """The config keys that differ, with both values; None where a config does not have one."""
        left, right = self.a.parameters.source.config, self.b.parameters.source.config
        return {
            key: (left.get(key), right.get(key))
            for key in in_order(list(left), list(right))
            if left.get(key) != right.get(key) and key not in NO_MATTER
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/compare.json`."""
        sides = (self.a.parameters, self.b.parameters)
        return {
            **header("compare"),
            "kind": "models",
            "models": [header("compare", side.source, side.dtype)["model"] for side in sides],
            "figures": {name: list(values) for name, values in self.figures().items()},
            "config": {key: list(values) for key, values in self.keys().items()},
        }

    def text(self, style: Style = PLAIN) -> str:
        """For a terminal."""
        a, b = self.a.parameters, self.b.parameters
        rows = [("", a.source.name, b.source.name, "difference")]
        for name, (left, right) in self.figures().items():
            label = name.replace("_", " ")
            rows.append((label, _amount(name, left), _amount(name, right), difference(left, right)))
        lines = [style.bold(f"{a.source.name} beside {b.source.name}"), "", *table(rows, "<>>>")]
        keys = [(key, short(left), short(right)) for key, (left, right) in self.keys().items()]
        if not keys:
            return "\n".join([*lines, "", "Their configs agree."])
        return "\n".join([*lines, "", "Config keys that differ", *table(keys, "<>>")])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.a.parameters.source.name} beside {self.b.parameters.source.name}>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text())


def in_order(left: list[str], right: list[str]) -> list[str]:
    """The names of both, in the order of the first, each new one of the second behind the one before it.

    >>> in_order(["a", "c"], ["a", "b", "c", "d"])
    ['a', 'b', 'c', 'd']
    """
    found = list(left)
    for before, name in zip([None, *right], right, strict=False):
        if name not in found:
            found.insert(0 if before is None else found.index(before) + 1, name)
    return found


def _amount(name: str, value: int | None) -> str:
    if value is None:
        return "?"
    return format_bytes(value) if name == "bytes" else f"{value:,}"


MANY = 10
"""From so many times as much on, percents say less than a factor."""


def difference(left: int | None, right: int | None) -> str:
    """By how much the right one is more, in words; nothing where they agree or one is unknown.

    >>> difference(200, 190), difference(0, 3), difference(2, 900)
    ('-5.0 %', 'new', 'x 450')
    """
    if left is None or right is None or left == right:
        return ""
    if not left:
        return "new"
    return f"{100 * (right - left) / left:+.1f} %" if right < MANY * left else f"x {round(right / left):,}"


def short(value: Any) -> str:
    """A setting's value, in a column."""
    text = "-" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:29]}..."
