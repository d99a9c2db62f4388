"""The command line: `weigh COMMAND ...`. It reads words, calls `weigh.api`, prints, and holds nothing of substance.

Answers go to standard output, complaints to standard error. Exit codes: 0 answered (and it fits, where a device was
named), 1 does not fit, 2 wrong usage, 3 unreadable input.
"""

from __future__ import annotations

import gc
import os
import sys

from weigh import __version__
from weigh.errors import UsageError, WeighError

TYPE_CHECKING = False  # type checkers take it for typing's; importing typing would cost more than this module
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "params": ("weighing", "how many parameters a model has, and what they weigh"),
    "kv": ("weighing", "what the keys, values and states of sequences take"),
    "compare": ("comparing", "two models, or two saved traces, side by side"),
    "train": ("weighing", "what training it takes, moment by moment"),
    "generate": ("weighing", "what generating with it takes"),
    "serve": ("serving", "what serving it takes in vLLM and other engines: contexts, users"),
    "trace": ("measuring", "the same by real PyTorch on fake tensors, beside the prediction"),
    "measure": ("measuring", "the same by real PyTorch for real, beside the prediction"),
    "lab": ("laboratory", "techniques at work in real trainings of a small model"),
    "snapshot": ("snapshotting", "what a memory snapshot of PyTorch shows, beside the prediction"),
    "quantize": ("quantizing", "rewrite a checkpoint in fewer bits, whatever its architecture"),
    "dequantize": ("quantizing", "write a quantized checkpoint in plain numbers again"),
    "inspect": ("quantizing", "how a checkpoint's tensors are stored, and whether its bytes are whole"),
    "errors": ("erring", "what formats do to a checkpoint's values: errors tensor by tensor"),
    "outliers": ("erring", "what one large value does to int8; the outlier features of inputs"),
    "dtypes": ("lists", "the number formats: bytes, ranges, precision"),
    "models": ("lists", "the models that are known by name"),
    "devices": ("lists", "the devices that are known by name"),
    "rules": ("ruling", "rules of thumb beside the exact answers"),
    "scaling": ("scaling", "sizes, tokens and budgets by the scaling laws"),
    "validate": ("validating", "predictions beside recorded runs or measurements"),
}
"""Every command: the module that answers it, and what it says."""

_HELP = """\
weigh: how much memory a language model needs, exactly and without a GPU.

usage: weigh COMMAND ...

{commands}

  weigh params gpt2
  weigh kv llama-3-8b --context 32k --concurrency 16 --kv-dtype fp8
  weigh train llama-2-7b --dtype bf16 --batch 4 --sequence 4k --checkpointing full --device h100
  weigh serve llama-3-8b --runtime vllm --device h100 --context 32k --concurrency 64
  weigh generate path/to/config.json --prompt 8k --explain

Every command takes --json and --help. Exit codes: 0 answered, and fits where a device is named; 1 does not fit;
2 wrong usage; 3 unreadable input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    gc.set_threshold(100_000, 50, 50)  # a sixth of a short run went into looking for garbage that it does not make
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        text, code = _answer(words)
    except WeighError as error:
        print(f"weigh: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return _write(text, code)


def _answer(words: list[str]) -> tuple[str, int]:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS)) + 2
        commands = "\n".join(f"  {name:{width}}{says}" for name, (_, says) in COMMANDS.items())
        return _HELP.format(commands=commands), 0
    if words[0] in ("-V", "--version"):
        return f"weigh {__version__}\n", 0
    command = words[0]
    if command not in COMMANDS:
        raise _unknown(command)
    from importlib import import_module

    answer: tuple[str, int] = import_module(f"weigh.cli.{COMMANDS[command][0]}").answer(command, words[1:])
    return answer


def sentence(command: str) -> str:
    """What a command says, as a sentence."""
    says = COMMANDS[command][1]
    return f"{says[0].upper()}{says[1:]}."


def _unknown(command: str) -> UsageError:
    from weigh.errors import suggest

    near = suggest(command, COMMANDS)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Commands: {', '.join(COMMANDS)}."
    what = "option" if command.startswith("-") else "command"
    return UsageError(f"there is no {what} {command!r}", hint=hint)


def _write(text: str, code: int) -> int:
    """Print the answer; a reader that has seen enough (`| head`) is no error."""
    try:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
