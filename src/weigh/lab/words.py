"""How the lab's figures are written."""

from __future__ import annotations


def percent(error: float) -> str:
    """An error with four decimals: most are smaller than a hundredth of a per cent.

    >>> percent(-0.00000213), percent(0.0109), percent(-1e-9)
    ('-0.0002 %', '+1.0900 %', '+0.0000 %')
    """
    return f"{round(100 * error, 4) + 0.0:+.4f} %"


def milliseconds(seconds: float | None) -> str:
    """A step's time.

    >>> milliseconds(0.1234), milliseconds(None)
    ('123 ms', '')
    """
    return "" if seconds is None else f"{1000 * seconds:.0f} ms"
