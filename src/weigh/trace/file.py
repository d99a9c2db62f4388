"""Traces in files: JSON lines, compressed where the name ends in .gz; what is written is what is read, exactly.

The first line is a header: format and version, the version of weigh, what the writer says about the run, and how many
records of each kind follow. Then one record a line, as a list that begins with its kind:

    ["s", "text"]                                       a string; others refer to it by number, from 0
    ["a", bytes, op, path, purpose, phase, shape, dtype, unit]      an allocation
    ["e", number, number, ...]                          events, in their order, some thousands a line
    ["m", event, phase, round]                          a mark
    ["c", event, op, path, flops, read, written, unit]  a call
    ["p", start, stop, count, unit]                     a span
    ["r", path, first, second, last, period, extra]     a repeat

Leaves out: sweeps, whose sizes are not numbers.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from weigh.errors import InputError, UsageError, reason
from weigh.trace.events import Allocation, Call, Mark, Repeat, Span, Trace

FORMAT = "weigh trace"
VERSION = 1
LONGEST_LINE = 1 << 20
"""Characters; no line that `save` writes is nearly as long."""
MOST_RECORDS = 20_000_000
MOST_CHARACTERS = 1 << 30
"""A file that holds more, once decompressed, is not read."""

_EVENTS_A_LINE = 4096
_KINDS = ("strings", "allocations", "events", "marks", "calls", "spans", "repeats")


def save(trace: Trace, path: str, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a trace. `metadata` is anything JSON can hold: the model's name, its config, the recipe.

    Raises `UsageError` for a sweep's trace, and where the file cannot be written.
    """
    strings: dict[str, int] = {}
    records = list(_records(trace, strings))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "weigh": _weigh_version(),
        "metadata": dict(metadata or {}),
        "counts": dict(zip(_KINDS, _counts(trace, strings), strict=True)),
    }
    try:
        with _open(path, "wt") as file:
            for line in (header, *(["s", text] for text in strings), *records):
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
    except OSError as error:
        raise UsageError(
            f"cannot be written: {reason(error)}", where=path, hint="Name a file in a folder of yours."
        ) from None
    except TypeError:
        raise UsageError("a sweep's trace cannot be saved", where=path, hint="Run a single setting.") from None


def _counts(trace: Trace, strings: Collection[str]) -> list[int]:
    t = trace
    return [len(x) for x in (strings, t.allocations, t.events, t.marks, t.calls, t.spans, t.repeats)]


def _records(trace: Trace, strings: dict[str, int]) -> Iterator[list[Any]]:
    def s(text: str) -> int:
        return strings.setdefault(text, len(strings))

    for a in trace.allocations:
        yield ["a", a.num_bytes, s(a.op), s(a.path), s(a.purpose), s(a.phase), list(a.shape), s(a.dtype), a.unit]
    for start in range(0, len(trace.events), _EVENTS_A_LINE):
        yield ["e", *trace.events[start : start + _EVENTS_A_LINE]]
    for m in trace.marks:
        yield ["m", m.event, s(m.phase), m.round]
    for c in trace.calls:
        yield ["c", c.event, s(c.op), s(c.path), c.flops, c.bytes_read, c.bytes_written, c.unit]
    for p in trace.spans:
        yield ["p", p.start, p.stop, p.count, p.unit]
    for r in trace.repeats:
        yield ["r", s(r.path), r.first, r.second, r.last, r.period, r.extra]


def _open(path: str, mode: str) -> IO[str]:
    if not path.endswith(".gz"):
        return Path(path).open(mode, encoding="utf-8", newline="\n")
    return gzip.open(path, mode, encoding="utf-8", newline="\n")  # type: ignore[return-value]


def _weigh_version() -> str:
    from weigh import __version__

    return __version__


def load(path: str) -> tuple[Trace, dict[str, Any]]:
    """The trace in a file, and the metadata that was saved with it.

    Raises:
        InputError: the file cannot be read, is no trace, is of another version, or is damaged.
    """
    reader = _Reader(path)
    try:
        with _open(path, "rt") as file:
            return reader.read(file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {reason(error)}", where=path, hint=_HINT) from None
    except (ValueError, TypeError, IndexError, KeyError, AssertionError, RecursionError) as error:
        problem = f"is damaged ({type(error).__name__}: {error})"
        raise InputError(problem, where=f"{path}:{reader.number}", hint=_HINT) from None


def is_trace(path: str) -> bool:
    """Whether a file says of itself that it is one; nothing else of it is read."""
    try:
        with _open(path, "rt") as file:
            header = json.loads(file.readline(LONGEST_LINE))
    except (OSError, EOFError, zlib.error, ValueError):
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT


_HINT = "Give a file that `weigh` has saved as a trace."


class _Reader:
    """Reads line by line, and checks every number that refers to something."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = 0
        self.characters = 0
        self.strings: list[str] = []
        self.trace = Trace([], [], [])
        self.trace.spans = []

    def read(self, file: IO[str]) -> tuple[Trace, dict[str, Any]]:
        counts, metadata = self.header(self.line(file))
        add = {"s": self.text, "a": self.allocation, "e": self.event, "m": self.mark, "c": self.call, "p": self.span,
               "r": self.repeat}  # fmt: skip
        left = sum(counts.values())
        while left:
            kind, *values = json.loads(self.line(file))
            left -= add[kind](values)
        if file.read(1):
            raise ValueError("more lines than the header says")
        if _counts(self.trace, self.strings) != list(counts.values()):
            raise ValueError("not the counts that the header says")
        self.check()
        t = self.trace
        return Trace(t.allocations, t.events, t.marks, t.calls, t.spans, t.repeats), metadata

    def line(self, file: IO[str]) -> str:
        self.number += 1
        text = file.readline(LONGEST_LINE)
        self.characters += len(text)
        if self.characters > MOST_CHARACTERS:
            raise ValueError("it is too large")
        if not text.endswith("\n"):
            raise ValueError("the file ends too early" if len(text) < LONGEST_LINE else "a line is too long")
        return text

    def header(self, text: str) -> tuple[dict[str, int], dict[str, Any]]:
        try:
            header = json.loads(text)
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError("is no trace", where=self.path, hint=_HINT)
        if header.get("version") != VERSION:
            problem = f"is a trace of version {header.get('version')!r}, and this weigh reads version {VERSION}"
            raise InputError(problem, where=self.path, hint=f"Use weigh {header.get('weigh')}, which wrote it.")
        counts = {kind: header["counts"][kind] for kind in _KINDS}
        if any(n.__class__ is not int or not 0 <= n <= MOST_RECORDS for n in counts.values()):
            raise ValueError("counts that cannot be")
        return counts, dict(header["metadata"])

    # -- records; each returns how many it holds
    def text(self, values: list[Any]) -> int:
        (text,) = values
        if not isinstance(text, str):
            raise TypeError("a string is no string")
        self.strings.append(text)
        return 1

    def allocation(self, values: list[Any]) -> int:
        num_bytes, op, path, purpose, phase, shape, dtype, unit = values
        _whole(num_bytes, *shape, *([] if unit is None else [unit]))
        s = self.at
        self.trace.allocations.append(
            Allocation(num_bytes, s(op), s(path), s(purpose), s(phase), tuple(shape), s(dtype), unit)
        )
        return 1

    def event(self, values: list[Any]) -> int:
        count = len(self.trace.allocations)
        if not values or not all(v.__class__ is int and 0 < abs(v) <= count for v in values):
            raise ValueError("an event of no allocation")
        self.trace.events.extend(values)
        return len(values)

    def mark(self, values: list[Any]) -> int:
        event, phase, round = values
        _whole(event, round)
        self.trace.marks.append(Mark(event, self.at(phase), round))
        return 1

    def call(self, values: list[Any]) -> int:
        event, op, path, flops, read, written, unit = values
        _whole(event, flops, read, written, *([] if unit is None else [unit]))
        self.trace.calls.append(Call(event, self.at(op), self.at(path), flops, read, written, unit))
        return 1

    def span(self, values: list[Any]) -> int:
        start, stop, count, unit = values
        _whole(start, stop, count, *([] if unit is None else [unit]))
        self.trace.spans.append(Span(start, stop, count, unit))
        return 1

    def repeat(self, values: list[Any]) -> int:
        path, *numbers = values
        _whole(*numbers)
        self.trace.repeats.append(Repeat(self.at(path), *numbers))
        return 1

    def at(self, number: int) -> str:
        _whole(number)
        return self.strings[number]

    def check(self) -> None:
        """That marks, calls and spans lie within the events, and units are those of repeats."""
        t, end = self.trace, len(self.trace.events)
        places = [m.event for m in t.marks], [c.event for c in t.calls]
        if any(p != sorted(p) or (p and p[-1] > end) for p in places):
            raise ValueError("marks or calls out of order, or after the last event")
        if any(not s.start <= s.stop <= end for s in t.spans):
            raise ValueError("a span outside the events")
        if not {s.unit for s in t.spans} <= {None, *(u for r in t.repeats for u in (r.second, r.last))}:
            raise ValueError("a span of an unknown block")


def _whole(*numbers: Any) -> None:
    """Every number is a whole one, and not negative."""
    if not all(n.__class__ is int and n >= 0 for n in numbers):
        raise TypeError("not whole numbers from 0 on")
