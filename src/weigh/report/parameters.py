"""How many parameters a model has, which part has them, and what they weigh. All of it is exact, as shapes are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.dims import product
from weigh.ghost import nn
from weigh.records import dataclass
from weigh.report.assumption import EXACT, Assumption
from weigh.report.header import header
from weigh.report.parts import COMPONENTS, OTHER, Parts, layer, pattern
from weigh.report.text import PLAIN, Style, bar, share, table, wrap
from weigh.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

    from weigh.dtypes import DType
    from weigh.ghost.nn import Module
    from weigh.report.stored import StoredWeights
    from weigh.sources.source import Source

_ELSEWHERE = ("fp32", "bf16", "int8", "nf4")


@dataclass(frozen=True, slots=True, eq=False)
class TensorRow:
    """One parameter of every block that has it."""

    names: tuple[str, ...]
    """Its name in every block, as in the checkpoint."""
    shape: tuple[int, ...]
    """Of each."""
    component: str
    """The part of the model that it belongs to."""
    active_share: Fraction | int = 1
    """The share of it that one token is computed with."""
    trainable: bool = True
    """Whether training changes it."""

    @property
    def each(self) -> int:
        """Elements of one."""
        found = product(self.shape)
        assert isinstance(found, int)
        return found

    @property
    def total(self) -> int:
        """Elements of all."""
        return self.each * len(self.names)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ParametersReport:
    """The parameters of a model."""

    source: Source
    """Which model."""
    dtype: DType
    """In which dtype they are weighed."""
    rows: tuple[TensorRow, ...]
    """Every parameter, tied ones once."""
    tied: tuple[str, ...]
    """Parameters that are another one under a second name, and so are not counted."""
    assumptions: tuple[Assumption, ...]
    """What was taken for granted."""
    stored: StoredWeights | None = None
    """The weights as a checkpoint stores them, where there is one or where they are quantized."""

    @classmethod
    def of(
        cls,
        source: Source,
        model: Module,
        dtype: DType,
        assumptions: tuple[Assumption, ...],
        stored: StoredWeights | None = None,
    ) -> ParametersReport:
        """The report of a ghost model."""
        parts = Parts(model)
        rows: dict[tuple[str, tuple[int, ...], Fraction | int, bool], list[str]] = {}
        counted: set[int] = set()
        for p in model.parameters():
            counted.add(id(p.tensor))
            key = (pattern(p.names[0]), p.tensor.shape, p.active_share, p.tensor.requires_grad)
            rows.setdefault(key, []).extend(p.names)  # type: ignore[arg-type]
        names = {id(p.tensor): p.names[0] for p in model.parameters()}
        tied = tuple(
            f"{module.path}.{attribute} is {names[id(tensor)]}"
            for module in model.modules()
            for attribute, tensor in module.own_tensors()
            if id(tensor) in counted
            and f"{module.path}.{attribute}" != names[id(tensor)]
            and layer(module.path) is None
        )
        found = (
            TensorRow(tuple(names), shape, parts.role(path) or OTHER, active_share, trainable)
            for (path, shape, active_share, trainable), names in rows.items()
        )
        return cls(source, dtype, tuple(found), tied, assumptions, stored)

    @property
    def total(self) -> int:
        """How many parameters."""
        return sum(row.total for row in self.rows)

    @property
    def trainable(self) -> int:
        """How many of them training changes: all, or an adapter's."""
        return sum(row.total for row in self.rows if row.trainable)

    @property
    def active(self) -> int:
        """How many one token is computed with: all, but for the experts that it does not choose."""
        return round(sum(row.total * row.active_share for row in self.rows))  # whole, unless on average

    @property
    def num_bytes(self) -> int:
        """What they weigh, each tensor on its own."""
        return self.bytes_in(self.dtype)

    def bytes_in(self, dtype: DType) -> int:
        """What they would weigh in another dtype."""
        return sum(dtype.num_bytes(row.each) * len(row.names) for row in self.rows)

    def by_component(self) -> dict[str, int]:
        """Parameters of every component, in the order of a forward pass."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.component] = found.get(row.component, 0) + row.total
        assert sum(found.values()) == self.total
        return dict(sorted(found.items(), key=lambda item: (*COMPONENTS, OTHER).index(item[0])))

    def by_layer(self) -> dict[int | None, int]:
        """Parameters of every block; None is what lies outside of the blocks."""
        found: dict[int | None, int] = {}
        for row in self.rows:
            each = row.each
            for name in row.names:
                number = None if row.component in nn.TOWERS else layer(name)
                found[number] = found.get(number, 0) + each
        return dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))

    @property
    def without_embeddings(self) -> int:
        """Parameters that are in no embedding and no output layer (the N of scaling laws)."""
        return sum(row.total for row in self.rows if row.component not in (nn.EMBEDDING, nn.HEAD))

    @property
    def literature_tally(self) -> int:
        """As articles count: no positions, no biases, and an output layer that is the embedding."""
        first = next((row for row in self.rows if row.component == nn.EMBEDDING), None)
        dropped = (nn.EMBEDDING, nn.HEAD)
        return sum(
            row.total
            for row in self.rows
            if not row.names[0].endswith(".bias") and (row is first or row.component not in dropped)
        )

    def _each(self) -> Iterator[tuple[str, TensorRow]]:
        return ((name, row) for row in self.rows for name in row.names)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        return {name: row.shape for name, row in self._each()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/params.json`."""
        return {
            **header("params", self.source, self.dtype),
            "parameters": {
                "total": self.total,
                "trainable": self.trainable,
                "active": self.active,
                "without_embeddings": self.without_embeddings,
                "literature_tally": self.literature_tally,
                "bytes": self.num_bytes,
                "basis": EXACT,
                "by_component": self.by_component(),
                "tensors": [
                    {
                        "name": pattern(row.names[0]) if len(row.names) > 1 else row.names[0],
                        "count": len(row.names),
                        "shape": list(row.shape),
                        "component": row.component,
                        "parameters": row.total,
                    }
                    for row in self.rows
                ],
                "tied": list(self.tied),
            },
            "stored": None if self.stored is None else self.stored.as_dict(),
            "assumptions": [a.as_dict() for a in self.assumptions],
        }

    def text(self, style: Style = PLAIN, by: str = "component", explain: bool = False) -> str:
        """For a terminal."""
        lines = [f"{style.bold(f'{self.source.name} has {self.total:,} parameters')}, {self._weight()}", ""]
        divide = {"component": self._components, "layer": self._layers, "dtype": self._dtypes, "tensor": self._tensors}
        if self.stored is None or by != "dtype":
            lines += divide[by](style)
        if self.stored is not None:
            lines += ["", *self.stored.lines(style.width)] if by != "dtype" else self.stored.lines(style.width)
        if by == "component":
            lines += ["", *self._notes()]
        if explain:
            from weigh.report.explain import explain_parameters

            lines += ["", *explain_parameters(self, style)]
        elif by == "component" and self.assumptions:
            taken = "; ".join(a.what for a in self.assumptions)
            lines += ["", *(style.dim(line) for line in wrap(f"Assumed (--explain says why): {taken}.", style.width))]
        return "\n".join(lines)

    def _weight(self) -> str:
        plain = f"{format_bytes(self.num_bytes)} in {self.dtype.name}"
        return plain if self.stored is None else f"{format_bytes(self.stored.num_bytes)} as stored, {plain}"

    def _components(self, style: Style) -> list[str]:
        widest = max(self.by_component().values())
        rows = [
            (name, f"{count:,}", share(count, self.total), bar(count, widest, 32))
            for name, count in self.by_component().items()
        ]
        return table(rows, "<>><")

    def _layers(self, style: Style) -> list[str]:
        rows = [
            ("outside of the layers" if number is None else f"layer {number}", f"{count:,}", share(count, self.total))
            for number, count in self.by_layer().items()
        ]
        return table(rows, "<>>")

    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """Bytes, and the parameters that they stand for, by number format: as stored, or all in one."""
        return {self.dtype.name: (self.num_bytes, self.total)} if self.stored is None else self.stored.by_dtype()

    def _dtypes(self, style: Style) -> list[str]:
        rows = [
            (name, format_bytes(num_bytes), f"{parameters:,} parameters")
            for name, (num_bytes, parameters) in self.by_dtype().items()
        ]
        return table(rows, "<>>")

    def _tensors(self, style: Style) -> list[str]:
        rows = [(name, " x ".join(map(str, row.shape)), f"{row.each:,}", row.component) for name, row in self._each()]
        return table(rows, "<>><")

    def _notes(self) -> list[str]:
        layers = [count for number, count in self.by_layer().items() if number is not None]
        notes = [f"  tied, counted once: {name}" for name in self.tied]
        if layers:
            each = f"{layers[0]:,} each" if len(set(layers)) == 1 else f"{min(layers):,} to {max(layers):,}"
            notes.append(
                f"  {len(layers)} layers of {each}; {format_count(self.without_embeddings)} without embeddings"
            )
        if self.active != self.total:
            notes.append(f"  {format_count(self.active)} active per token ({self.active:,})")
        if self.trainable != self.total:
            notes.append(f"  {self.trainable:,} of them trainable ({share(self.trainable, self.total)})")
        sizes = (
            f"{name} {format_bytes(self.bytes_in(dtypes.get(name)))}" for name in _ELSEWHERE if name != self.dtype.name
        )
        return [*notes, f"  in {', '.join(sizes)}"]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.source.name}: {self.total:,} parameters, {self._weight()}>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text())
