"""Worked examples of papers and articles, from the shapes: what `docs/errata.md` computes with.

Each function is one counting recipe as its authors describe it, for sizes instead of a model.
"""

from __future__ import annotations

from typing import NamedTuple


class Recount(NamedTuple):
    """An article's count: the embedding, so many layers, and their sum."""

    embedding: int
    layer: int
    total: int


def feed_forward(d: int, f: int) -> int:
    """Two matrices and their biases.

    >>> feed_forward(768, 3072)
    4722432
    """
    return 2 * d * f + f + d


def article_total(vocabulary: int, d: int, f: int, layers: int, mlp: int | None = None) -> Recount:
    """V*d + L * (4*d^2 + mlp + 2*2*d): no positions, no biases of attention, no last norm, no output layer.

    `mlp` is the feed-forward layer's count where an article prints another one.

    >>> article_total(50_000, 768, 3072, 12)
    Recount(embedding=38400000, layer=7084800, total=123417600)
    """
    layer = 4 * d * d + (feed_forward(d, f) if mlp is None else mlp) + 2 * 2 * d
    return Recount(vocabulary * d, layer, vocabulary * d + layers * layer)


def gpt_layer(d: int) -> int:
    """A layer of GPT-2 or GPT-3 with all its biases: 12*d^2 + 13*d.

    >>> gpt_layer(12288)
    1812099072
    """
    attention = 4 * d * d + 4 * d
    return attention + feed_forward(d, 4 * d) + 2 * 2 * d


def gpt_total(vocabulary: int, positions: int, d: int, layers: int) -> int:
    """GPT-2 or GPT-3: embeddings of tokens and positions, layers, a last norm; the output layer is the embedding.

    >>> gpt_total(50257, 1024, 768, 12)
    124439808
    """
    return (vocabulary + positions) * d + layers * gpt_layer(d) + 2 * d


def transformer_2017(d: int, f: int, layers: int = 6, vocabulary: int = 37_000) -> int:
    """The encoder and decoder of Vaswani et al. 2017 (arXiv:1706.03762, table 3): one embedding for all three uses.

    Attention without biases, as the paper writes it; two norms in a layer of the encoder, three in one of the decoder.
    The paper rounds: 65 million for the base model (d 512, f 2048), 213 million for the big one (1024, 4096), of a
    vocabulary of "about 37000".

    >>> transformer_2017(512, 2048), transformer_2017(1024, 4096)
    (63045632, 214171648)
    """
    attention, mlp, norm = 4 * d * d, feed_forward(d, f), 2 * d
    encoder = attention + mlp + 2 * norm
    decoder = 2 * attention + mlp + 3 * norm
    return vocabulary * d + layers * (encoder + decoder)


def absmax(x: float, largest: float) -> tuple[int, float]:
    """The 8-bit code of a number in a vector whose largest magnitude is `largest`, and what it comes back as.

    Rounded to the nearest code, as Dettmers et al. 2022 (arXiv:2208.07339, equation 1) do.

    >>> [(code, round(back, 6)) for code, back in (absmax(1.2, 5.4), absmax(1.2, 54.5))]
    [(28, 1.190551), (3, 1.287402)]
    """
    code = round(127 / largest * x)
    return code, code * largest / 127


def size_for_loss(ratio: float, alpha: float) -> float:
    """How many times as many parameters (tokens, FLOP) a power law of that exponent wants for `ratio` times the loss.

    L ~ N^-alpha, so N grows by ratio^(-1/alpha).

    >>> round(size_for_loss(0.9, 0.07), 2), round(size_for_loss(0.9, 0.076), 2)
    (4.5, 4.0)
    """
    return float(ratio ** (-1 / alpha))
