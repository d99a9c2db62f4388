"""A trace as text, for people and for tests: one event a line, under the phases as headings.

    forward 0                                   at the start: 608
         +64           672  model.embed_tokens  aten::embedding  activation  [2, 2, 4] fp32

The columns are the change in bytes, the bytes live after it, and the storage: where it was made, by which op, what for,
its shape and dtype. Blocks that were not run one by one are one line; `expand` the trace to see them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from weigh.trace.events import Allocation, Span, Trace


def trace_text(trace: Trace, keep: Callable[[Allocation], bool] | None = None, limit: int | None = None) -> str:
    """The events of a trace, or those of the storages that `keep` accepts, or the first `limit` of them.

    Plain sizes only.
    """
    lines: list[str] = []
    shown = hidden = 0
    for is_event, line in _lines(trace, keep):
        if is_event and limit is not None and shown >= limit:
            hidden += 1
        elif is_event or not hidden:
            shown += is_event
            lines.append(line)
    if hidden:
        lines.append(f"... and {hidden:,} more events")
    return "\n".join(lines)


def _lines(trace: Trace, keep: Callable[[Allocation], bool] | None) -> Iterator[tuple[bool, str]]:
    level = 0
    for mark, numbers in trace.sections():
        yield False, f"{f'{mark.phase} {mark.round}':<44}at the start: {level:,}"
        for span in (trace.spans[number] for number in numbers):
            if span.unit is not None:
                net = span.count * sum(_change(trace, number) for number in range(span.start, span.stop))
                level += net
                yield False, f"{net:>+14,} {level:>17,}  {_stack(trace, span)}: {span.count} more, like the next"
                continue
            for number in range(span.start, span.stop):
                level += _change(trace, number)
                allocation = trace.allocations[abs(trace.events[number]) - 1]
                if keep is None or keep(allocation):
                    yield True, f"{_change(trace, number):>+14,} {level:>17,}  {allocation_text(allocation)}"


def _change(trace: Trace, number: int) -> int:
    event = trace.events[number]
    num_bytes = trace.allocations[abs(event) - 1].num_bytes
    if not isinstance(num_bytes, int):
        raise TypeError("a sweep has no text: run a single setting")
    return num_bytes if event > 0 else -num_bytes


def _stack(trace: Trace, span: Span) -> str:
    return next(r.path for r in trace.repeats if span.unit in (r.second, r.last))


def allocation_text(a: Allocation) -> str:
    """One storage in a line."""
    return f"{a.path or '(root)'}  {a.op}  {a.purpose}  {list(a.shape)} {a.dtype}"
