"""Several numbers in one option: "1k,8k", "1k..64k" (doubled each time), "400..8000+400" (in steps)."""

from __future__ import annotations

from weigh.errors import UsageError
from weigh.units import parse_tokens

NAMES = ("context", "concurrency")
"""Settings that a table may have several of."""

MOST = 1000
"""Numbers of one option."""


def several(*words: str | None) -> bool:
    """Whether any of them names more than one thing."""
    return any(word is not None and ("," in word or ".." in word) for word in words)


def numbers(word: str | None, where: str) -> tuple[int, ...]:
    """The numbers that a word stands for, from the smallest on; none where there is no word.

    >>> numbers("1k..8k,10000", "--context"), numbers("2..10+4", "--context")
    ((1024, 2048, 4096, 8192, 10000), (2, 6, 10))

    Raises:
        UsageError: a part is no number from 1 on, or stands for too many.
    """
    found: set[int] = set()
    for part in word.split(",") if word is not None else ():
        first, dots, rest = part.partition("..")
        last, plus, step = rest.partition("+")
        if not dots:
            found.add(_number(part, where))
            continue
        at, end = _number(first, where), _number(last, where)
        if at > end:
            raise UsageError(f"{part!r} ends before it begins", where=where, hint="Write FROM..TO.")
        add = _number(step, where) if plus else None
        while at <= end and len(found) <= MOST:
            found.add(at)
            at = at * 2 if add is None else at + add
    if len(found) > MOST:
        raise UsageError(
            f"{word!r} are more than {MOST:,} numbers", where=where, hint="Take larger steps: FROM..TO+STEP."
        )
    return tuple(sorted(found))


def _number(word: str, where: str) -> int:
    number = parse_tokens(word, where)
    if not 1 <= number < 2**40:
        raise UsageError(f"is {word}", where=where, hint="It must be at least 1, and below 2^40.")
    return number
