"""Every rule, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.errors import UnknownNameError, UsageError
from weigh.rules import activations, calculators, memory, parameters, work

if TYPE_CHECKING:
    from weigh.rules.rule import Rule

RULES: dict[str, Rule] = {
    rule.name: rule
    for rules in (parameters.RULES, memory.RULES, activations.RULES, work.RULES, calculators.RULES)
    for rule in rules
}
"""Every rule by its name, in the order in which they are shown."""


def rule(name: str) -> Rule:
    """The rule of that name.

    >>> rule("12Ld2").formula
    '12*L*d^2'

    Raises:
        UsageError: there is none; near misses are suggested.
    """
    found = RULES.get(name)
    if found is None:
        error = UnknownNameError("rule", name, RULES)
        raise UsageError(error.what, where="--rule", hint=error.hint)
    return found
