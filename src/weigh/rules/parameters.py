"""Rules that count parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.ghost import nn
from weigh.report.parts import RESIDUAL
from weigh.rules.exact import BIASES, POSITIONS, TOKENS
from weigh.rules.rule import REST, Rule, Term

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.rules.job import Job

_ARTICLES = "articles on the parameters of Transformers, after Vaswani et al. 2017, arXiv:1706.03762"
_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, table 1"
_DENSE = "a GPT-2 with as many key-value heads as heads, and a feed-forward layer of two matrices with biases"


def attention(job: Job) -> int:
    """The four matrices of attention in one layer, as articles count them."""
    return 4 * job.d**2


def feed_forward(job: Job) -> int:
    """The two matrices of a feed-forward layer and their biases.

    >>> from weigh.rules.job import Job
    >>> feed_forward(Job("gpt2"))
    4722432
    """
    return 2 * job.d * job.f + job.d + job.f


def norms(job: Job) -> int:
    """The two norms of a layer, each with a scale and a bias."""
    return 2 * 2 * job.d


def block(job: Job) -> int:
    """A layer.

    >>> from weigh.rules.job import Job
    >>> block(Job("gpt2"))
    7084800
    """
    return attention(job) + feed_forward(job) + norms(job)


def _outside_of_embeddings(*, layers: bool, output: bool = False) -> tuple[Term, ...]:
    times = (lambda job: job.L) if layers else (lambda job: 1)
    found = (
        Term("attention", lambda job: times(job) * attention(job), (nn.ATTENTION, BIASES[nn.ATTENTION])),
        Term("feed-forward", lambda job: times(job) * feed_forward(job), (nn.MLP, BIASES[nn.MLP])),
        Term("norms", lambda job: times(job) * norms(job), (nn.NORM,)),
    )
    return (*found, Term("output", lambda job: job.V * job.d, (nn.HEAD,))) if output else found


def _alone(job: Job) -> str | None:
    return None if any(job.encoder_and_decoder) else "the model has no encoder beside a decoder"


def _layers(in_encoder: int, in_decoder: int) -> Callable[[Job], int]:
    """How often something stands in all layers together."""
    return lambda job: in_encoder * job.encoder_and_decoder[0] + in_decoder * job.encoder_and_decoder[1]


_MATRICES = (nn.MLP, BIASES[nn.MLP], RESIDUAL)
"""BART and its relatives have the feed-forward layers in their blocks, without a module for both."""
_ATTENTIONS, _FEED_FORWARDS, _NORMS = _layers(1, 2), _layers(1, 1), _layers(2, 3)

RULES = (
    Rule(
        "embedding",
        "parameters of the embedding",
        "V*d",
        _ARTICLES,
        "the embedding of tokens; positions are not counted",
        "parameters_of_embedding",
        (Term("tokens", lambda job: job.V * job.d, (TOKENS,)),),
        ("positions",),
    ),
    Rule(
        "attention",
        "parameters of attention in all layers",
        "L * 4*d^2",
        _ARTICLES,
        "as many key-value heads as heads, heads that together are as wide as the model; biases are not counted",
        "parameters_of_attention",
        (Term("matrices", lambda job: job.L * attention(job), (nn.ATTENTION,)),),
        ("grouped", "latent"),
    ),
    Rule(
        "feed-forward",
        "parameters of the feed-forward layers",
        "L * (2*d*f + d + f)",
        _ARTICLES,
        "two matrices with biases",
        "parameters_of_feed_forward",
        (
            Term("matrices", lambda job: job.L * 2 * job.d * job.f, (nn.MLP,)),
            Term("biases", lambda job: job.L * (job.d + job.f), (BIASES[nn.MLP],)),
        ),
        ("gated", "experts", "no biases"),
    ),
    Rule(
        "norms",
        "parameters of the norms in all layers",
        "L * 2 * 2*d",
        _ARTICLES,
        "two norms a layer, each with a scale and a bias; the last norm is not counted",
        "parameters_of_norms",
        (Term("norms", lambda job: job.L * norms(job), (nn.NORM,)),),
        ("no biases",),
    ),
    Rule(
        "layer",
        "parameters of one layer",
        "4*d^2 + 2*d*f + d + f + 4*d",
        _ARTICLES,
        f"{_DENSE}; attention's biases are not counted",
        "parameters_of_layer",
        _outside_of_embeddings(layers=False),
        ("grouped", "latent", "gated", "experts", "no biases"),
    ),
    Rule(
        "total",
        "parameters of the model",
        "V*d + L * (4*d^2 + 2*d*f + d + f + 4*d) + V*d",
        _ARTICLES,
        f"{_DENSE}, with an output layer of its own; no positions, no biases of attention, no last norm",
        "parameters",
        (
            Term("embedding", lambda job: job.V * job.d, (TOKENS, POSITIONS)),
            *_outside_of_embeddings(layers=True, output=True),
        ),
        ("positions", "tied", "grouped", "latent", "gated", "experts", "no biases"),
    ),
    Rule(
        "12Ld2",
        "parameters outside of embeddings",
        "12*L*d^2",
        _KAPLAN,
        "f = 4*d, as many key-value heads as heads; neither embeddings nor biases nor norms",
        "parameters_without_embeddings",
        (
            Term("attention", lambda job: 4 * job.L * job.d**2, (nn.ATTENTION,)),
            Term("feed-forward", lambda job: 8 * job.L * job.d**2, (nn.MLP,)),
            Term("biases and norms", lambda job: 0, (REST,)),
        ),
        ("grouped", "latent", "gated", "experts"),
    ),
    Rule(
        "transformer-2017",
        "parameters of an encoder and a decoder",
        "V*d + Le*(4*d^2 + F + 4*d) + Ld*(8*d^2 + F + 6*d), F = 2*d*f + d + f",
        "Vaswani et al. 2017, arXiv:1706.03762, table 3: 65 million (L 6, d 512, f 2048) and 213 million (1024, 4096)",
        "Le layers of an encoder and Ld of a decoder, one embedding for both and for the output, attention without "
        "biases; of a vocabulary of 37,000 it gives 63,045,632 and 214,171,648",
        "parameters",
        (
            Term("embedding", lambda job: job.V * job.d, (TOKENS,)),
            Term("attention", lambda job: 4 * job.d**2 * _ATTENTIONS(job), (nn.ATTENTION, BIASES[nn.ATTENTION])),
            Term("feed-forward", lambda job: feed_forward(job) * _FEED_FORWARDS(job), _MATRICES),
            Term("norms", lambda job: 2 * job.d * _NORMS(job), (nn.NORM,)),
        ),
        ("positions", "untied", "gated"),
        _alone,
    ),
)
