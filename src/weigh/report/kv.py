"""What sequences leave in the cache: bytes a token, by kind of layer, states of constant size, and the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.models.layout import CHUNKED, CROSS, LATENT, NOTHING, SLIDING
from weigh.recipes.keeping import CAPPED, COMPRESSED, heads_of_rank, key_value_dtypes
from weigh.records import dataclass
from weigh.report.assumption import EXACT
from weigh.report.explain import explain_assumptions
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, exactly, table, wrap
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.recipes.keeping import Keeping, Kept
    from weigh.report.assumption import Assumption
    from weigh.sources.source import Source


@dataclass(frozen=True, slots=True, eq=False)
class LayerRow:
    """Layers that keep alike."""

    kept: Kept
    """What each of them holds of one sequence."""
    indices: tuple[int, ...]
    """Which they are; an encoder-decoder's cross attentions are numbered after its other layers."""

    @property
    def num_bytes(self) -> int:
        """Of one sequence, in all of them."""
        return self.kept.num_bytes * len(self.indices)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KvReport:
    """The cache of a model, weighed."""

    source: Source
    """Which model."""
    dtype: DType
    """The model's."""
    how: Keeping
    """How the cache is kept."""
    kept: tuple[Kept, ...]
    """What every layer holds of one sequence, on one rank."""
    assumptions: tuple[Assumption, ...]
    """What was taken for granted."""

    @property
    def num_bytes(self) -> int:
        """Of all sequences, on one rank."""
        return self.how.concurrency * self.bytes_per_sequence

    @property
    def bytes_per_sequence(self) -> int:
        """Of one sequence, states included."""
        return sum(kept.num_bytes for kept in self.kept)

    @property
    def state_bytes(self) -> int:
        """Of one sequence, what does not depend on its tokens."""
        return sum(kept.state_bytes for kept in self.kept)

    @property
    def bytes_per_token(self) -> int:
        """What one more token of context adds to a sequence; full windows no longer grow."""
        return sum(kept.bytes_per_token for kept in self.kept if kept.grows)

    def rows(self) -> list[LayerRow]:
        """Layers that keep alike, in order of their first."""
        found: dict[Kept, list[int]] = {}
        for index, kept in enumerate(self.kept):
            found.setdefault(kept, []).append(index)
        return [LayerRow(kept, tuple(indices)) for kept, indices in found.items()]

    def policy(self) -> list[str]:
        """What was decided that another engine may decide otherwise, a sentence each."""
        layers = [kept.layer for kept in self.kept]
        kinds = {layer.kind for layer in layers}
        key, value = self._key_value
        found = [f"keys and values in {key}" if key is value else f"keys in {key}, values in {value}"]
        if kinds & {SLIDING, CHUNKED}:
            capped = self.how.windows == CAPPED
            found.append("windows are capped" if capped else "windows reserve room for the whole context")
        if any(layer.latent_width for layer in layers):
            compressed = self.how.latent == COMPRESSED
            found.append(
                "latent attention keeps its compressed vector"
                if compressed
                else "latent attention keeps the keys and values of every head"
            )
        if any(layer.repeats > 1 for layer in layers):
            once = self.how.latent == COMPRESSED
            found.append("shared heads are kept once" if once else "shared heads are kept for every query head")
        if any(layer.kind == NOTHING and not layer.states for layer in layers):
            found.append("layers without keys of their own, or with another layer's, keep nothing")
        if CROSS in kinds:
            found.append("cross attention keeps what the encoder has read, once")
        copies = max((kept.copies for kept in self.kept), default=1)
        if self.how.tensor > 1:
            shared = f"each key-value head is on {copies} of {self.how.tensor} ranks" if copies > 1 else "no copies"
            found.append(f"heads are split over {self.how.tensor} ranks, {shared}")
        return found

    @property
    def _key_value(self) -> tuple[DType, DType]:
        return key_value_dtypes(self.how.kv_dtype, self.dtype)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/kv.json`."""
        return {
            **header("kv", self.source, self.dtype),
            "settings": {
                "context": self.how.context,
                "concurrency": self.how.concurrency,
                "key_dtype": self._key_value[0].name,
                "value_dtype": self._key_value[1].name,
                "tensor": self.how.tensor,
                "windows": self.how.windows,
                "latent": self.how.latent,
                "encoder": self.how.encoder,
            },
            "kv": {
                "bytes": self.num_bytes,
                "bytes_per_sequence": self.bytes_per_sequence,
                "bytes_per_token": self.bytes_per_token,
                "state_bytes_per_sequence": self.state_bytes,
                "basis": EXACT,
                "layers": [
                    {
                        "kind": row.kept.layer.kind,
                        "indices": list(row.indices),
                        "heads": row.kept.layer.heads,
                        "key_width": row.kept.layer.key_width,
                        "value_width": row.kept.layer.value_width,
                        "latent_width": row.kept.layer.latent_width,
                        "index_width": row.kept.layer.index_width,
                        "window": row.kept.layer.window,
                        "tokens": row.kept.tokens,
                        "bytes_per_token": row.kept.bytes_per_token,
                        "state_bytes": row.kept.state_bytes,
                        "copies": row.kept.copies,
                        "bytes": row.num_bytes,
                    }
                    for row in self.rows()
                ],
            },
            "policy": self.policy(),
            "assumptions": [a.as_dict() for a in self.assumptions],
        }

    def text(self, style: Style = PLAIN, explain: bool = False) -> str:
        """For a terminal."""
        how = self.how
        rank = " on each rank" if how.tensor > 1 else ""
        sequences = "a sequence" if how.concurrency == 1 else f"{how.concurrency} sequences"
        lines = [
            style.bold(f"{self.source.name} keeps {exactly(self.num_bytes)}{rank}"),
            *wrap(f"{sequences} of {how.context:,} tokens · {'; '.join(self.policy())}", style.width),
            "",
        ]
        heading = ("layers", "", "tokens", "bytes a token", "state", "a sequence")
        lines += table([heading, *(self._row(row) for row in self.rows())], "><>>>>")
        lines += ["", f"  a token more    {self.bytes_per_token:,} bytes a sequence"]
        lines += [f"  a sequence more {exactly(self.bytes_per_sequence)}"]
        if explain:
            lines += ["", *self._working(style)]
        elif self.assumptions:
            taken = "; ".join(a.what for a in self.assumptions)
            lines += ["", *(style.dim(line) for line in wrap(f"Assumed (--explain says why): {taken}.", style.width))]
        return "\n".join(lines)

    def _row(self, row: LayerRow) -> tuple[str, ...]:
        kept = row.kept
        kind = kept.layer.kind if kept.layer.window is None else f"{kept.layer.kind} {kept.layer.window:,}"
        state = format_bytes(kept.state_bytes) if kept.state_bytes else ""
        each = f"{kept.bytes_per_token:,}" if kept.bytes_per_token else ""
        tokens = f"{kept.tokens:,}" if kept.bytes_per_token else ""
        return f"{len(row.indices)}", kind, tokens, each, state, format_bytes(row.num_bytes)

    def _working(self, style: Style) -> list[str]:
        lines = [style.bold("How the number comes about")]
        for row in self.rows():
            lines += wrap(f"{_numbers(row.indices)}: {self._formula(row)}", style.width, "  ")
        return [*lines, *explain_assumptions(self.assumptions, style)]

    def _formula(self, row: LayerRow) -> str:
        kept, layer = row.kept, row.kept.layer
        key, value = self._key_value
        said = []
        if kept.bytes_per_token:
            if layer.kind == LATENT and layer.latent_width and self.how.latent == COMPRESSED:
                width = f"{layer.latent_width} in {key.name}"
            else:
                repeats = 1 if self.how.latent == COMPRESSED else layer.repeats
                heads = heads_of_rank(layer.heads, self.how.tensor) * repeats
                numbers = f"{layer.key_width} in {key.name} + {layer.value_width} in {value.name}"
                width = f"{heads} {'head' if heads == 1 else 'heads'} x ({numbers})"
            index = f" + index {layer.index_width} in {key.name}" if layer.index_width else ""
            said.append(f"{kept.tokens:,} tokens x ({width}{index} = {kept.bytes_per_token:,} bytes)")
        for state in layer.states:
            shape = " x ".join(map(str, state.shape))
            ranks = f" / {self.how.tensor}" if self.how.tensor > 1 else ""
            said.append(f"{state.name} {shape} in {(state.dtype or self.dtype).name}{ranks}")
        return f"{layer.kind}: {' + '.join(said)}" if said else layer.kind

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.source.name}: {format_bytes(self.num_bytes)} of KV cache>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text())


def _numbers(indices: tuple[int, ...]) -> str:
    """Which layers, in few words.

    >>> _numbers((0,)), _numbers((0, 1, 2)), _numbers((5, 11, 17)), _numbers((0, 1, 4))
    ('layer 0', 'layers 0 to 2', 'layers 5, 11 to 17', 'layers 0, 1, 4')
    """
    if len(indices) == 1:
        return f"layer {indices[0]}"
    first, step, last = indices[0], indices[1] - indices[0], indices[-1]
    if indices == tuple(range(first, last + 1, step)) and len(indices) > 2:
        return f"layers {first} to {last}" if step == 1 else f"layers {first}, {first + step} to {last}"
    if len(indices) <= 6:
        return f"layers {', '.join(map(str, indices))}"
    return f"layers {', '.join(map(str, indices[:5]))} and {len(indices) - 5} more"
