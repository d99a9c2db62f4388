"""`weigh errors SOURCE --to FORMAT,...` and `weigh outliers`: what quantizing does to values."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from weigh.cli import sentence
from weigh.cli.options import Parser
from weigh.cli.weighing import save, style
from weigh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = "a folder, .safetensors, an index, .gguf, ORG/NAME on the Hub or an address"
FORMATS = "nf4,int8,int4:group=32: quantizers, with settings after a colon; `weigh errors --list` names them"


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    parser = Parser(command, sentence(command))
    (_errors_options if command == "errors" else _outliers_options)(parser)
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    return _errors(found) if command == "errors" else _outliers(found)


def _errors_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs="?", help=SOURCE)
    add("--to", metavar="FORMAT[,FORMAT...]", help=FORMATS)
    add("--list", action="store_true", help="the quantizers, and what they store for each weight")
    add("--tensors", metavar="PATTERN", action="append", default=[], help="these only ('*.mlp.*.weight'); repeatable")
    add("--by", choices=("format", "layer", "tensor"), default="format", help="a line for each of these")
    add("--inputs", metavar="FILE.npz", help="inputs of layers by module name: the change of their outputs too")
    add("--csv", metavar="FILE", help="write every tensor and format into a file")
    add("--html", metavar="FILE", help="write a page with histograms")


def _outliers_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--outlier", metavar="X", type=float, default=54.5, help="the large value (default 54.5)")
    add("--vector", metavar="X,X,...", help="the short vector, whose last value is replaced")
    add("--block", metavar="N", type=int, default=64, help="values of a block of the long one (default 64)")
    add("--svg", metavar="FILE", help="draw the errors into a file")
    add("--inputs", metavar="FILE.npz", help="instead: the outlier features of layers' inputs")
    add("--width", metavar="N", type=int, help="only inputs of so many features, the hidden states'")
    add("--threshold", metavar="X", type=float, default=6.0, help="of outlier features (default 6.0)")


def _errors(found: Any) -> tuple[str, int]:
    from weigh import quant

    if found.list:
        return _listed(found.json), 0
    if found.source is None or found.to is None:
        missing = "SOURCE" if found.source is None else "--to"
        raise UsageError("is missing", where=missing, hint="As in: weigh errors DIR --to nf4,int8.")
    quant.require()
    from weigh.quant.arrays import load
    from weigh.quant.survey import survey

    inputs = load(found.inputs) if found.inputs else None
    progress = _progress()
    report = survey(found.source, _words(found.to), found.tensors, inputs=inputs, progress=progress)
    if progress is not None:
        progress("")
    if found.csv is not None:
        save(found.csv, report.csv())
    if found.html is not None:
        from weigh.quant.survey_page import page

        save(found.html, page(report))
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style(), found.by), 0


def _outliers(found: Any) -> tuple[str, int]:
    from weigh import quant

    quant.require()
    if found.inputs is not None:
        return _features(found)
    from weigh.quant.demonstration import VECTOR, demonstrate

    shown = demonstrate(found.outlier, _numbers(found.vector) if found.vector else VECTOR, found.block)
    if found.svg is not None:
        save(found.svg, shown.svg())
    if found.json:
        return json.dumps(shown.as_dict(), indent=2, ensure_ascii=False), 0
    return shown.text(style()), 0


def _features(found: Any) -> tuple[str, int]:
    from weigh.quant.arrays import load
    from weigh.quant.llm_int8 import outliers
    from weigh.quant.outlier_report import as_dict, text

    inputs = load(found.inputs)
    if found.width is not None:
        inputs = {name: array for name, array in inputs.items() if array.shape[-1:] == (found.width,)}
        if not inputs:
            raise UsageError(f"no input has {found.width} features", where="--width", hint="Leave it out to see which.")
    report = outliers(inputs, found.threshold)
    if found.json:
        return json.dumps(as_dict(report), indent=2, ensure_ascii=False), 0
    return text(report, style()), 0


def _listed(as_json: bool) -> str:
    from weigh import quant
    from weigh.report.header import header
    from weigh.report.text import table

    shape = (4096, 4096)
    bits = {name: quant.get(name).bits_per_weight(shape) for name in quant.NAMES}
    if as_json:
        said = [{"format": name, "bits_per_weight": x} for name, x in bits.items()]
        return json.dumps({**header("errors"), "shape": list(shape), "quantizers": said}, indent=2)
    rows = [("quantizer", "bits a weight"), *((name, f"{x:.4f}") for name, x in bits.items())]
    return "\n".join(["Of a matrix of 4,096 x 4,096, scales included:", "", *table(rows, "<>")])


def _words(text: str) -> list[str]:
    """Formats at commas, but for those inside of settings: "int4:group=32,bits=3,nf4" has two."""
    found: list[str] = []
    for word in text.split(","):
        if found and "=" in word and ":" not in word:
            found[-1] += f",{word}"
        else:
            found.append(word)
    return list(dict.fromkeys(filter(None, found)))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", where="--vector", hint="Give 1.2,-0.5,3.") from None


def _progress() -> Any:
    """Names the tensor that is being measured, where somebody watches; an empty name clears the line."""
    if not sys.stderr.isatty():
        return None

    def say(name: str) -> None:
        sys.stderr.write(f"\r\x1b[K{name}")
        sys.stderr.flush()

    return say
