"""`weigh params`, `weigh kv`, `weigh train` and `weigh generate`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.cli import sentence
from weigh.cli.options import Parser, add_settings, explain_settings, read_settings
from weigh.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.jobs import Job
    from weigh.report.text import Style

MODEL = (
    "a name that `weigh models` lists, ORG/NAME on the Hub, a folder, config.json, .safetensors, .gguf, .bin or "
    "adapter, an address, - for standard input, or a dict as text"
)
"""What a model may be."""


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer of one command, and its exit code."""
    parser = Parser(command, sentence(command))
    parser.add_argument("model", metavar="MODEL", help=MODEL, nargs="?" if command == "train" else None)
    parser.add_argument("--explain", action="store_true", help="the working: rules, sources, assumptions")
    if command == "params":
        return _params(parser, words)
    return _kv(parser, words) if command == "kv" else _run(command, parser, words)


def _params(parser: Parser, words: Sequence[str]) -> tuple[str, int]:
    ways = ("component", "layer", "dtype")
    parser.add_argument("--by", default="component", metavar="|".join(ways), help="how to divide them")
    parser.add_argument("--tensors", action="store_true", help="every tensor with its shape")
    parser.add_argument("--dtype", help="weigh them in this number format instead of the model's own")
    parser.add_argument("--lora", metavar="RANK[:LAYER,...]", help="count adapters too, which alone are trainable")
    parser.add_argument("--adapter", metavar="KIND[:LAYER,...]", help="count another of peft's methods: ia3, vera, ...")
    parser.add_argument("--gguf", metavar="TYPE", help="as llama.cpp would store it: Q4_K_M, Q8_0, IQ2_XXS, ...")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    _check_way(found.by, ways)
    report = api.params(found.model, found.dtype, found.lora, found.gguf, found.adapter)
    if found.json:
        return _json(report.as_dict()), 0
    return report.text(style(), "tensor" if found.tensors else found.by, found.explain), 0


def _kv(parser: Parser, words: Sequence[str]) -> tuple[str, int]:
    from weigh.recipes.keeping import Keeping
    from weigh.recipes.settings import settings

    parser.add_argument("--dtype", help="the model's number format, instead of its own")
    listed = settings(Keeping)
    add_settings(parser, listed)
    found = parser.read(words)
    if found is None:
        explain_settings(parser, listed, Keeping)
        return parser.format_help(), 0
    report = api.kv(found.model, found.dtype, **read_settings(found, listed))
    return (_json(report.as_dict()) if found.json else report.text(style(), found.explain)), 0


def _run(command: str, parser: Parser, words: Sequence[str]) -> tuple[str, int]:
    from weigh.recipes.settings import settings

    if command == "train":
        from weigh.recipes.training import Training as Recipe
    else:
        from weigh.recipes.generation import Generation as Recipe  # type: ignore[assignment]
    ways = ("purpose", "component", "layer", "owner")
    parser.add_argument("--by", default="purpose", metavar="|".join(ways), help="how else to divide the peak")
    parser.add_argument(
        "--device", metavar="NAME", help="say whether it fits (`weigh devices` lists names); exit 1 if not"
    )
    parser.add_argument("--svg", metavar="FILE", help="draw the memory over time into a file")
    parser.add_argument("--allocator", metavar="CONF", help=_ALLOCATOR)
    parser.add_argument("--segments", metavar="FILE", help="draw what the allocator has reserved at most into a file")
    parser.add_argument("--snapshot", metavar="FILE", help="write the run for PyTorch's memory visualizer")
    if command == "generate":
        parser.add_argument("--assistant", metavar="MODEL", help="a draft model for assisted decoding")
    if command == "train":
        what = (
            "the program that trains it: pytorch (a plain script), transformers, ... or with its release, NAME@VERSION"
        )
        parser.add_argument("--runtime", metavar="NAME", help=what)
        add_job(parser)
        what = "one word for what it is trained in: bf16, fp16, fp32, bf16-mixed (fp32 parameters), fp16-mixed, ..."
        parser.add_argument("--precision", metavar="WORD", help=what)
        parser.add_argument("--save-recipe", metavar="FILE", help="write the recipe that was run (.toml or .json)")
    listed = settings(Recipe)
    add_settings(parser, listed)
    found = parser.read(words)
    if found is None:
        explain_settings(parser, listed, Recipe)
        return parser.format_help(), 0
    _check_way(found.by, ways)
    words_given: dict[str, Any] = read_settings(found, listed)
    if command == "train":
        if found.precision is not None:
            words_given["precision"] = found.precision
        report: Any = api.train(found.model, found.device, found.runtime, job_of(found), **words_given)
        if found.save_recipe is not None:
            save(found.save_recipe, report.saved(found.save_recipe))
    else:
        report = api.generate(found.model, found.device, found.assistant, **words_given)
    report = _allocated(found, report)
    if found.svg is not None:
        save(found.svg, report.svg())
    code = 1 if report.fit is not None and report.fit.verdict == "no" else 0
    if found.json:
        return _json(report.as_dict(found.by)), code
    return report.text(style(), found.by, found.explain), code


def add_job(parser: Parser) -> None:
    """Options for files that say how a model is trained; what the command line says comes before them."""
    append: Any = {"action": "append", "default": [], "metavar": "FILE"}
    parser.add_argument("--recipe", help="a recipe: settings, model, runtime, device as TOML or JSON", **append)
    parser.add_argument(
        "--from", dest="job_files", help="the configuration of another program (several: --from A --from B)", **append
    )
    parser.add_argument("--from-format", metavar="NAME", help="what program it is of, where its keys do not tell")
    parser.add_argument("--ignore", metavar="KEY,...", default="", help="keys of such files to pass over")


def job_of(found: Any) -> Job | None:
    """The job that the files describe; None where none is named."""
    ignored = tuple(filter(None, found.ignore.split(",")))
    files = [api.job(path, form="weigh", ignore=ignored) for path in found.recipe]
    files += [api.job(path, form=found.from_format, ignore=ignored) for path in found.job_files]
    if not files:
        for option in ("from_format", "ignore"):
            if getattr(found, option):
                raise UsageError("there is no file to read", where=f"--{option.replace('_', '-')}", hint="Add --from.")
        return None
    from weigh.jobs import together

    return together(files)


_ALLOCATOR = (
    "say what PyTorch's allocator reserves, set as in PYTORCH_CUDA_ALLOC_CONF (expandable_segments:True,...), "
    "or `default`"
)


def _allocated(found: Any, report: Any) -> Any:
    """The report with the allocator that was asked for, and its pictures."""
    if report.run.recipe.device != "cuda":
        for name in ("allocator", "segments", "snapshot"):
            if getattr(found, name) is not None:
                raise UsageError("the CPU has no caching allocator", where=f"--{name}", hint="Leave it out.")
    if found.allocator is not None:
        from weigh.records import replace
        from weigh.trace.allocator_settings import AllocatorSettings

        conf = "" if found.allocator == "default" else found.allocator
        report = replace(report, allocator=AllocatorSettings.parse(conf))
    if found.segments is not None:
        from weigh.report.segments import draw_segments

        save(found.segments, draw_segments(report.replayed))
    if found.snapshot is not None:
        from weigh.trace.snapshot import write_snapshot

        write_snapshot(report.run.trace, found.snapshot, report.allocator)
    return report


def _check_way(way: str, ways: tuple[str, ...]) -> None:
    if way not in ways:
        from weigh.recipes.settings import did_you_mean

        raise UsageError(f"cannot divide by {way!r}", where="--by", hint=did_you_mean(way, ways))


def _json(answer: dict[str, Any]) -> str:
    import json

    return json.dumps(answer, indent=2, ensure_ascii=False)


def style() -> Style:
    """Colour and width of the terminal; plain where there is none, or where NO_COLOR asks for it (https://no-color.org)."""
    from weigh.report.text import PLAIN, Style

    if not sys.stdout.isatty():
        return PLAIN
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        width = 88
    return Style(colour, min(max(width, 60), 120))


def save(path: str, text: str) -> None:
    """Write a text file, or raise `InputError`."""
    try:
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123  pathlib is slow to import
            file.write(text)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=path, hint="Name another file.") from None
