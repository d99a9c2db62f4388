"""Rules about activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.ghost import nn
from weigh.report.parts import LOSS, RESIDUAL
from weigh.rules.exact import SCORES
from weigh.rules.rule import Rule, Term

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.rules.job import Job

_ARTICLES = "articles on the memory of training a GPT"
_LAYERS = (nn.EMBEDDING, nn.ATTENTION, nn.MIXER, nn.MLP, nn.NORM, nn.ROTARY, RESIDUAL)
_LOGITS = (nn.HEAD, LOSS)
_FORMER = "no dropout, GELU or gated layers and fused attention change what is kept"
_BLIND = ("autocast", "fused", "gated", "experts", "no dropout", "precision", "grouped", "latent")
_WHOLE: dict[str, Any] = {"checkpointing": None}


def _article(name: str, coefficient: int, heads: bool, says: str, valid: str, peak: bool = False) -> Rule:
    scores = "4*B*a*S^2" if heads else "4*B*S*S"
    return Rule(
        name,
        says,
        f"L*({coefficient}*E + {scores}) + {10 if peak else 6}*B*S*V",
        _ARTICLES,
        valid,
        "activations_at_peak" if peak else "activations",
        (
            Term("layers", lambda job: job.L * coefficient * job.E, _LAYERS),
            Term("attention scores", lambda job: job.L * 4 * job.B * (job.a if heads else 1) * job.S**2, (SCORES,)),
            Term("logits", lambda job: (10 if peak else 6) * job.B * job.S * job.V, _LOGITS),
        ),
        _BLIND,
        settings=_WHOLE,
    )


def _korthikanti(
    name: str,
    says: str,
    formula: str,
    whole: tuple[int, int, int],
    shared: tuple[int, int, int],
    scores: tuple[int, int] = (0, 5),
    unless: Callable[[Job], str | None] = lambda job: None,
    settings: dict[str, Any] = _WHOLE,
) -> Rule:
    """Bytes an element of attention, mlp and norms (and of scores): on every device, and shared by t of them."""

    def layers(number: int) -> Callable[[Job], float]:
        return lambda job: job.L * job.E * (whole[number] + shared[number] / job.t)

    return Rule(
        name,
        says,
        f"L * {formula}",
        "Korthikanti et al. 2022, arXiv:2205.05198, table 2",
        "16 bit, f = 4*d, GELU, dropout, as many key-value heads as heads; neither embeddings nor logits",
        "activations_of_layers",
        (
            Term("attention", layers(0), (nn.ATTENTION, nn.ROTARY)),
            Term(
                "attention scores",
                lambda job: job.L * job.B * job.a * job.S**2 * (scores[0] + scores[1] / job.t),
                (SCORES,),
            ),
            Term("mlp", layers(1), (nn.MLP,)),
            Term("norms and what they read", layers(2), (nn.NORM, RESIDUAL)),
        ),
        _BLIND,
        unless,
        settings,
    )


def _not_shared(job: Job) -> str | None:
    return "each layer is on one device: give --tensor" if job.t == 1 else None


def _no_sequence_parallelism(job: Job) -> str | None:
    if job.recipe.sequence_parallel:
        return None
    return _not_shared(job) or "this job does not share the sequence as well: --runtime megatron --sequence-parallel"


def _keeps_scores(job: Job) -> str | None:
    unfused = job.recipe.local_layers or job.recipe.attention == "eager"
    if unfused and job.recipe.checkpointing != "selective":
        return "attention keeps its scores: give --runtime megatron --checkpointing selective, or fused attention"
    return None if job.t == 1 else _no_sequence_parallelism(job)


RULES = (
    _article("activations-14E", 14, False, "activations", f"as printed: the number of heads is missing; {_FORMER}"),
    _article(
        "activations-24E",
        24,
        False,
        "activations",
        "what the article's own list adds up to: 4 + 4 for norms, "
        "2 + 2 for attention, 2 + 8 + 2 for the feed-forward layer",
    ),
    _article("activations-24E-heads", 24, True, "activations", "the same with the scores of every head"),
    _article(
        "activations-peak",
        14,
        False,
        "activations, and the gradient of the logits",
        "as printed, with 4*B*S*V for the gradient of the logits in 32 bit",
        peak=True,
    ),
    _korthikanti("korthikanti", "activations of the layers", "B*S*d*(34 + 5*a*S/d)", (11, 19, 4), (0, 0, 0), (5, 0)),
    _korthikanti(
        "korthikanti-tp",
        "the same, tensor parallel",
        "B*S*d*(10 + 24/t + 5*a*S/(d*t))",
        (3, 3, 4),
        (8, 16, 0),
        unless=_not_shared,
    ),
    _korthikanti(
        "korthikanti-sp",
        "the same, sequence parallel too",
        "B*S*d/t*(34 + 5*a*S/d)",
        (0, 0, 0),
        (11, 19, 4),
        unless=_no_sequence_parallelism,
    ),
    _korthikanti(
        "korthikanti-selective",
        "attention recomputed, or fused",
        "B*S*d*34/t",
        (0, 0, 0),
        (11, 19, 4),
        scores=(0, 0),
        unless=_keeps_scores,
        settings={},
    ),
    _korthikanti(
        "korthikanti-full",
        "every layer recomputed",
        "B*S*d*2",
        (0, 0, 2),
        (0, 0, 0),
        scores=(0, 0),
        settings={"checkpointing": "full"},
    ),
)
"""In the order in which they are shown."""
