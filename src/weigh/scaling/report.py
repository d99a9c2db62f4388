"""Questions about budgets, sizes and losses, answered by every law, as data, text and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import UsageError
from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table, wrap
from weigh.scaling import shapes, solve
from weigh.scaling.laws import LAWS, Kaplan, Optimum, Parametric
from weigh.units import format_bytes, format_count

if TYPE_CHECKING:
    from weigh.hardware import Device
    from weigh.scaling.laws import Law
    from weigh.scaling.shapes import Machines
    from weigh.sources.source import Source


@dataclass(frozen=True, slots=True)
class Question:
    """What is known: a budget, a size, a number of tokens, or two of them."""

    flops: float | None = None
    """C."""
    parameters: float | None = None
    """N."""
    tokens: float | None = None
    """D."""
    counted_without_embeddings: float | None = None
    """N as Kaplan counts it, where a model says."""
    source: Source | None = None
    """The model whose N it is, if it is one's."""
    change: float | None = None
    """The loss that is wanted, relative to the point's: 0.9 is ten per cent less."""
    answered: float | None = None
    """Tokens that the model will answer with or read, in its life."""
    device: Device | None = None
    """What it is trained on."""
    mfu: float | None = None
    """The share of the device's bf16 peak that training reaches."""
    gpus: int | None = None
    """How many devices; None is as few as hold it."""

    def __post_init__(self) -> None:
        given = [x for x in (self.flops, self.parameters, self.tokens) if x is not None]
        if not given:
            raise UsageError("nothing is asked", hint="Give a model, --parameters, --tokens, --flops or --gpu-hours.")
        if len(given) == 3:
            raise UsageError("a budget follows from parameters and tokens", hint="Leave one of the three out.")
        for what, value in (("the budget", self.flops), ("the size", self.parameters), ("the tokens", self.tokens)):
            if value is not None and not 1 <= value < 1e40:
                raise UsageError(f"{what} is {value:g}", hint="It must be at least 1, and below 1e40.")
        if self.device is not None and self.mfu is None:
            raise UsageError(
                "nobody said how much of the device's peak training reaches",
                where="--mfu",
                hint="Give a share such as 0.4; published runs reach 0.3 to 0.5.",
            )

    def size_for(self, law: Law, parameters: float) -> float:
        """N as a law counts it, where a model says; else as it was given."""
        own = self.counted_without_embeddings if isinstance(law, Kaplan) else None
        return parameters if own is None else own

    @property
    def name(self) -> str | None:
        """The model's."""
        return None if self.source is None else self.source.name

    @property
    def point(self) -> Optimum | None:
        """N and D where both are known."""
        known = (self.flops, self.parameters, self.tokens)
        match known:
            case (None, float(n), float(d)):
                return Optimum(n, d)
            case (float(c), float(n), None):
                return Optimum(n, c / 6 / n)
            case (float(c), None, float(d)):
                return Optimum(c / 6 / d, d)
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one law says."""

    law: Law
    best: Optimum
    """The optimum of the budget, or the one that has the size or the tokens."""
    loss: float | None
    """There."""
    warnings: tuple[str, ...]
    """What lies outside of the law's range."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        interval = self.law.interval(self.best.flops)
        found: dict[str, Any] = {
            **described(self.law),
            "optimum": _point(self.best),
            "parameters_interval": None if interval is None else list(interval),
            "loss": self.loss,
            "warnings": list(self.warnings),
        }
        if isinstance(self.law, Kaplan):
            loss = self.law.loss_of_compute(self.best.flops)
            found["kaplan"] = {
                "loss_of_compute": loss,
                "critical_batch_tokens": self.law.critical_batch(loss),
                "batch_tokens": self.law.batch(self.best.flops),
                "steps": self.law.steps(self.best.flops),
                "tokens_against_overfitting": self.law.tokens_against_overfitting(self.best.parameters),
            }
        return found


def described(law: Law) -> dict[str, Any]:
    """A law, for JSON."""
    return {
        "name": law.name,
        "title": law.title,
        "source": law.source,
        "formulas": list(law.formulas),
        "counts": law.counts,
        "parameters_range": list(law.parameters),
        "tokens_range": list(law.tokens),
        "uncertainty": law.uncertainty,
    }


def _point(point: Optimum) -> dict[str, float]:
    return {
        "parameters": point.parameters,
        "tokens": point.tokens,
        "flops": point.flops,
        "tokens_per_parameter": point.tokens_per_parameter,
    }


def ask(question: Question, laws: tuple[Law, ...] = tuple(LAWS.values())) -> ScalingReport:
    """The answers of these laws, and what can be trained with the first one's.

    >>> report = ask(Question(flops=5.76e23))
    >>> report.answers[0].law.name, f"{report.answers[0].best.parameters:.3g}"
    ('besiroglu-2024', '7.22e+10')
    """
    answers = []
    for law in laws:
        best = _best(law, question)
        answers.append(Answer(law, best, law.loss(*best), tuple(law.warnings(*best))))
    return ScalingReport(question, tuple(answers))


def _best(law: Law, question: Question) -> Optimum:
    point = question.point
    if point is not None:
        return law.optimum(point.flops)
    if question.flops is not None:
        return law.optimum(question.flops)
    if question.parameters is not None:
        return law.for_parameters(question.size_for(law, question.parameters))
    assert question.tokens is not None
    return law.for_tokens(question.tokens)


@dataclass(frozen=True, slots=True)
class ScalingReport:
    """What laws say about a question."""

    question: Question
    answers: tuple[Answer, ...]
    """A law each."""

    @property
    def chosen(self) -> Optimum:
        """The point in question, or the first law's optimum: what would be trained."""
        return self.question.point or self.answers[0].best

    def at_point(self) -> list[tuple[Law, float | None, solve.Overtraining | None, tuple[str, ...]]]:
        """What every law expects of the point in question."""
        point = self.question.point
        if point is None:
            return []
        return [
            (
                a.law,
                a.law.loss(self.question.size_for(a.law, point.parameters), point.tokens),
                solve.overtraining(a.law, *point),
                tuple(a.law.warnings(*point)),
            )
            for a in self.answers
        ]

    def _as_counted(self, answer: Answer) -> Optimum:
        """The point in question as a law counts, or its own optimum."""
        point = self.question.point
        if point is None:
            return answer.best
        return Optimum(self.question.size_for(answer.law, point.parameters), point.tokens)

    def prices(self) -> list[tuple[Law, solve.Price]]:
        """What the wanted change of the loss costs, by the laws that know."""
        if self.question.change is None:
            return []
        change = self.question.change
        found = ((a.law, solve.price(a.law, *self._as_counted(a), change)) for a in self.answers)
        return [(law, price) for law, price in found if price is not None]

    def answering(self) -> list[tuple[Law, Optimum]]:
        """The best model for the same loss where it will also answer so many tokens."""
        answered = self.question.answered
        if answered is None:
            return []
        found: list[tuple[Law, Optimum]] = []
        for a in self.answers:
            if isinstance(a.law, Parametric):
                best = solve.with_inference(a.law, a.law.loss(*(self.question.point or a.best)), answered)
                assert best is not None, "a loss of the law's own is above its floor"
                found.append((a.law, best))
        return found

    def shape(self) -> dict[str, Any] | None:
        """A Llama of the chosen size; None where there is none of that size."""
        return shapes.shape(self.chosen.parameters)

    def machines(self) -> Machines | None:
        """Devices and days for the chosen point; None where no device is named, or none is large enough."""
        q = self.question
        model = q.source or self.shape()
        if q.device is None or q.mfu is None or model is None:
            return None
        return shapes.machines(model, self.chosen.flops, q.device, q.mfu, q.gpus)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/scaling.json`."""
        q, shape = self.question, self.shape()
        machines = self.machines()
        return {
            **header("scaling"),
            "question": {
                "flops": q.flops,
                "parameters": q.parameters,
                "tokens": q.tokens,
                "model": q.name,
                "change": q.change,
                "answered_tokens": q.answered,
            },
            "laws": [a.as_dict() for a in self.answers],
            "point": None if q.point is None else _point(q.point),
            "at_point": [
                {
                    "law": law.name,
                    "loss": loss,
                    "cheapest": None if over is None else _point(over.cheapest),
                    "overtraining": None if over is None else over.flops,
                    "warnings": list(warnings),
                }
                for law, loss, over, warnings in self.at_point()
            ],
            "prices": [{"law": law.name, **price._asdict()} for law, price in self.prices()],
            "answering": [{"law": law.name, **_point(best)} for law, best in self.answering()],
            "nearest": [{"name": e.name, "parameters": e.parameters} for e in shapes.nearest(self.chosen.parameters)],
            "shape": shape,
            "machines": None
            if machines is None
            else {
                "device": machines.device.name,
                "count": machines.count,
                "sequence": machines.sequence,
                "peak_bytes": machines.peak,
                "days": machines.days,
                "mfu": q.mfu,
            },
        }

    # -- text
    def text(self, style: Style = PLAIN, explain: bool = False) -> str:
        """For a terminal."""
        lines = [style.bold(self._title()), "", *self._optima()]
        lines += self._outside(style)
        if self.question.point is not None:
            said = f"{_said(self.question.point)} ({self.question.point.flops:.3g} FLOP)"
            lines += ["", style.bold(said), *self._points()]
        if self.prices():
            lines += ["", *self._priced(style)]
        if self.answering():
            lines += ["", *self._answered(style)]
        lines += ["", *self._to_train(style)]
        if explain:
            for answer in self.answers:
                lines += ["", *_explained(answer.law, style)]
        else:
            lines += ["", style.dim("--explain says each law's formulas, ranges and uncertainty.")]
        return "\n".join(lines)

    def _title(self) -> str:
        q = self.question
        if q.point is not None or q.flops is not None:
            flops = q.point.flops if q.point is not None else q.flops
            return f"The best size for {flops:.3g} FLOP"
        if q.parameters is not None:
            size = f"{counted(q.parameters)} parameters"
            name = f"{q.name} ({size} for every token)" if q.name else size
            return f"The budget for which {name} is the best size"
        assert q.tokens is not None
        return f"The best size for {counted(q.tokens)} tokens"

    def _optima(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("law", "parameters", "tokens", "a parameter", "FLOP", "loss", "interval")]
        for a in self.answers:
            interval = a.law.interval(a.best.flops)
            between = "" if interval is None else f"{counted(interval.low)} to {counted(interval.high)}"
            mark = " *" if a.warnings else ""
            rows.append((a.law.name + mark, *_cells(a.best), _nats(a.loss), between))
        return table(rows, "<>>>>><")

    def _outside(self, style: Style) -> list[str]:
        """The laws that were asked beyond what they were fitted on."""
        found: dict[str, list[str]] = {}
        for a in self.answers:
            if a.warnings:
                found.setdefault(a.law.fitted_on, []).append(a.law.name)
        said = (f"* an extrapolation: {', '.join(laws)}, fitted on {models}." for models, laws in found.items())
        return ["", *(style.dim(part) for line in said for part in wrap(line, style.width, "  "))] if found else []

    def _points(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("law", "loss", "the same loss at the least", "FLOP", "this is", "and its size")]
        for law, loss, over, _ in self.at_point():
            if loss is None:
                continue
            if over is None:
                rows.append((law.name, _nats(loss)))
            else:
                best = over.cheapest
                times = (f"x {over.flops:.3g}", f"x {over.parameters:.3g}")
                rows.append((law.name, _nats(loss), _said(best), f"{best.flops:.3g}", *times))
        return table(rows, "<>>>>>")

    def _priced(self, style: Style) -> list[str]:
        change = self.question.change
        assert change is not None
        rows: list[tuple[str, ...]] = [("law", "wanted", "parameters alone", "tokens alone", "FLOP, both best")]
        for law, price in self.prices():
            factors = (_factor(x) for x in (price.parameters, price.tokens, price.flops))
            rows.append((law.name, _nats(price.loss), *factors))
        return [style.bold(f"What {100 * (change - 1):+.3g} % of the loss costs"), *table(rows, "<>>>>")]

    def _answered(self, style: Style) -> list[str]:
        answered = self.question.answered
        assert answered is not None
        head = ("law", "parameters", "tokens", "a parameter", "FLOP of training", "and of answers")
        rows: list[tuple[str, ...]] = [head]
        for law, best in self.answering():
            rows.append((law.name, *_cells(best), f"{2 * best.parameters * answered:.3g}"))
        return [style.bold(f"The same loss, and {counted(answered)} tokens to answer"), *table(rows, "<>>>>>")]

    def _to_train(self, style: Style) -> list[str]:
        q, config = self.question, self.shape()
        near = ", ".join(f"{e.name} ({format_count(e.parameters)})" for e in shapes.nearest(self.chosen.parameters))
        lines = [
            style.bold(f"To train: {_said(self.chosen)}"),
            *wrap(f"Models of that size: {near}.", style.width, "  "),
        ]
        if q.source is None and config is None:
            lines.append("  No Llama of whole heads and layers has that size.")
        elif q.source is None and config is not None:
            lines += wrap(
                f"A Llama of that size: {config['num_hidden_layers']} layers of width {config['hidden_size']:,}, "
                f"feed-forward {config['intermediate_size']:,}, {config['num_attention_heads']} heads, "
                f"vocabulary {config['vocab_size']:,}.",
                style.width,
                "  ",
            )
        machines = self.machines()
        if machines is not None:
            name = machines.device.marketing_name
            how = "FSDP2, " if machines.count > 1 else ""
            said = (
                f"{machines.count:,} x {name}: {format_bytes(machines.peak)} on each ({how}fp32 weights, bf16 "
                f"arithmetic, every layer recomputed, one sequence of {machines.sequence}), {days(machines.days)} at "
                f"{100 * (q.mfu or 0):g} % of the bf16 peak."
            )
            lines += wrap(said, style.width, "  ")
        elif q.device is not None and (q.source is not None or config is not None):
            lines.append(f"  Not even 65,536 x {q.device.marketing_name} hold it like this.")
        return lines

    def __str__(self) -> str:
        return self.text()


def counted(amount: float) -> str:
    """A count for people, whatever its size.

    >>> counted(1.4e12), counted(7e10), counted(3e17)
    ('1.400 T', '70.00 B', '3e+17')
    """
    return format_count(round(amount)) if amount < 1e16 else f"{amount:.3g}"


def days(amount: float) -> str:
    """A time for people.

    >>> days(0.01), days(2.5), days(4000)
    ('14.4 minutes', '2.5 days', '11 years')
    """
    for size, unit in ((365.25, "years"), (1, "days"), (1 / 24, "hours")):
        if amount >= 2 * size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount * 24 * 60:.3g} minutes"


def _said(point: Optimum) -> str:
    return f"{counted(point.parameters)} parameters, {counted(point.tokens)} tokens"


def _cells(point: Optimum) -> tuple[str, str, str, str]:
    return counted(point.parameters), counted(point.tokens), f"{point.tokens_per_parameter:.3g}", f"{point.flops:.3g}"


def _nats(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _factor(factor: float | None) -> str:
    return "never" if factor is None else f"x {factor:.3g}"


def _explained(law: Law, style: Style) -> list[str]:
    return [
        style.bold(f"{law.name}: {law.title}"),
        *(f"  {formula}" for formula in law.formulas),
        *wrap(
            f"N: {law.counts}. Fitted on {counted(law.parameters.low)} to {counted(law.parameters.high)} parameters, "
            f"{counted(law.tokens.low)} to {counted(law.tokens.high)} tokens. Uncertainty: {law.uncertainty}.",
            style.width,
            "  ",
        ),
        f"  Source: {law.source}.",
    ]


def listed(style: Style = PLAIN) -> str:
    """Every law, for a terminal."""
    return "\n\n".join("\n".join(_explained(law, style)) for law in LAWS.values())
