"""What formats do to the matrices of a checkpoint: tensor by tensor, layer by layer, as text, JSON and CSV.

One tensor is in memory at a time. A matrix that a format cannot store (its rows are no whole blocks) is left out of
the format's figures and counted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from weigh import dtypes
from weigh.errors import InputError, UsageError
from weigh.quant import parse
from weigh.quant.arrays import numpy_dtype
from weigh.quant.base import Packed
from weigh.quant.checkpoint.plan import read_config
from weigh.quant.checkpoint.rules import Rules
from weigh.quant.checkpoint.stored import read as read_stored
from weigh.quant.errors import LEAST_POWER, Errors, measure, output
from weigh.quant.ggml import TYPES, Ggml
from weigh.records import dataclass, field
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table
from weigh.sources.weights import open_weights

if TYPE_CHECKING:
    from weigh.quant.base import Quantizer
    from weigh.sources.checkpoint import StoredTensor


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor in one format."""

    tensor: str
    shape: tuple[int, ...]
    num_bytes: int = 0
    """As the format stores it."""
    errors: Errors | None = None
    """None where it cannot be stored."""
    refused: str = ""
    """Why not."""
    output: Errors | None = None
    """Of the layer's output, where inputs were given."""

    @property
    def layer(self) -> str:
        """The block that it belongs to: "encoder.layer.3"; the module's name where it is in none."""
        parts = self.tensor.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 2)
        return ".".join(parts[: at + 1])


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint in several formats."""

    source: str
    rows: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    """By format."""

    def total(self, name: str) -> Errors:
        """Of all tensors that the format can store."""
        return sum((r.errors for r in self.rows[name] if r.errors is not None), Errors())

    def bits(self, name: str) -> float:
        """Stored for each weight, scales included."""
        stored = [r for r in self.rows[name] if r.errors is not None]
        elements = sum(r.errors.elements for r in stored if r.errors is not None)
        return 8 * sum(r.num_bytes for r in stored) / elements if elements else 0.0

    def layers(self, name: str) -> dict[str, Errors]:
        """Of each block's tensors together."""
        found: dict[str, Errors] = {}
        for row in self.rows[name]:
            if row.errors is not None:
                found[row.layer] = found.get(row.layer, Errors()) + row.errors
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **header("errors"),
            "source": self.source,
            "formats": [
                {
                    "format": name,
                    "bits_per_weight": self.bits(name),
                    "total": self.total(name).as_dict(),
                    "histogram": {"least_power_of_two": LEAST_POWER, "counts": list(self.total(name).histogram)},
                    "layers": {layer: errors.as_dict() for layer, errors in self.layers(name).items()},
                    "tensors": [_row(row) for row in rows],
                }
                for name, rows in self.rows.items()
            ],
        }

    def csv(self) -> str:
        """A line for each tensor and format."""
        file = io.StringIO()
        keys = ["format", "tensor", "layer", "shape", "bytes", *Errors().as_dict(), "output_relative_rmse", "refused"]
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        for name, rows in self.rows.items():
            for row in rows:
                said = _row(row)
                errors = said.pop("errors") or {}
                of_output = said.pop("output") or {}
                line = {**said, **errors, "format": name, "shape": "x".join(map(str, row.shape))}
                writer.writerow({**line, "output_relative_rmse": of_output.get("relative_rmse", "")})
        return file.getvalue()

    def text(self, style: Style = PLAIN, by: str = "format") -> str:
        """For people: a line for each format, and the worst tensors; or one for each "layer" or "tensor"."""
        lines = [style.bold(f"Errors of {self.source}"), ""]
        lines += self._summary() if by == "format" else self._detailed(by)
        lines += ["", *(style.dim(f"  {line}") for line in LEGEND)]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("format", "bits", *_COLUMNS, "of", "worst tensor")]
        for name, found in self.rows.items():
            kept = [r for r in found if r.errors is not None]
            worst = max(kept, key=lambda r: r.errors.relative_rmse if r.errors else 0.0, default=None)
            said = (
                ""
                if worst is None or worst.errors is None
                else f"{worst.tensor} {_percent(worst.errors.relative_rmse)}"
            )
            figures = cells(self.total(name)) if kept else ("-",) * 6
            rows.append((name, f"{self.bits(name):.3f}", *figures, f"{len(kept)}/{len(found)}", said))
        return [*table(rows, "<>>>>>>>><"), *self._outputs(), *self._refusals()]

    def _detailed(self, by: str) -> list[str]:
        rows: list[tuple[str, ...]] = [("format", by, *_COLUMNS, "outliers")]
        for name in self.rows:
            parts = self.layers(name).items() if by == "layer" else named(self.rows[name])
            rows += [(name, what, *cells(errors), f"{errors.outliers:,}") for what, errors in parts]
        return [*table(rows, "<<>>>>>>>"), *self._outputs(), *self._refusals()]

    def _outputs(self) -> list[str]:
        lines = []
        for name, rows in self.rows.items():
            for row in rows:
                if row.output is not None:
                    said = f"{_percent(row.output.relative_rmse)}, cosine {row.output.cosine:.6f}"
                    lines.append(f"  {name}: output of {row.tensor.removesuffix('.weight')} off by {said}")
        return ["", *lines] if lines else []

    def _refusals(self) -> list[str]:
        lines = []
        for name, rows in self.rows.items():
            reasons: dict[str, int] = {}
            for row in rows:
                if row.refused:
                    reasons[row.refused] = reasons.get(row.refused, 0) + 1
            lines += [f"  {name} cannot store {count} of {len(rows)}: {why}" for why, count in reasons.items()]
        return ["", *lines] if lines else []


_COLUMNS = ("rel. RMSE", "SQNR", "cosine", "largest", "rest", "alone")
LEGEND = (
    "rel. RMSE: root of the squared errors over the squared weights. SQNR: the same in dB (6 dB a bit).",
    "largest: the largest error, in the weights' own unit. cosine: between the weights and what comes back.",
    "rest: rel. RMSE of what is no outlier (of over 6 root mean squares); alone: the same without outliers beside it.",
)


def survey(
    source: str,
    formats: Sequence[str],
    patterns: Sequence[str] = (),
    rules: Rules | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Survey:
    """The errors of a checkpoint's matrices in formats ("nf4", "int4:group=32").

    `patterns` picks tensors by name; without, `rules` says which are worth quantizing. `inputs` has arrays
    [..., features] by module; what formats do to those layers' outputs is measured too.

    Raises:
        InputError: the checkpoint cannot be read, or has none of the tensors.
        UnknownNameError: no quantizer has the name of a format.
    """
    quantizers = {name: parse(name) for name in formats}
    weights = open_weights(source)
    tensors, matrices = read_stored(weights, read_config(weights.folder))
    chosen = [t for t in tensors if _is_chosen(t, patterns, rules or Rules())]
    if not chosen:
        raise InputError("has no such matrix", where=source, hint="Name tensors with --tensors PATTERN.")
    given = inputs or {}
    unknown = sorted(set(given) - {tensor.name.removesuffix(".weight") for tensor in tensors})
    if unknown:
        raise UsageError(f"the checkpoint has no {unknown[0]}.weight", where="--inputs", hint="Give modules' names.")
    rows: dict[str, list[Row]] = {name: [] for name in formats}
    for tensor in chosen:
        if progress is not None:
            progress(tensor.name)
        values = _values(weights, tensor, matrices.get(tensor.name))
        into = given.get(tensor.name.removesuffix(".weight"))
        for name, quantizer in quantizers.items():
            rows[name].append(_measured(quantizer, tensor, values, into))
    return Survey(source, {name: tuple(found) for name, found in rows.items()})


def _is_chosen(tensor: StoredTensor, patterns: Sequence[str], rules: Rules) -> bool:
    if patterns:
        return len(tensor.shape) >= 1 and any(fnmatchcase(tensor.name, pattern) for pattern in patterns)
    return rules.kept(tensor) is None


def _values(weights: Any, tensor: StoredTensor, matrix: Any) -> Any:
    if matrix is not None:
        return np.concatenate(list(matrix.slabs(weights, max(tensor.num_bytes, 1)))).reshape(tensor.shape)
    ggml = {"NVFP4": "nvfp4_ggml"}.get(tensor.dtype, tensor.dtype.lower())
    if ggml in TYPES:
        quantizer = Ggml(ggml)
        part = quantizer.layout(tensor.shape)["blocks"]
        blocks = np.frombuffer(weights.read(tensor, 0, tensor.num_bytes), np.uint8).reshape(part.shape)
        return quantizer.dequantize(Packed({"blocks": blocks}, tensor.shape, dtypes.FLOAT32))
    kind = numpy_dtype(dtypes.get(tensor.dtype))
    return np.frombuffer(weights.read(tensor, 0, tensor.num_bytes), kind).reshape(tensor.shape)


def _measured(quantizer: Quantizer, tensor: StoredTensor, values: Any, inputs: Any) -> Row:
    try:
        num_bytes = quantizer.num_bytes(tensor.shape)
        errors = measure(quantizer, values)
    except InputError as error:
        return Row(tensor.name, tensor.shape, refused=error.what)
    of_output = None if inputs is None else output(quantizer, values, inputs)
    return Row(tensor.name, tensor.shape, num_bytes, errors, output=of_output)


def _row(row: Row) -> dict[str, Any]:
    return {
        "tensor": row.tensor,
        "layer": row.layer,
        "shape": list(row.shape),
        "bytes": row.num_bytes,
        "errors": row.errors.as_dict() if row.errors else None,
        "output": row.output.as_dict() if row.output else None,
        "refused": row.refused or None,
    }


def named(rows: Sequence[Row]) -> list[tuple[str, Errors]]:
    """The errors of the tensors that a format can store, by name."""
    return [(row.tensor, row.errors) for row in rows if row.errors is not None]


def cells(errors: Errors) -> tuple[str, ...]:
    """What a table shows of errors."""
    decibels = f"{errors.sqnr:.2f} dB"
    parts = (errors.rest, errors.rest_without_outliers)
    return (
        _percent(errors.relative_rmse),
        decibels,
        f"{errors.cosine:.6f}",
        f"{errors.largest:.3g}",
        *map(_percent, parts),
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3f} %"
