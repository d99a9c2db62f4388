"""What a rule is: a sum of terms, each with the parts of the exact answer that it means to cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.records import dataclass, field

if TYPE_CHECKING:
    from weigh.rules.job import Job

REST = "*"
"""Covers every part of the exact answer that no other term of the rule covers."""
PARAMETERS, BYTES, FLOP = "parameters", "bytes", "FLOP"
"""What rules and exact answers are counted in."""


class Term(NamedTuple):
    """One summand of a rule."""

    name: str
    """What it stands for."""
    amount: Callable[[Job], float]
    """Its value for a job, in the unit of the rule's quantity."""
    covers: tuple[str, ...] = ()
    """The parts of the exact answer that it is meant for; `REST` is all that other terms do not cover."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One published rule of thumb."""

    name: str
    """Its key."""
    says: str
    """What it answers, in a line."""
    formula: str
    """As it is written, in the letters of `weigh.rules.job`."""
    source: str
    """Who publishes it."""
    valid: str
    """What it holds for, as its authors say or as follows from its terms."""
    quantity: str
    """Which exact answer it should equal: a method of `weigh.rules.exact.Exact`."""
    terms: tuple[Term, ...]
    """Its summands."""
    blind: tuple[str, ...] = ()
    """What a model or a job may have that the formula does not know (keys of `weigh.rules.job.TRAITS`)."""
    unless: Callable[[Job], str | None] = field(default=lambda job: None)
    """Why it says nothing about a job, or None where it does."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the training that the rule presupposes, whatever the job says."""

    def terms_of(self, job: Job) -> dict[str, int]:
        """The value of each term for a job, rounded to whole units."""
        return {term.name: round(term.amount(job)) for term in self.terms}

    def answer(self, job: Job) -> int:
        """The rule's answer for a job."""
        return sum(self.terms_of(job).values())
