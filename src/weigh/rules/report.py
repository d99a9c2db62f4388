"""Rules beside the exact answers, as data, text and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import InputError, NotModelledError
from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table, wrap
from weigh.report.work import format_flops
from weigh.rules.exact import Exact, unit
from weigh.rules.job import EVERYWHERE, Job
from weigh.rules.rule import BYTES, FLOP, PARAMETERS, REST
from weigh.rules.table import RULES, rule
from weigh.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weigh.rules.rule import Rule


@dataclass(frozen=True, slots=True)
class Line:
    """One rule beside the exact answer."""

    rule: Rule
    """Which rule."""
    terms: Mapping[str, tuple[int, int | None]]
    """Every term: the rule's amount and the exact one; what the rule does not know stands under its own name."""
    exact: int | None
    """The exact answer; None where there is none for this job."""
    refused: str | None
    """Why there is no answer, or none to hold it against."""
    because: tuple[str, ...]
    """What this job has that the formula does not know."""

    @property
    def answer(self) -> int | None:
        """The rule's."""
        return sum(amount for amount, _ in self.terms.values()) if self.terms else None

    @property
    def error(self) -> float | None:
        """Of the rule, relative to the exact answer."""
        return None if not self.exact or self.answer is None else self.answer / self.exact - 1

    @property
    def decisive(self) -> str | None:
        """The term that is furthest off; None where every term is right, or nothing is known."""
        gaps = {name: abs(ours - theirs) for name, (ours, theirs) in self.terms.items() if theirs is not None}
        name = max(gaps, key=lambda n: gaps[n], default=None)
        return name if name is not None and gaps[name] else None

    def makes_it(self) -> str:
        """The decisive term, in words."""
        if self.decisive is None:
            return ""
        ours, theirs = self.terms[self.decisive]
        if self.error == 0:
            return f"{self.decisive} and others cancel"
        unit_ = unit(self.rule.quantity)
        return f"{self.decisive}: {amount(ours, unit_)} for {amount(theirs, unit_)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **described(self.rule),
            "answer": self.answer,
            "exact": self.exact,
            "error": self.error,
            "terms": [{"name": n, "rule": ours, "exact": theirs} for n, (ours, theirs) in self.terms.items()],
            "decisive": self.decisive,
            "because": list(self.because),
            "refused": self.refused,
        }


def described(rule: Rule) -> dict[str, Any]:
    """A rule without an answer, for JSON."""
    return {
        "name": rule.name,
        "says": rule.says,
        "formula": rule.formula,
        "source": rule.source,
        "valid": rule.valid,
        "quantity": rule.quantity,
        "unit": unit(rule.quantity),
    }


def compare(model: Any, names: Sequence[str] = (), runtime: str | None = None, **settings: Any) -> RulesReport:
    """The rules of these names (else all) beside the exact answers, for one job.

    `runtime` and `settings` are those of `weigh.train`. A quantity that `weigh` refuses for a job leaves its rules
    without an error.

    >>> report = compare("gpt2", ["12Ld2"])
    >>> line, = report.lines
    >>> line.answer, line.exact, line.decisive
    (84934656, 85056000, 'biases and norms')

    Raises:
        InputError: the model cannot be read.
        UsageError: no rule has that name, or the settings are wrong.
    """
    job = Job(model, runtime, **settings)
    chosen = [rule(name) for name in names] or list(RULES.values())
    answers: dict[tuple[str, ...], Exact] = {}
    return RulesReport(job, tuple(_line(r, job, answers) for r in chosen))


def _line(rule: Rule, job: Job, answers: dict[tuple[str, ...], Exact]) -> Line:
    """One comparison; runs are shared by the rules that presuppose the same settings."""
    because = tuple(job.traits[key] for key in (*EVERYWHERE, *rule.blind) if key in job.traits)
    try:
        ours = rule.terms_of(job)
    except InputError as error:
        return Line(rule, {}, None, str(error), because)
    refused = rule.unless(job)
    parts: dict[str, int] | None = None
    if refused is None:
        key = tuple(f"{k}={v}" for k, v in rule.settings.items() if getattr(job.recipe, k) != v)
        exact = answers.setdefault(key, Exact(job, rule.settings if key else {}))
        try:
            parts = getattr(exact, rule.quantity)()
        except NotModelledError as error:
            refused = str(error)
    if parts is None:
        return Line(rule, {name: (amount, None) for name, amount in ours.items()}, None, refused, because)
    return Line(rule, _beside(rule, ours, parts), sum(parts.values()), None, because)


def _beside(rule: Rule, ours: Mapping[str, int], parts: Mapping[str, int]) -> dict[str, tuple[int, int | None]]:
    """Every term with the parts that it covers, and parts that none covers."""
    left = dict(parts)
    covered = {t.name: sum(left.pop(p, 0) for p in t.covers if p != REST) for t in rule.terms}
    rest = next((t.name for t in rule.terms if REST in t.covers), None)
    if rest is not None:
        covered[rest] += sum(left.values())
        left = {}
    return {**{n: (ours[n], covered[n]) for n in ours}, **{part: (0, size) for part, size in left.items()}}


@dataclass(frozen=True, slots=True)
class RulesReport:
    """Rules of thumb about one job."""

    job: Job
    """The model, and how it is trained."""
    lines: tuple[Line, ...]
    """The rules, in the table's order or the order that was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/rules.json`."""
        job = self.job
        return {
            **header("rules", job.source, job.dtype),
            "job": {
                "batch": job.B,
                "sequence": job.S,
                "dtype": job.dtype.name,
                "autocast": job.recipe.autocast and job.recipe.autocast.name,
                "optimizer": job.recipe.optimizer,
                "runtime": job.runtime,
                "data": job.n,
                "tensor": job.t,
            },
            "rules": [line.as_dict() for line in self.lines],
            "assumptions": [a.as_dict() for a in job.assumptions],
        }

    def text(self, style: Style = PLAIN, explain: bool = False) -> str:
        """For a terminal."""
        job = self.job
        precision = (
            f"{job.dtype.name} under {job.recipe.autocast.name} autocast" if job.recipe.autocast else job.dtype.name
        )
        title = f"Rules of thumb about {job.source.name}"
        by = "" if job.runtime == "pytorch" else f", by {job.runtime}"
        lines = [f"{style.bold(title)}: {precision}, batch {job.B} x {job.S} tokens, {job.recipe.optimizer}{by}"]
        group = ""
        rows: list[tuple[str, ...]] = []
        order = (PARAMETERS, BYTES, FLOP)
        for line in sorted(self.lines, key=lambda line: order.index(unit(line.rule.quantity))):
            if explain:
                lines += ["", *_explained(line, style)]
                continue
            if unit(line.rule.quantity) != group:
                group = unit(line.rule.quantity)
                rows += [(), (group, "rule", "exact", "error", "most of it")]
            rows.append(_row(line, style))
        if rows:
            lines += table(rows, "<>>><")
            lines += [
                "",
                *(
                    style.dim(said)
                    for said in wrap("--explain says each rule's source, terms and limits.", style.width)
                ),
            ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def amount(value: int | None, unit: str) -> str:
    """A number for people.

    >>> amount(84934656, "parameters"), amount(None, "bytes")
    ('84.93 M', '-')
    """
    if value is None:
        return "-"
    if unit == PARAMETERS:
        return format_count(value)
    return format_bytes(value) if unit == BYTES else format_flops(value)


def percent(error: float | None) -> str:
    """An error for people; a factor where it is large.

    >>> percent(-0.0014), percent(3.0), percent(0.0), percent(None)
    ('-0.1 %', 'x 4.0', '0', '-')
    """
    if error is None:
        return "-"
    if error == 0:
        return "0"
    return (
        f"x {1 + error:.1f}"
        if error >= 1
        else f"{100 * error:+.1f} %"
        if abs(error) >= 0.0005
        else f"{100 * error:+.4f} %"
    )


def _row(line: Line, style: Style) -> tuple[str, ...]:
    unit_ = unit(line.rule.quantity)
    error = line.error
    shown = percent(error)
    if error is not None:
        shown = style.good(shown, True if abs(error) < 0.01 else None if abs(error) < 0.2 else False)
    why = line.refused if line.refused is not None else line.makes_it()
    return line.rule.name, amount(line.answer, unit_), amount(line.exact, unit_), shown, why


def _explained(line: Line, style: Style) -> list[str]:
    r = line.rule
    unit_ = unit(r.quantity)
    found = [
        style.bold(f"{r.name}: {r.says}"),
        f"  {r.formula}",
        *wrap(f"Source: {r.source}.", style.width, "  "),
        *wrap(f"Valid for: {r.valid}.", style.width, "  "),
    ]
    if line.refused is not None:
        found += wrap(f"No exact answer: {line.refused}.", style.width, "  ")
    rows = [("", "rule", "exact", "off by")]
    for name, (ours, theirs) in line.terms.items():
        off = "" if theirs is None else f"{ours - theirs:+,}"
        rows.append((name, f"{ours:,}", "-" if theirs is None else f"{theirs:,}", off))
    if line.answer is not None:
        exact = "-" if line.exact is None else f"{line.exact:,}"
        rows.append((unit_, f"{line.answer:,}", exact, percent(line.error)))
    found += table(rows, "<>>>", 4)
    return found + [text for reason in line.because for text in wrap(f"It does not know: {reason}.", style.width, "  ")]
