"""The laws, each as its authors publish it.

N are parameters, D tokens, C floating-point operations of training (C = 6*N*D), L the cross-entropy in nats a token.
What the authors count as N differs, and so do their data and tokenizers: losses of two laws are not to be compared.
"""

from __future__ import annotations

from typing import NamedTuple

from weigh.errors import UnknownNameError, UsageError
from weigh.records import dataclass
from weigh.units import format_count

PF_DAY = 1e15 * 86_400
"""FLOP in a petaFLOP/s-day, Kaplan's unit: 8.64e19."""
_HOFFMANN = "Hoffmann et al. 2022, arXiv:2203.15556"


class Range(NamedTuple):
    """What a law was fitted on."""

    low: float
    high: float


class Optimum(NamedTuple):
    """How a budget is best spent."""

    parameters: float
    tokens: float

    @property
    def flops(self) -> float:
        """6*N*D."""
        return 6 * self.parameters * self.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """D/N."""
        return self.tokens / self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """What every law says: an optimum for a budget, for a size, for a number of tokens, and perhaps a loss."""

    name: str
    """Its key."""
    title: str
    """For people."""
    source: str
    """Where its constants are printed."""
    counts: str
    """What its N counts."""
    parameters: Range
    """N of the models it was fitted on."""
    tokens: Range
    """D of the models it was fitted on."""
    uncertainty: str
    """What its authors say of its precision."""
    exponent: Range | None = None
    """The published interval of a in N ~ C^a; None where none is published."""

    @property
    def formulas(self) -> tuple[str, ...]:
        """With their constants."""
        raise NotImplementedError

    def optimum(self, flops: float) -> Optimum:
        """N and D that spend a budget best."""
        raise NotImplementedError

    def budget_of(self, parameters: float) -> float:
        """The FLOP for which N is the best size."""
        raise NotImplementedError

    def for_parameters(self, parameters: float) -> Optimum:
        """The tokens for which N is the best size."""
        return Optimum(parameters, self.budget_of(parameters) / (6 * parameters))

    def for_tokens(self, tokens: float) -> Optimum:
        """The size for which D tokens are best; D grows with N in every law, so halving finds it."""
        low, high = 1.0, 1e30
        for _ in range(200):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.for_parameters(middle).tokens < tokens else (low, middle)
        return Optimum(low, tokens)

    def loss(self, parameters: float, tokens: float) -> float | None:
        """Nats a token; None where the law does not say."""
        return None

    def interval(self, flops: float) -> Range | None:
        """The best N at both ends of the published interval of its exponent.

        The intervals turn about the middle of the budgets that the models had (a geometric mean of the range's ends).
        """
        if self.exponent is None:
            return None
        middle = 6 * (self.parameters.low * self.parameters.high * self.tokens.low * self.tokens.high) ** 0.5
        at = self.optimum(middle).parameters
        ends = [at * (flops / middle) ** a for a in self.exponent]
        return Range(min(ends), max(ends))

    @property
    def fitted_on(self) -> str:
        """The models that it was fitted on, in words."""
        sizes, lengths = (" to ".join(format_count(round(x)) for x in ends) for ends in (self.parameters, self.tokens))
        return f"{sizes} parameters and {lengths} tokens"

    def warnings(self, parameters: float, tokens: float) -> list[str]:
        """What of a point lies outside of the models that the law was fitted on."""
        found = []
        for value, known, what in ((parameters, self.parameters, "parameters"), (tokens, self.tokens, "tokens")):
            if not known.low <= value <= known.high:
                found.append(f"{value:.3g} {what} are outside of {known.low:.3g} to {known.high:.3g}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Parametric(Law):
    """L(N, D) = E + A/N^alpha + B/D^beta."""

    E: float
    """Nats that no model and no data remove."""
    A: float
    alpha: float
    B: float
    beta: float

    @property
    def formulas(self) -> tuple[str, ...]:
        a = self.beta / (self.alpha + self.beta)
        return (
            f"L(N, D) = {self.E:g} + {self.A:g}/N^{self.alpha:g} + {self.B:g}/D^{self.beta:g}",
            f"N_opt = {self._scale:.4g} * (C/6)^{a:.4f}, D_opt = {1 / self._scale:.4g} * (C/6)^{1 - a:.4f}",
        )

    @property
    def _scale(self) -> float:
        return float((self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta)))

    def optimum(self, flops: float) -> Optimum:
        """Where the loss is least on C = 6*N*D (equation 4 of the paper).

        >>> round(LAWS["besiroglu-2024"].optimum(5.76e23).tokens_per_parameter, 1)
        18.4
        """
        a = self.beta / (self.alpha + self.beta)
        parameters = self._scale * (flops / 6) ** a
        return Optimum(parameters, flops / 6 / parameters)

    def budget_of(self, parameters: float) -> float:
        a = self.beta / (self.alpha + self.beta)
        return float(6 * (parameters / self._scale) ** (1 / a))

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token.

        >>> round(LAWS["chinchilla-3"].loss(70e9, 1.4e12), 3), round(LAWS["besiroglu-2024"].loss(70e9, 1.4e12), 3)
        (1.937, 1.974)
        """
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def parameters_for(self, loss: float, tokens: float) -> float | None:
        """N that has this loss after so many tokens; None where no size has."""
        left = loss - self.E - self.B / tokens**self.beta
        return None if left <= 0 else float((self.A / left) ** (1 / self.alpha))

    def tokens_for(self, loss: float, parameters: float) -> float | None:
        """D after which this size has this loss; None where it never has."""
        left = loss - self.E - self.A / parameters**self.alpha
        return None if left <= 0 else float((self.B / left) ** (1 / self.beta))

    def cheapest(self, loss: float) -> Optimum | None:
        """The least budget that reaches a loss; None below E.

        At an optimum alpha*A/N^alpha = beta*B/D^beta, so the two reducible parts of the loss are as beta to alpha.
        """
        left = loss - self.E
        if left <= 0:
            return None
        parameters = (self.A * (self.alpha + self.beta) / (self.beta * left)) ** (1 / self.alpha)
        tokens = (self.B * (self.alpha + self.beta) / (self.alpha * left)) ** (1 / self.beta)
        return Optimum(parameters, tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation(Law):
    """N_opt = N0 * (C/C0)^a: a published row and a published exponent."""

    at_flops: float
    """C0."""
    at_parameters: float
    """N0."""
    a: float

    @property
    def formulas(self) -> tuple[str, ...]:
        return (f"N_opt = {self.at_parameters:g} * (C/{self.at_flops:g})^{self.a:g}, D_opt = C/(6*N_opt)",)

    def optimum(self, flops: float) -> Optimum:
        parameters = self.at_parameters * (flops / self.at_flops) ** self.a
        return Optimum(parameters, flops / 6 / parameters)

    def budget_of(self, parameters: float) -> float:
        return float(self.at_flops * (parameters / self.at_parameters) ** (1 / self.a))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kaplan(Law):
    """Power laws without a floor; budgets are C_min, of training far below the critical batch size."""

    @property
    def formulas(self) -> tuple[str, ...]:
        return (
            "L(N) = (8.8e13/N)^0.076, L(D) = (5.4e13/D)^0.095, L(C_min) = (3.1e8 PF-days/C_min)^0.050",
            "L(N, D) = ((6.4e13/N)^(0.076/0.103) + 1.8e13/D)^0.103",
            "B_crit = 2e8 tokens / L^(1/0.21); N_opt = 1.3e9 * (C_min/PF-day)^0.73",
            "batch = 2.0e6 tokens * (C_min/PF-day)^0.24, steps = 5.4e3 * (C_min/PF-day)^0.03",
            "D = 5e3 * N^0.74 tokens keep a model from overfitting",
        )

    def optimum(self, flops: float) -> Optimum:
        parameters = 1.3e9 * (flops / PF_DAY) ** 0.73
        return Optimum(parameters, flops / 6 / parameters)

    def budget_of(self, parameters: float) -> float:
        return float(PF_DAY * (parameters / 1.3e9) ** (1 / 0.73))

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D) of early-stopped training: table 2."""
        return float(((6.4e13 / parameters) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103)

    def loss_of_parameters(self, parameters: float) -> float:
        """L(N), with as much data as it takes: equation 1.1.

        >>> round(LAWS["kaplan-2020"].loss_of_parameters(1.5e9), 3)
        2.304
        """
        return float((8.8e13 / parameters) ** 0.076)

    def loss_of_tokens(self, tokens: float) -> float:
        """L(D), of a model as large as it takes: equation 1.2."""
        return float((5.4e13 / tokens) ** 0.095)

    def loss_of_compute(self, flops: float) -> float:
        """L(C_min), of the best size: equation 1.3."""
        return float((3.1e8 * PF_DAY / flops) ** 0.050)

    def critical_batch(self, loss: float) -> float:
        """Tokens in a batch beyond which more of them stop saving steps: equation 1.4."""
        return float(2e8 / loss ** (1 / 0.21))

    def batch(self, flops: float) -> float:
        """Tokens in a batch at the best size: appendix A."""
        return float(2.0e6 * (flops / PF_DAY) ** 0.24)

    def steps(self, flops: float) -> float:
        """The fewest steps at the best size: appendix A."""
        return float(5.4e3 * (flops / PF_DAY) ** 0.03)

    def tokens_against_overfitting(self, parameters: float) -> float:
        """Equation 4.4."""
        return float(5e3 * parameters**0.74)


_CHINCHILLA_RANGE = {"parameters": Range(70e6, 16e9), "tokens": Range(5e9, 500e9)}
_ALL = "all parameters"
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Parametric(
            name="besiroglu-2024",
            title="Chinchilla's third approach, replicated",
            source="Besiroglu et al. 2024, arXiv:2404.10102",
            counts=_ALL,
            **_CHINCHILLA_RANGE,
            uncertainty="standard errors: E 0.03, A 124.58, B 1293.23, alpha 0.02, beta 0.02, not independent of each "
            "other; fitted on 240 points read off a figure",
            E=1.8172,
            A=482.01,
            alpha=0.3478,
            B=2085.43,
            beta=0.3658,
        ),
        Allocation(
            name="chinchilla-1",
            title="Chinchilla's first approach: the envelope of training curves",
            source=f"{_HOFFMANN}, tables 2 and 3",
            counts=_ALL,
            **_CHINCHILLA_RANGE,
            uncertainty="10th and 90th percentile of a: 0.488 to 0.502",
            exponent=Range(0.488, 0.502),
            at_flops=1.21e20,
            at_parameters=1e9,
            a=0.50,
        ),
        Allocation(
            name="chinchilla-2",
            title="Chinchilla's second approach: profiles of equal FLOP",
            source=f"{_HOFFMANN}, tables 2 and A3",
            counts=_ALL,
            **_CHINCHILLA_RANGE,
            uncertainty="10th and 90th percentile of a: 0.462 to 0.534",
            exponent=Range(0.462, 0.534),
            at_flops=1.20e20,
            at_parameters=1e9,
            a=0.49,
        ),
        Parametric(
            name="chinchilla-3",
            title="Chinchilla's third approach, as printed",
            source=f"{_HOFFMANN}, equation 10",
            counts=_ALL,
            **_CHINCHILLA_RANGE,
            uncertainty="published as 0.454 to 0.455 for a, which 400 runs cannot give (Besiroglu et al.); its "
            "exponents are rounded, and 20 tokens a parameter do not follow from them",
            E=1.69,
            A=406.4,
            alpha=0.34,
            B=410.7,
            beta=0.28,
        ),
        Parametric(
            name="chinchilla-3-tex",
            title="the same with the exponents of its TeX source",
            source=f"{_HOFFMANN}, as quoted by Besiroglu et al. 2024, arXiv:2404.10102",
            counts=_ALL,
            **_CHINCHILLA_RANGE,
            uncertainty="the same fit before rounding; the fit itself stopped early (Besiroglu et al.)",
            E=1.6934,
            A=406.4,
            alpha=0.3392,
            B=410.7,
            beta=0.2849,
        ),
        Kaplan(
            name="kaplan-2020",
            title="Kaplan's power laws",
            source="Kaplan et al. 2020, arXiv:2001.08361",
            counts="parameters without embeddings",
            parameters=Range(768, 1.5e9),
            tokens=Range(22e6, 23e9),
            uncertainty="none published; learning rates were not fitted to each length of training, which Hoffmann et "
            "al. hold responsible for the difference",
        ),
    )
}
"""Every law by its name, the recommended one first."""


def law(name: str) -> Law:
    """The law of that name.

    Raises:
        UsageError: there is none; near misses are suggested.
    """
    found = LAWS.get(name.strip().lower())
    if found is None:
        error = UnknownNameError("law", name, LAWS)
        raise UsageError(error.what, where="--law", hint=error.hint)
    return found
