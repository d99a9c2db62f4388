"""The one family of errors that `weigh` raises for its users' mistakes and for its own limits.

Every error says what is wrong, where, and what to do next, and carries the exit code of the command line. Bugs of
`weigh` itself stay ordinary Python exceptions. This module imports nothing, so every other module may use it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for typing's; importing typing would cost more than this module
if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN = 12  # known names listed in a message that has no suggestion


class WeighError(Exception):
    """Something that the user can mend, or that `weigh` cannot answer.

    >>> print(WeighError("not a number", where="config.json: hidden_size", hint="Write a whole number."))
    config.json: hidden_size: not a number. Write a whole number.
    """

    exit_code: int = 3
    """What the command line exits with: 2 for wrong usage, 3 for input that cannot be used."""

    what: str
    """The problem, without a full stop."""
    where: str | None
    """The file, key or option that has the problem."""
    hint: str | None
    """What to do next, as a sentence."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what.rstrip(".")
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message}. {self.hint}" if self.hint else message


class UsageError(WeighError):
    """The question is put wrongly: an option, a unit, a combination that cannot be."""

    exit_code = 2


class InputError(WeighError):
    """An input (file, configuration, name) is missing, unreadable or contradicts itself."""


class UnknownNameError(InputError):
    """A name that no table has.

    >>> print(UnknownNameError("dtype", "bf61", ["bf16", "fp16", "fp32"]))
    unknown dtype 'bf61'. Did you mean bf16?
    """

    kind: str
    """What the name should have named: "dtype", "device", "model", ..."""
    name: str
    """The name as it was given."""
    known: tuple[str, ...]
    """Every name that would have been understood."""
    suggestions: tuple[str, ...]
    """The known names nearest to it, best first; may be empty."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        self.suggestions = suggest(name, self.known)
        super().__init__(f"unknown {kind} {name!r}", where=where, hint=_hint(kind, self.known, self.suggestions))
        self.args = (kind, name, self.known)  # what pickle calls the constructor with


class NotModelledError(WeighError):
    """Something that exists and is known, and that `weigh` does not model yet; better no number than a wrong one.

    >>> print(NotModelledError("the optimizer 'soap'"))
    the optimizer 'soap' is known but not modelled yet
    """

    thing: str
    """What is not modelled, as a noun phrase."""

    def __init__(self, thing: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.thing = thing
        super().__init__(f"{thing} is known but not modelled yet", where=where, hint=hint)
        self.args = (thing,)


def suggest(name: str, known: Iterable[str], limit: int = 4) -> tuple[str, ...]:
    """The `known` names that `name` was probably meant to be, best first, whatever their case; at most `limit`.

    Names that begin with `name` come first, then those spelled alike.

    >>> suggest("h100", ["a100-40gb", "h100-pcie", "h100-sxm"])
    ('h100-pcie', 'h100-sxm')
    >>> suggest("LAMA", ["bert", "llama"])
    ('llama',)
    """
    from difflib import get_close_matches  # imports re and collections: too slow for a path without mistakes

    wanted = name.strip().lower()
    by_lower = {k.lower(): k for k in known}
    begins = [lower for lower in by_lower if wanted and lower.startswith(wanted)]
    alike = get_close_matches(wanted, by_lower, n=limit, cutoff=0.6)
    return tuple(by_lower[lower] for lower in dict.fromkeys(begins + alike))[:limit]


def _hint(kind: str, known: tuple[str, ...], suggestions: tuple[str, ...]) -> str:
    if suggestions:
        *rest, last = suggestions
        return f"Did you mean {', '.join(rest)} or {last}?" if rest else f"Did you mean {last}?"
    if not known:
        return f"There is no {kind} to choose from."
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"Known: {', '.join(known[:_SHOWN])}{more}."


def reason(error: Exception) -> str:
    """Why a file cannot be read or written, without Python's number and the path, which the message says anyway.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.json"))
    'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error)
