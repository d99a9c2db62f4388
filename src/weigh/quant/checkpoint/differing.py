"""Two checkpoints side by side, value by value, however each of them is stored."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from weigh import dtypes
from weigh.quant.arrays import numpy_dtype
from weigh.quant.checkpoint.inspecting import inspect
from weigh.quant.checkpoint.reading import raw
from weigh.quant.errors import Errors, compare
from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table

if TYPE_CHECKING:
    from weigh.quant.checkpoint.inspecting import Inspection
    from weigh.sources.checkpoint import StoredTensor

PIECE = 1 << 22
"""Values that are compared at once."""
SHOWN = 20


@dataclass(frozen=True)
class Difference:
    """Two checkpoints."""

    a: Inspection
    b: Inspection
    errors: dict[str, Errors]
    """How far the second's values are off the first's, by tensor."""
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Tensors of one name and two shapes."""

    @property
    def total(self) -> Errors:
        """Of all that were compared."""
        return sum(self.errors.values(), Errors())

    @property
    def changed(self) -> list[str]:
        """The tensors with another value, the most changed first."""
        found = [name for name, errors in self.errors.items() if errors.squared_error]
        return sorted(found, key=lambda name: -self.errors[name].relative_rmse)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/values.json`."""
        return {
            **header("values"),
            "a": self.a.name,
            "b": self.b.name,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "reshaped": list(self.reshaped),
            "total": _figures(self.total),
            "tensors": {name: _figures(errors) for name, errors in self.errors.items()},
        }

    def text(self, style: Style = PLAIN) -> str:
        """For people: the whole, and the tensors that changed most."""
        changed, total = self.changed, self.total
        lines = [f"{style.bold(self.b.name)} beside {style.bold(self.a.name)}", ""]
        lines.append(f"{len(self.errors):,} tensors compared, {len(changed):,} differ")
        for said, names in (("only in the first", self.only_a), ("only in the second", self.only_b)):
            if names:
                lines.append(f"{len(names):,} {said}: {_some(names)}")
        if self.reshaped:
            lines.append(f"{len(self.reshaped):,} have another shape: {_some(self.reshaped)}")
        if changed:
            rows = [("", "relative RMSE", "SQNR", "cosine", "largest error")]
            rows += [_cells(name, self.errors[name]) for name in changed[:SHOWN]]
            rows.append(_cells("all", total))
            lines += ["", *table(rows, "<>>>>")]
            if len(changed) > SHOWN:
                lines.append(f"  and {len(changed) - SHOWN} more; --json has all")
        return "\n".join(lines)


def difference(a: str, b: str) -> Difference:
    """How far the values of checkpoint `b` are off those of `a`.

    Raises:
        InputError: one of them cannot be read.
    """
    first, second = inspect(a), inspect(b)
    ours, theirs = ({t.name: t for t in i.tensors} for i in (first, second))
    both = [name for name in ours if name in theirs]
    reshaped = tuple(name for name in both if ours[name].shape != theirs[name].shape)
    errors = {name: _errors(first, second, name) for name in both if name not in reshaped}
    only_a = tuple(name for name in ours if name not in theirs)
    return Difference(first, second, errors, only_a, tuple(n for n in theirs if n not in ours), reshaped)


def _errors(a: Inspection, b: Inspection, name: str) -> Errors:
    unit = lcm(*(i.matrices[name].cut() if name in i.matrices else 1 for i in (a, b)))
    pieces = zip(_pieces(a, name, unit), _pieces(b, name, unit), strict=True)
    return sum((compare(x.astype(np.float32), y.astype(np.float32)) for x, y in pieces), Errors())


def _pieces(inspection: Inspection, name: str, unit: int) -> Iterator[Any]:
    """The values, flat, so many at a time that both sides agree."""
    tensor: StoredTensor = next(t for t in inspection.tensors if t.name == name)
    size = max(PIECE // unit, 1) * unit * dtypes.get(tensor.dtype).itemsize
    if name in inspection.matrices:
        yield from inspection.matrices[name].slabs(inspection.weights, size, unit)
        return
    kind = numpy_dtype(dtypes.get(tensor.dtype))
    for data in raw(inspection.weights, tensor, size):
        yield np.frombuffer(data, kind)


def _figures(errors: Errors) -> dict[str, Any]:
    """What can be added up over pieces: outliers are a whole tensor's matter."""
    return {name: figure for name, figure in errors.as_dict().items() if "outlier" not in name and "rest" not in name}


def _cells(name: str, errors: Errors) -> tuple[str, str, str, str, str]:
    rmse, sqnr = f"{100 * errors.relative_rmse:.4g} %", f"{errors.sqnr:.2f} dB"
    return name, rmse, sqnr, f"{errors.cosine:.6f}", f"{errors.largest:.4g}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
