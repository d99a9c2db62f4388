"""What a checkpoint holds: how its matrices are stored, what they take, whether its bytes are those that were written.

Needs no numpy, and no config that anybody has described.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weigh.errors import InputError
from weigh.quant.checkpoint.plan import LARGEST_COPY, MANIFEST, read_config
from weigh.quant.checkpoint.stored import Matrix, read
from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, exactly, table
from weigh.sources.weights import open_weights
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.weights import Weights

PIECE = 16 << 20


@dataclass(frozen=True)
class Kind:
    """Tensors that are stored alike."""

    tensors: int
    elements: int
    num_bytes: int
    """Scales and tables included."""

    @property
    def bits(self) -> float:
        """Of each element."""
        return 8 * self.num_bytes / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Inspection:
    """A checkpoint."""

    name: str
    weights: Weights
    tensors: tuple[StoredTensor, ...]
    """What it stands for."""
    matrices: Mapping[str, Matrix]
    """Those that are stored quantized."""
    manifest: Mapping[str, Any] | None
    """What weigh wrote beside it."""
    damaged: tuple[str, ...] | None = None
    """Tensors whose bytes are not those of the manifest; None where nobody looked."""

    def kinds(self) -> dict[str, Kind]:
        """What is stored how."""
        stored = self.weights.checkpoint.tensors
        found: dict[str, Kind] = {}
        counted = 0
        for t in self.tensors:
            matrix = self.matrices.get(t.name)
            size = stored[t.name].num_bytes if matrix is None else matrix.num_bytes
            key = t.dtype if matrix is None else matrix.title
            before = found.get(key, Kind(0, 0, 0))
            found[key] = Kind(before.tensors + 1, before.elements + t.num_elements, before.num_bytes + size)
            counted += size
        if rest := self.weights.checkpoint.num_bytes - counted:
            found["tables and texts"] = Kind(0, 0, rest)
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/inspect.json`."""
        checkpoint = self.weights.checkpoint
        return {
            **header("inspect"),
            "name": self.name,
            "format": checkpoint.format,
            "files": dict(checkpoint.files),
            "bytes": checkpoint.num_bytes,
            "elements": sum(t.num_elements for t in self.tensors),
            "kinds": {
                name: {"tensors": k.tensors, "elements": k.elements, "bytes": k.num_bytes}
                for name, k in self.kinds().items()
            },
            "written_by_weigh": None if self.manifest is None else self.manifest.get("target"),
            "damaged": None if self.damaged is None else list(self.damaged),
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "stored": self.matrices[t.name].title if t.name in self.matrices else t.dtype,
                    "bytes": self._num_bytes(t),
                }
                for t in self.tensors
            ],
        }

    def _num_bytes(self, tensor: StoredTensor) -> int:
        matrix = self.matrices.get(tensor.name)
        return self.weights.checkpoint.tensors[tensor.name].num_bytes if matrix is None else matrix.num_bytes

    def text(self, style: Style = PLAIN, tensors: bool = False) -> str:
        """For people; `tensors` lists every one."""
        checkpoint = self.weights.checkpoint
        elements = sum(t.num_elements for t in self.tensors)
        files = f"{len(checkpoint.files)} files" if len(checkpoint.files) > 1 else checkpoint.files[0][0]
        bits = 8 * checkpoint.num_bytes / elements if elements else 0
        lines = [
            f"{style.bold(self.name)}: {checkpoint.format}, {files}, {exactly(checkpoint.num_bytes)}",
            f"{len(self.tensors):,} tensors of {elements:,} elements, {bits:.4f} bits each",
            "",
        ]
        rows = [("stored as", "tensors", "elements", "bytes", "bits/element")]
        for name, kind in sorted(self.kinds().items(), key=lambda item: -item[1].num_bytes):
            bits_said = f"{kind.bits:.4f}" if kind.elements else ""
            counts = (f"{kind.tensors:,}", f"{kind.elements:,}") if kind.tensors else ("", "")
            rows.append((name, *counts, format_bytes(kind.num_bytes), bits_said))
        lines += table(rows, "<>>>>")
        if tensors:
            lines += ["", *table([self._row(t) for t in self.tensors], "<<<>")]
        if self.manifest is not None:
            lines += ["", f"Written by weigh as {self.manifest.get('target')}."]
        if self.damaged is not None:
            count = len((self.manifest or {}).get("tensors", ()))
            said = f"All {count:,} stored tensors have the bytes that were written."
            if self.damaged:
                said = f"{len(self.damaged)} of {count:,} stored tensors are damaged: {', '.join(self.damaged[:4])}"
            lines.append(style.good(said, not self.damaged))
        return "\n".join(lines)

    def _row(self, tensor: StoredTensor) -> tuple[str, str, str, str]:
        matrix = self.matrices.get(tensor.name)
        kind = tensor.dtype if matrix is None else matrix.title
        return tensor.name, str(list(tensor.shape)), kind, f"{self._num_bytes(tensor):,}"


def inspect(name: str, verify: bool = False) -> Inspection:
    """What a checkpoint holds; `verify` reads all of it and compares hashes.

    Raises:
        InputError: it cannot be read, contradicts itself, or has no manifest to be verified by.
    """
    weights = open_weights(name)
    tensors, matrices = read(weights, read_config(weights.folder))
    manifest = None
    if MANIFEST in weights.folder.names():
        file = weights.folder.open(MANIFEST)
        try:
            manifest = json.loads(file.read(0, min(file.size, LARGEST_COPY)))
            known = {key: str(entry["sha256"]) for key, entry in manifest["tensors"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError("is no manifest of weigh", where=file.where, hint="It is damaged.") from None
    if not verify:
        return Inspection(name, weights, tensors, matrices, manifest)
    if manifest is None:
        raise InputError(f"has no {MANIFEST}", where=name, hint="Only what weigh wrote can be verified.")
    return Inspection(name, weights, tensors, matrices, manifest, tuple(_damaged(weights, known)))


def _damaged(weights: Weights, known: Mapping[str, str]) -> list[str]:
    from hashlib import sha256

    wrong = [name for name in known if name not in weights.checkpoint.tensors]
    for tensor in weights.checkpoint.tensors.values():
        found = sha256()
        for start in range(0, tensor.num_bytes, PIECE):
            found.update(weights.read(tensor, start, min(PIECE, tensor.num_bytes - start)))
        if known.get(tensor.name) != found.hexdigest():
            wrong.append(tensor.name)
    return wrong
