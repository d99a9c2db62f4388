"""`weigh quantize`, `weigh dequantize`, `weigh inspect`: checkpoints rewritten and looked into."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from weigh.cli import sentence
from weigh.cli.options import Parser
from weigh.cli.weighing import style
from weigh.errors import UsageError
from weigh.quant.checkpoint import report
from weigh.quant.checkpoint.plan import SHARD, make_plan
from weigh.quant.checkpoint.rules import Rules
from weigh.quant.checkpoint.targets import GGUF, find, words
from weigh.quant.checkpoint.targets.plain import Plain
from weigh.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.quant.checkpoint.executors import Executor
    from weigh.quant.checkpoint.plan import Plan
    from weigh.quant.checkpoint.targets.base import Target

SOURCE = "a folder, .safetensors, an index, .gguf, ORG/NAME on the Hub or an address"


def answer(command: str, given: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    parser = Parser(command, sentence(command))
    if command == "inspect":
        return _inspect(parser, given)
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    if command == "quantize":
        parser.add_argument("--to", metavar="FORMAT", help=f"what to write: {', '.join(words())}")
    else:
        parser.add_argument("--dtype", metavar="DTYPE", help="number format; default: the model's own")
    parser.add_argument("--out", metavar="DIR", help="a new folder for it")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, to the byte, and do nothing")
    parser.add_argument("--tensors", action="store_true", help="every decision, tensor by tensor")
    if command == "quantize":
        _add_rules(parser)
    _add_running(parser)
    found = parser.read(given)
    if found is None:
        return parser.format_help(), 0
    if command == "dequantize":
        found.to = "plain"
        return _answer(found, _planned(found, Plain(), Rules(), found.dtype))
    if found.to is None:
        raise UsageError("is missing", where="--to", hint=f"One of: {', '.join(words())}.")
    mix = None if found.mix is None else tuple(found.mix)
    target = find(found.to, double_quantization=found.double_quantization, group=found.group, mix=mix)
    return _answer(found, _planned(found, target, Rules(tuple(found.keep), tuple(found.also))))


def _inspect(parser: Parser, given: Sequence[str]) -> tuple[str, int]:
    from weigh.quant.checkpoint.inspecting import inspect

    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=SOURCE)
    parser.add_argument("--tensors", action="store_true", help="every tensor")
    verify = "read all of it, and compare with the hashes that weigh wrote beside it; exit 1 if it is damaged"
    parser.add_argument("--verify", action="store_true", help=verify)
    found = parser.read(given)
    if found is None:
        return parser.format_help(), 0
    report_ = inspect(found.checkpoint, found.verify)
    text = (
        json.dumps(report_.as_dict(), indent=2, ensure_ascii=False)
        if found.json
        else report_.text(style(), found.tensors)
    )
    return text, 1 if report_.damaged else 0


def _add_rules(parser: Parser) -> None:
    group = parser.add_argument_group("what is quantized, and how")
    keep = "leave modules of this name or pattern as they are ('*.mlp.down_proj'); may be given again"
    group.add_argument("--keep", metavar="PATTERN", action="append", default=[], help=keep)
    also = "quantize modules although they are embeddings, output layers or routers"
    group.add_argument("--also", metavar="PATTERN", action="append", default=[], help=also)
    double = "quantize the scales too (nf4, fp4)"
    group.add_argument("--double-quantization", action="store_const", const=True, help=double)
    mix = "another type for modules of this name or pattern (GGUF: '*.down_proj=q6_k'); may be given again"
    group.add_argument("--mix", metavar="PATTERN=TYPE", action="append", type=_mixed, help=mix)
    group.add_argument("--group", metavar="N", type=int, help="weights that share a scale (w4a16, w8a16)")


def _mixed(text: str) -> tuple[str, str]:
    pattern, _, kind = text.rpartition("=")
    if not pattern or kind.lower() not in GGUF:
        raise UsageError(f"{text!r} is no pattern and type", where="--mix", hint=f"Types: {', '.join(GGUF)}.")
    return pattern, kind.lower()


def _add_running(parser: Parser) -> None:
    group = parser.add_argument_group("how it is done")
    group.add_argument("--memory", default="2GiB", help="resident memory of all processes together (default 2GiB)")
    group.add_argument("--workers", type=int, metavar="N", help="processes; default: the processors, within --memory")
    group.add_argument("--shard-size", default=str(SHARD), help="most bytes of a file (default 5GB)")
    group.add_argument("--cluster", metavar="ADDRESS", help="run on a Dask cluster that sees the same folders")


def _planned(found: Any, target: Target, rules: Rules, dtype: str | None = None) -> Plan:
    return make_plan(
        found.source,
        target,
        rules,
        memory=parse_bytes(found.memory, "--memory"),
        workers=found.workers,
        shard=parse_bytes(found.shard_size, "--shard-size"),
        dtype=dtype,
    )


def _answer(found: Any, plan: Plan) -> tuple[str, int]:
    from weigh.quant.checkpoint.timing import seconds

    if found.dry_run:
        needed = seconds(plan)
        if found.json:
            return json.dumps(report.as_dict(plan, found.to, needed), indent=2, ensure_ascii=False), 0
        return report.text(plan, found.to, needed, style(), found.tensors), 0
    if found.out is None:
        raise UsageError("is missing", where="--out", hint="Name a new folder, or look first with --dry-run.")
    return _carry_out(found, plan)


def _carry_out(found: Any, plan: Plan) -> tuple[str, int]:
    from weigh import quant

    quant.require()
    from weigh.quant.checkpoint.running import quantize

    started = monotonic()
    progress = Progress()
    try:
        out = quantize(plan, Path(found.out), _executor(found, plan), progress)
    except KeyboardInterrupt:
        progress.end()
        print("weigh: stopped. The same command goes on where it was.", file=sys.stderr)
        raise
    finally:
        progress.end()
    took = monotonic() - started
    if found.json:
        return json.dumps({**report.as_dict(plan, found.to, took), "out": str(out)}, indent=2, ensure_ascii=False), 0
    rate = plan.source_bytes / 1e9 / max(took, 1e-9)
    before, after = format_bytes(plan.source_bytes), format_bytes(plan.num_bytes)
    return f"{out}: {before} became {after} in {took:.1f} s ({rate:.2f} GB/s)", 0


def _executor(found: Any, plan: Plan) -> Executor:
    from weigh.quant.checkpoint.executors import Cluster, Here, Processes

    if found.cluster is not None:
        return Cluster(found.cluster)
    return Processes(plan.workers) if plan.workers > 1 else Here()


class Progress:
    """A bar on standard error, where that is a terminal."""

    WIDTH = 32

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.next = 0.0
        self.started = monotonic()
        self.first: int | None = None

    def __call__(self, handled: int, total: int) -> None:
        """Draw it, ten times a second at most."""
        now = monotonic()
        if self.first is None:
            self.first = handled
        if not self.shown or (now < self.next and handled < total):
            return
        self.next = now + 0.1
        full = self.WIDTH * handled // max(total, 1)
        rate = (handled - self.first) / max(now - self.started, 1e-9)
        left = f"{report.duration((total - handled) / rate)} left" if rate and handled < total else ""
        bar = "█" * full + "░" * (self.WIDTH - full)
        line = f"{bar} {format_bytes(handled)} of {format_bytes(total)}, {rate / 1e9:.2f} GB/s  {left}"
        print(f"\r{line:<88}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self.shown and self.first is not None:
            print(file=sys.stderr)
        self.shown = False
