"""What the weights take as they are stored: in which formats, how many bytes, how many bits a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weigh.formats.header import differences, stored_tensors
from weigh.formats.prediction import predict
from weigh.report.assumption import EXACT
from weigh.report.text import share, table, wrap
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.dtypes import DType
    from weigh.formats.base import Format, Stored
    from weigh.ghost.nn import Module
    from weigh.sources.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeights:
    """The tensors of a checkpoint."""

    tensors: tuple[Stored, ...]
    """Alike ones together where they were predicted."""
    title: str | None
    """The method of quantization, in a few words; None without one."""
    basis: str
    """Where they are from: "header", or "quantization_config"."""
    differences: tuple[str, ...] = ()
    """How the header differs from what the config implies."""

    @classmethod
    def predicted(cls, model: Module, form: Format, dtype: DType) -> StoredWeights:
        """As a method stores the weights of a model."""
        return cls(predict(model, form, dtype), form.title, "quantization_config")

    @classmethod
    def read(
        cls,
        checkpoint: Checkpoint,
        form: Format | None,
        expected: Mapping[str, int],
        tied: tuple[str, ...],
        layers: int,
    ) -> StoredWeights:
        """As a header says, beside the parameters that the config implies, by name."""
        tensors = stored_tensors(checkpoint, form)
        title = None if form is None else form.title
        return cls(tensors, title, "header", differences(tensors, expected, tied, layers))

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(t.num_bytes * t.count for t in self.tensors)

    @property
    def parameters(self) -> int:
        """How many parameters they stand for."""
        return sum(t.parameters * t.count for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bytes for each parameter, scales and what stays as it is included."""
        return 8 * self.num_bytes / self.parameters

    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """Bytes, and the parameters that they stand for, by the format of the tensors; the largest first."""
        found: dict[str, tuple[int, int]] = {}
        for t in self.tensors:
            num_bytes, parameters = found.get(t.dtype.name, (0, 0))
            found[t.dtype.name] = num_bytes + t.num_bytes * t.count, parameters + t.parameters * t.count
        return dict(sorted(found.items(), key=lambda item: -item[1][0]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the `stored` of `docs/schema/params.json`."""
        return {
            "from": self.basis,
            "method": self.title,
            "bytes": self.num_bytes,
            "parameters": self.parameters,
            "tensors": sum(t.count for t in self.tensors),
            "bits_per_weight": self.bits_per_weight,
            "basis": EXACT,
            "by_dtype": {
                name: {"bytes": num_bytes, "parameters": parameters}
                for name, (num_bytes, parameters) in self.by_dtype().items()
            },
            "differences": list(self.differences),
        }

    def lines(self, width: int) -> list[str]:
        """For a terminal."""
        where = "as the header says" if self.basis == "header" else "as the quantization_config implies"
        method = "" if self.title is None else f"{self.title}, "
        bits = f"{self.bits_per_weight:.3f} bits a weight"
        lines = wrap(
            f"Stored: {format_bytes(self.num_bytes)} ({self.num_bytes:,} bytes), {bits}; {method}{where}", width
        )
        rows = [
            (name, format_bytes(num_bytes), share(num_bytes, self.num_bytes), f"{parameters:,} parameters")
            for name, (num_bytes, parameters) in self.by_dtype().items()
        ]
        lines += table(rows, "<>>>")
        for difference in self.differences:
            lines += wrap(f"the checkpoint {difference}", width, "  ")
        return lines
