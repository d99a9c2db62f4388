"""Rules about arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.rules.rule import Rule, Term
from weigh.trace.events import BACKWARD, FORWARD

if TYPE_CHECKING:
    from weigh.rules.job import Job

_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, section 2.1"
_BLIND = ("experts", "untied", "tied", "positions")


def tokens(job: Job) -> int:
    """The tokens of a step."""
    return job.B * job.S * job.recipe.accumulation


def _attention(job: Job) -> int:
    """Scores and their products with the values, forward: a multiplication and an addition each, over all pairs."""
    return 4 * job.L * job.S * job.a * job.e * tokens(job)


RULES = (
    Rule(
        "6ND",
        "arithmetic of a step",
        "6*N*D (2*N*D forward, 4*N*D backward)",
        _KAPLAN,
        "every parameter multiplies every token once; neither attention's scores nor embeddings that are looked up",
        "flops",
        (
            Term(FORWARD, lambda job: 2 * job.N * tokens(job), (FORWARD,)),
            Term(BACKWARD, lambda job: 4 * job.N * tokens(job), (BACKWARD,)),
        ),
        _BLIND,
    ),
    Rule(
        "6ND-active",
        "the same of the parameters that a token is computed with",
        "6*A*D, A active parameters",
        "the usual reading for a mixture of experts, as in Fedus et al. 2021, arXiv:2101.03961",
        "experts that a token does not choose cost nothing",
        "flops",
        (
            Term(FORWARD, lambda job: 2 * job.counted.active * tokens(job), (FORWARD,)),
            Term(BACKWARD, lambda job: 4 * job.counted.active * tokens(job), (BACKWARD,)),
        ),
        ("untied", "tied", "positions"),
    ),
    Rule(
        "6ND-attention",
        "the same with attention",
        "(6*N + 12*L*a*e*S)*D",
        "Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B",
        "every pair of tokens is multiplied, also those that a causal mask hides",
        "flops",
        (
            Term(FORWARD, lambda job: 2 * job.N * tokens(job) + _attention(job), (FORWARD,)),
            Term(BACKWARD, lambda job: 4 * job.N * tokens(job) + 2 * _attention(job), (BACKWARD,)),
        ),
        _BLIND,
    ),
)
