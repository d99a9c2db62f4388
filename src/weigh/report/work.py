"""The arithmetic of a run: floating-point operations by phase, repeated blocks counted as often as they stand."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weigh.trace.events import Trace


def flops_by_phase(trace: Trace, round: int | None = None) -> dict[str, int]:
    """Floating-point operations of every phase of one round (None: all); a multiplication and an addition are two."""
    times = {repeat.second: 1 + repeat.extra for repeat in trace.repeats}
    starts = [mark.event for mark in trace.marks]
    totals: dict[str, int] = {}
    for call in trace.calls:
        mark = trace.marks[bisect_right(starts, call.event) - 1]
        if round is None or mark.round == round:
            count = times.get(call.unit, 1) if call.unit is not None else 1
            assert isinstance(call.flops, int)
            totals[mark.phase] = totals.get(mark.phase, 0) + call.flops * count
    return {phase: total for phase, total in totals.items() if total}


def format_flops(flops: int) -> str:
    """For people, with four significant digits.

    >>> format_flops(2_610_000_000_000), format_flops(999)
    ('2.610 TFLOP', '999 FLOP')
    """
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if flops >= 10**exponent:
            scaled = flops / 10**exponent
            places = 3 if scaled < 10 else 2 if scaled < 100 else 1
            return f"{scaled:.{places}f} {prefix}FLOP"
    return f"{flops} FLOP"
