"""Rules of thumb from the literature, each beside the exact answer.

A rule is a formula that people arrive with: its source, its terms, what it is valid for. `compare` puts every rule's
answer for one job beside what `weigh.api` counts, with the error and the term that makes most of it.
"""

from weigh.rules.report import RulesReport, compare
from weigh.rules.rule import Rule, Term
from weigh.rules.table import RULES, rule

__all__ = ["RULES", "Rule", "RulesReport", "Term", "compare", "rule"]
