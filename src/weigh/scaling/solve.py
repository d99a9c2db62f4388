"""What follows from a law: the price of a better loss, of over-training, and of many answers."""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

from weigh.scaling.laws import Kaplan, Law, Optimum, Parametric


class Price(NamedTuple):
    """What a change of loss costs, as factors; None where no amount of it reaches the loss."""

    loss: float
    """The loss that is wanted."""
    parameters: float | None
    """N, with the same tokens."""
    tokens: float | None
    """D, of the same model."""
    flops: float | None
    """C, both chosen best before and after."""


def price(law: Law, parameters: float, tokens: float, ratio: float) -> Price | None:
    """What `ratio` times the loss of a point costs; None for laws without a loss.

    >>> from weigh.scaling.laws import LAWS
    >>> kaplan = price(LAWS["kaplan-2020"], 1e9, 1e10, 0.9)
    >>> [round(x, 2) for x in kaplan[1:]]
    [4.0, 3.03, 8.23]
    """
    if isinstance(law, Kaplan):
        factors = [ratio ** (-1 / exponent) for exponent in (0.076, 0.095, 0.050)]
        return Price(ratio * law.loss(parameters, tokens), *factors)
    if not isinstance(law, Parametric):
        return None
    wanted = ratio * law.loss(parameters, tokens)
    more, longer = law.parameters_for(wanted, tokens), law.tokens_for(wanted, parameters)
    before, after = law.cheapest(law.loss(parameters, tokens)), law.cheapest(wanted)
    assert before is not None, "a loss of the law's own is above its floor"
    return Price(
        wanted,
        None if more is None else more / parameters,
        None if longer is None else longer / tokens,
        None if after is None else after.flops / before.flops,
    )


def with_inference(law: Parametric, loss: float, answered: float) -> Optimum | None:
    """N and D that reach a loss with the fewest FLOP of training (6*N*D) and of answering (2*N a token) together.

    Source: Sardana et al. 2024, arXiv:2401.00448, equation 2. None below the law's floor.

    >>> from weigh.scaling.laws import LAWS
    >>> besiroglu = LAWS["besiroglu-2024"]
    >>> loss = besiroglu.loss(70e9, 1.4e12)
    >>> alone, busy = with_inference(besiroglu, loss, 0), with_inference(besiroglu, loss, 1e13)
    >>> abs(alone.parameters / besiroglu.cheapest(loss).parameters - 1) < 1e-6, busy.parameters < alone.parameters
    (True, True)
    """
    cheapest = law.cheapest(loss)
    if cheapest is None:
        return None

    def cost(size: float) -> float:
        tokens = law.tokens_for(loss, exp(size))
        return float("inf") if tokens is None else exp(size) * (6 * tokens + 2 * answered)

    smallest = (law.A / (loss - law.E)) ** (1 / law.alpha)  # with endless data
    low, high = log(smallest), log(cheapest.parameters)  # answering only makes smaller models better
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(120):
        if cost(left) <= cost(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    parameters = cheapest.parameters if answered == 0 else exp((low + high) / 2)
    tokens = law.tokens_for(loss, parameters)
    assert tokens is not None
    return Optimum(parameters, tokens)


class Overtraining(NamedTuple):
    """A point beside the best way to its loss."""

    cheapest: Optimum
    """The least budget with that loss."""
    flops: float
    """The point's budget over that: 1 is compute-optimal."""
    parameters: float
    """Its size over the best one: what every answer costs."""


def overtraining(law: Law, parameters: float, tokens: float) -> Overtraining | None:
    """How far a point is from compute-optimal; None for laws without a loss of N and D."""
    if not isinstance(law, Parametric):
        return None
    cheapest = law.cheapest(law.loss(parameters, tokens))
    assert cheapest is not None
    return Overtraining(cheapest, 6 * parameters * tokens / cheapest.flops, parameters / cheapest.parameters)
