"""`weigh scaling [MODEL]`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.cli import COMMANDS
from weigh.cli.options import Parser
from weigh.cli.weighing import MODEL, save, style
from weigh.errors import UsageError
from weigh.report.header import header
from weigh.units import parse_count

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    parser = Parser(command, f"{COMMANDS[command][1].capitalize()}.")
    _options(parser)
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    from weigh.scaling.laws import LAWS, law
    from weigh.scaling.report import ask, described, listed

    chosen = tuple(law(name) for name in found.law.split(",")) if found.law else tuple(LAWS.values())
    asked = [found.model, found.parameters, found.tokens, found.flops, found.gpu_hours]
    if all(x is None for x in asked) and found.picture is None and found.svg is None:
        if found.json:
            laws = [described(x) for x in chosen]
            return json.dumps({**header(command), "laws": laws}, indent=2, ensure_ascii=False), 0
        return listed(style()), 0
    report = ask(_question(found), chosen)
    if found.svg is not None:
        save(found.svg, _picture(report, found.picture or "iso-flop"))
    elif found.picture is not None:
        raise UsageError("a picture needs a file", where="--picture", hint="Give --svg FILE.")
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style(), found.explain), 0


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help=f"{MODEL}; without a question, the laws are listed")
    add("--parameters", metavar="N", help="a size instead of a model's: 7B (10^9)")
    add("--tokens", metavar="D", help="tokens of training: 2T (10^12)")
    add("--flops", metavar="C", help="a budget: 5.76e23")
    add("--gpu-hours", metavar="H", help="a budget of hours on a --device, of whose bf16 peak --mfu is reached")
    add("--device", metavar="NAME", help="what it is trained on: how many hold it, and for how long")
    add("--mfu", metavar="X", help="the share of the device's bf16 peak that training reaches: 0.4")
    add("--gpus", metavar="N", help="how many devices, instead of as few as hold it")
    add("--loss-change", metavar="X", help="what it costs to change the loss by X per cent: -10")
    add("--inference-tokens", metavar="D", help="tokens that the model will read and write in its life")
    add("--law", metavar="NAME[,NAME...]", help="these laws only; pictures and machines are the first one's")
    add("--svg", metavar="FILE", help="draw a picture into a file")
    add("--picture", metavar="iso-flop|iso-loss", help="which: loss over size (the default), or size over budget")
    add("--explain", action="store_true", help="formulas, ranges and uncertainty of each law")


def _question(found: Any) -> Any:
    from weigh.scaling.report import Question

    parameters, without, source = _size(found)
    device = None
    if found.device is not None:
        device = api._known_device(found.device)  # noqa: SLF001  the same complaint as the other commands make
    mfu = None if found.mfu is None else _number(found.mfu, "--mfu", 1)
    flops = None if found.flops is None else _number(found.flops, "--flops")
    if found.gpu_hours is not None:
        flops = _of_hours(found, device, mfu)
    gpus = None if found.gpus is None else parse_count(found.gpus, "--gpus")
    if gpus is not None and not 1 <= gpus <= 2**20:
        raise UsageError(f"is {gpus}", where="--gpus", hint="It must be 1 to 1,048,576.")
    change = None
    if found.loss_change is not None:
        change = 1 + _number(found.loss_change.removesuffix("%"), "--loss-change", 100, -100) / 100
    return Question(
        flops=flops,
        parameters=parameters,
        tokens=_count(found.tokens, "--tokens"),
        counted_without_embeddings=without,
        source=source,
        change=change,
        answered=_count(found.inference_tokens, "--inference-tokens"),
        device=device,
        mfu=mfu,
        gpus=gpus,
    )


def _size(found: Any) -> tuple[float | None, float | None, Any]:
    """N and N without embeddings, of the parameters that a token is computed with, and the model."""
    if found.model is None:
        return _count(found.parameters, "--parameters"), None, None
    if found.parameters is not None:
        raise UsageError("a model has its own size", where="--parameters", hint="Leave out one of the two.")
    counted = api.params(found.model)
    return float(counted.active), float(_active_without_embeddings(counted)), counted.source


def _count(word: str | None, where: str) -> float | None:
    return None if word is None else float(parse_count(word, where))


def _active_without_embeddings(counted: Any) -> int:
    """As Kaplan counts, of the parameters that a token is computed with."""
    outside = counted.total - counted.without_embeddings
    return int(counted.active - outside)


def _of_hours(found: Any, device: Any, mfu: float | None) -> float:
    if found.flops is not None:
        raise UsageError("hours are a budget too", where="--gpu-hours", hint="Leave out --flops.")
    if device is None or mfu is None:
        raise UsageError(
            "hours of what, and how well used, is not said",
            where="--gpu-hours",
            hint="Give --device and --mfu: h100 and 0.4, say.",
        )
    return _number(found.gpu_hours, "--gpu-hours") * 3600 * mfu * float(device.peak_flops("bf16"))


def _number(word: str, where: str, most: float = 1e40, least: float = 0) -> float:
    """A number above `least`, at most `most`."""
    try:
        value = float(word)
    except ValueError:
        raise UsageError(f"{word!r} is no number", where=where, hint="Give a number such as 0.4 or 5.76e23.") from None
    if not least < value <= most:
        raise UsageError(f"is {word}", where=where, hint=f"It must be above {least:g}, and at most {most:g}.")
    return value


def _picture(report: Any, kind: str) -> str:
    from weigh.recipes.settings import did_you_mean
    from weigh.scaling.laws import Parametric
    from weigh.scaling.picture import KINDS, draw

    if kind not in KINDS:
        raise UsageError(f"there is no picture {kind!r}", where="--picture", hint=did_you_mean(kind, KINDS))
    first = next((a for a in report.answers if isinstance(a.law, Parametric)), None)
    if first is None:
        raise UsageError(
            "no law that was asked has a loss of N and D to draw", where="--law", hint="besiroglu-2024 has one."
        )
    around = report.question.point or first.best
    return draw(first.law, around, kind, report.question.name)
