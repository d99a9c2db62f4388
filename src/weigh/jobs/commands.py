"""Command lines of serving programs: read as their own parsers read them, and written back for one another.

Nothing is run. Every flag is used, known not to matter to memory, refused because it matters and is not modelled, or
unknown, with the nearest names. One file a program has its table of flags.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from weigh.errors import NotModelledError, UsageError, suggest
from weigh.records import dataclass, field

PROGRAMS = {
    "llama.cpp": "weigh.jobs.llama_cpp",
    "sglang": "weigh.jobs.sglang",
    "tensorrt-llm": "weigh.jobs.tensorrt_llm",
    "vllm": "weigh.jobs.vllm",
}
"""Engine -> the module with its `COMMAND`."""

NUMBER, TOKENS, REAL, WORD, TRUE, FALSE, JSON = "number", "tokens", "real", "word", "true", "false", "json"
MAYBE, LARGEST, WORDS, FILE = "maybe", "largest", "words", "file"
"""What stands behind a flag; TRUE and FALSE stand alone and set their word to that, MAYBE is a word or stands alone,
LARGEST takes the largest of several numbers, WORDS are several, and FILE is read, and counts more than flags."""

THOUSANDS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""What vLLM's parser takes letters behind a number for (`engine/arg_utils.py: human_readable_int`)."""


class Flag(NamedTuple):
    """An option that is used."""

    word: str
    """The setting of the job, or of the engine; "model" and "draft" are the models."""
    kind: str = NUMBER


ALLOCATOR = {name: Flag("alloc_conf", WORD) for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")}
"""Variables that set PyTorch's caching allocator."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a program's command line is read and written."""

    engine: str
    starts: tuple[str, ...]
    """What such a line begins with: "vllm serve"."""
    flags: Mapping[str, Flag]
    """By their names, the usual one first of those that set the same word."""
    harmless: frozenset[str]
    """Flags that do not matter to memory."""
    alone: frozenset[str] = frozenset()
    """Those of them that take no value."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Flags that matter and are not modelled, and what they ask for."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that stand for flags: what their names begin with, or are, and what takes that place."""
    variables: Mapping[str, Flag] = field(default_factory=dict)
    """Variables of its environment that are used and have no flag, the usual one first of those that say the same."""
    positional_model: bool = False
    """The first word that is no option is the model."""
    underscores: bool = False
    """Its flags are spelled with "_" where the table has "-"."""

    def names(self) -> list[str]:
        """Every flag that is known."""
        return [*self.flags, *self.harmless, *self.refused]


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What a command line says."""

    engine: str
    model: str | None
    draft: str | None
    words: dict[str, Any]
    """Settings by name, as plain values."""
    used: tuple[str, ...]
    harmless: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: which flags had which fate."""
        return {"engine": self.engine, "used": list(self.used), "harmless": list(self.harmless)}


def read(words: Sequence[str]) -> ServeCommand:
    r"""What a command line says, in words or as one text.

    >>> read("vllm serve Qwen/Qwen3-8B -tp 2 --max-model-len=16k --port 8000".split()).words
    {'tensor': 2, 'context': 16000}

    Raises:
        NotModelledError: a flag matters and is not modelled.
        UsageError: it is none of a program that is known, a flag is unknown, or its value is wrong.
    """
    if len(words) == 1:
        try:
            words = shlex.split(words[0].replace("\\\n", " "))
        except ValueError as error:
            raise UsageError(f"does not parse: {error}", where="the command", hint="Close the quotes.") from None
    assigned, words = _assignments(words)
    program, rest = _program(words)
    reading = _Reading(program)
    for name, flag in program.variables.items():
        if name in assigned:
            reading.words[flag.word] = _value(assigned[name], flag.kind, name)
            reading.used.append(name)
    return reading.read([*_from_environment(program, assigned), *rest])


def _assignments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`NAME=value` before the program sets the environment; and the words from the program on."""
    found, assigned = list(words), {}
    while found and "=" in found[0] and not found[0].startswith("-") and found[0].partition("=")[0].isidentifier():
        name, _, value = found.pop(0).partition("=")
        assigned[name] = value
    return assigned, found


def _from_environment(one: Command, assigned: Mapping[str, str]) -> list[str]:
    """Variables as the flags that they stand for; flags behind them count more."""
    words = []
    for name, value in assigned.items():
        start = next((start for start in one.environment if name.startswith(start)), None)
        if start is None:
            continue
        flag = one.environment.get(name) or one.environment[start] + name.removeprefix(start).lower().replace("_", "-")
        known = one.flags.get(flag)
        if known is not None and known.kind in (TRUE, FALSE) and value.lower() in ("0", "off", "false", "disabled"):
            continue
        alone = flag in one.alone or (known is not None and known.kind in (TRUE, FALSE))
        words += [flag] if alone else [flag, value]
    return words


def program(engine: str) -> Command:
    """How an engine's command line is read and written."""
    found: Command = import_module(PROGRAMS[engine]).COMMAND
    return found


def _program(words: Sequence[str]) -> tuple[Command, list[str]]:
    text = [word.rpartition("/")[2] if index == 0 else word for index, word in enumerate(words)]
    if text and text[0].startswith("python"):
        text[0] = "python"
    for engine in PROGRAMS:
        one = program(engine)
        for start in sorted(one.starts, key=len, reverse=True):
            parts = start.split()
            if text[: len(parts)] == parts:
                return one, list(words[len(parts) :])
    known = ", ".join(start for engine in PROGRAMS for start in program(engine).starts[:1])
    what = f"{' '.join(words[:2])!r} starts no program that is known" if words else "is empty"
    raise UsageError(what, where="the command", hint=f"Known: {known}.")


class _Reading:
    def __init__(self, one: Command) -> None:
        self.one = one
        self.words: dict[str, Any] = {}
        self.of_files: dict[str, Any] = {}
        self.models: dict[str, str] = {}
        self.used: list[str] = []
        self.harmless: list[str] = []

    def read(self, rest: list[str]) -> ServeCommand:
        at = 0
        while at < len(rest):
            word = rest[at]
            at += 1
            if not word.startswith("-") or word[1:2].isdecimal():
                self._positional(word)
                continue
            name, sign, value = word.partition("=")
            name, negated = self._named(name)
            takes = not negated and self._takes_value(name, rest[at : at + 1])
            if takes and not sign:
                if at >= len(rest):
                    raise UsageError("has no value", where=name, hint="Put it behind.")
                value, at = rest[at], at + 1
                flag = self.one.flags.get(name)
                if name in self.one.harmless or (flag is not None and flag.kind in (LARGEST, WORDS)):
                    while at < len(rest) and not rest[at].startswith("-"):  # lists of words
                        value, at = f"{value} {rest[at]}", at + 1
            self._take(name, value, negated)
        return ServeCommand(
            self.one.engine,
            self.models.get("model"),
            self.models.get("draft"),
            self.words | self.of_files,
            tuple(self.used),
            tuple(self.harmless),
        )

    def _positional(self, word: str) -> None:
        if not self.one.positional_model or "model" in self.models:
            raise UsageError(f"does not know what {word!r} is for", where=self.one.engine, hint="Name it by a flag.")
        self.models["model"] = word

    def _named(self, spelled: str) -> tuple[str, bool]:
        """The flag in its usual spelling, and whether it begins with "no-"."""
        dotted, dot, key = spelled.partition(".")
        dotted = "--" + dotted[2:].replace("_", "-") if dotted.startswith("--") else dotted
        plain, names = f"{dotted}{dot}{key}", self.one.names()
        for name, negated in ((plain, False), (dotted, False), (plain.replace("--no-", "--", 1), True)):
            if name in names and (not negated or plain.startswith("--no-")):
                return (plain if name == dotted and "." in plain else name), negated
        begin = [name for name in names if name.startswith(plain)] if plain.startswith("--") else []
        if len(begin) == 1:
            return begin[0], False
        near = suggest(plain, names)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"{self.one.engine} has no such flag."
        raise UsageError(f"there is no flag {spelled!r}", where=self.one.engine, hint=hint)

    def _takes_value(self, name: str, following: list[str]) -> bool:
        flag = self.one.flags.get(name.partition(".")[0])
        if flag is not None and flag.kind == MAYBE:
            return bool(following) and not following[0].startswith("-")
        if flag is not None:
            return flag.kind not in (TRUE, FALSE)
        return name not in self.one.alone

    def _take(self, name: str, value: str, negated: bool) -> None:
        base, _, key = name.partition(".")
        if base in self.one.refused:
            raise NotModelledError(self.one.refused[base], where=f"{self.one.engine} {base}")
        flag = self.one.flags.get(base)
        if flag is None:
            self.harmless.append(name)
            return
        self.used.append(name)
        if flag.kind in (TRUE, FALSE):
            self.words[flag.word] = (flag.kind == TRUE) != negated
        elif flag.kind == JSON:
            self._document(base, flag, {key: value} if key else value)
        elif flag.kind == FILE:
            from weigh.jobs.documents import load

            self.of_files |= import_module(PROGRAMS[self.one.engine]).document(base[2:], load(value).keys)[0]
        elif flag.kind == MAYBE:
            self.words[flag.word] = "off" if negated else value or "on"
        elif flag.word in ("model", "draft"):
            self.models[flag.word] = value
        elif flag.word == "expert_ranks":
            self.words["expert"] = _value(value, flag.kind, base) > 1
        elif (found := _value(value, flag.kind, base)) is not None and not (isinstance(found, int) and found < 0):
            self.words[flag.word] = found

    def _document(self, name: str, flag: Flag, value: Any) -> None:
        """A flag whose value is JSON, or one key of it behind a dot."""
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise UsageError(f"is no JSON ({error})", where=name, hint="Give an object in quotes.") from None
        if not isinstance(found, dict):
            raise UsageError("is no object", where=name, hint="Write it as '{\"key\": value}'.")
        module = import_module(PROGRAMS[self.one.engine])
        words, models = module.document(flag.word, found)
        self.words |= words
        self.models |= models


def _value(text: str, kind: str, where: str) -> Any:
    if kind in (WORD, WORDS):
        return text
    if kind == LARGEST:
        return max(_value(one, NUMBER, where) for one in text.replace(",", " ").split())
    if kind == TOKENS and text in ("auto", "-1"):
        return None
    try:
        if kind == REAL:
            return float(text)
        scale = THOUSANDS.get(text[-1:], 1) if kind == TOKENS else 1
        number = float(text[:-1]) * scale if scale > 1 else int(text)
        return int(number)
    except ValueError:
        raise UsageError(f"{text!r} is no number", where=where, hint="Give a number.") from None


SAME: tuple[Mapping[str, str], ...] = (
    {
        "vllm": "max_num_seqs",
        "sglang": "max_running_requests",
        "llama.cpp": "concurrency",
        "tensorrt-llm": "max_batch_size",
    },
    {"vllm": "context", "sglang": "context", "tensorrt-llm": "context", "llama.cpp": "ctx_size"},
    {"vllm": "max_num_batched_tokens", "sglang": "chunked_prefill_size", "tensorrt-llm": "max_num_tokens"},
    {"vllm": "enforce_eager", "sglang": "disable_cuda_graph"},
    {"vllm": "num_speculative_tokens", "sglang": "num_draft_tokens"},
    {"vllm": "speculative_method", "sglang": "speculative_algorithm"},
    {"vllm": "block_size", "sglang": "page_size", "tensorrt-llm": "tokens_per_block"},
    {"vllm": "cpu_offload_gb", "sglang": "cpu_offload_gb"},
    {"vllm": "max_loras", "sglang": "max_loras_per_batch"},
    {"vllm": "num_redundant_experts", "sglang": "ep_num_redundant_experts"},
    {"vllm": "eplb_window_size", "sglang": "expert_distribution_recorder_buffer_size"},
    {"vllm": "mamba_ssm_cache_dtype", "sglang": "mamba_ssm_dtype"},
    {"vllm": "disable_hybrid_kv_cache_manager", "sglang": "disable_hybrid_swa_memory"},
)
"""Settings that engines have under names of their own."""


VALUES: Mapping[tuple[str, str], Mapping[str, str | None]] = {
    ("sglang", "kv_dtype"): {"fp8": "fp8_e4m3", "nvfp4": "fp4_e2m1", "fp8_ds_mla": "fp8_e4m3"}
    | dict.fromkeys(("int8_per_token_head", "fp8_per_token_head", "int4_per_token_head")),
    ("vllm", "kv_dtype"): {"fp4_e2m1": "nvfp4"},
    ("tensorrt-llm", "kv_dtype"): dict.fromkeys(("fp8_e5m2", "fp8_ds_mla"))
    | {"fp8_e4m3": "fp8", "fp4_e2m1": "nvfp4", "bfloat16": "auto"}
    | dict.fromkeys(("int8_per_token_head", "fp8_per_token_head", "int4_per_token_head")),
    ("sglang", "speculative_method"): {"mtp": "NEXTN", "eagle": "EAGLE", "eagle3": "EAGLE3", "ngram": "NGRAM"}
    | {"draft_model": "STANDALONE"},
    ("vllm", "speculative_algorithm"): {"NEXTN": "mtp", "EAGLE": "eagle", "EAGLE3": "eagle3", "NGRAM": "ngram"}
    | {"STANDALONE": "draft_model"},
}
"""Words that an engine has for another one's; None where it has none."""


def write(
    engine: str, model: str, words: Mapping[str, Any], of: str, draft: str | None = None, shares_experts: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The command line of an engine for settings of another one (`of`), and the settings that it has no flag for.

    `shares_experts`: the replicas of vLLM (`data`) have the experts of the model between them.

    >>> write("sglang", "gpt2", {"tensor": 2, "max_num_seqs": 64, "block_size": 32}, "vllm")[0]
    'python -m sglang.launch_server --model-path gpt2 --tp-size 2 --max-running-requests 64 --page-size 32'
    """
    one = program(engine)
    by_word: dict[str, tuple[str, Flag]] = {}
    for name, flag in one.flags.items():
        by_word.setdefault(flag.word, (name, flag))
    said, left = [*one.starts[0].split()], []
    variables = {flag.word: name for name, flag in reversed([*one.variables.items()])}
    said = [f"{variables[word]}={value}" for word, value in words.items() if value and word in variables] + said
    said += [model] if one.positional_model else [by_word["model"][0], model]
    if draft is not None and "draft" in by_word:
        said += [by_word["draft"][0], draft]
    elif draft is not None:
        left.append("draft")
    words = words if engine == of else _meant(words, of, engine, draft, shares_experts)
    for word, value in words.items():
        if value is None or word in variables:
            continue
        name = next((row.get(engine, word) for row in SAME if row.get(of) == word), word)
        if name == "expert" and "expert_ranks" in by_word:
            ranks = int(words.get("tensor") or 1)
            said += [_spelled(one, by_word["expert_ranks"][0]), str(ranks)] if value and ranks > 1 else []
            continue
        meant = VALUES.get((engine, word), {}).get(str(value), value)
        if name not in by_word or meant is None:
            left.append(word)
            continue
        spelled, flag = by_word[name]
        if flag.kind in (TRUE, FALSE):
            said += [spelled] if value == (flag.kind == TRUE) else []
        elif flag.kind == WORDS:
            said += [spelled, *str(value).split()]
        elif flag.kind not in (JSON, FILE):
            said += [_spelled(one, spelled), str(meant)]
            if spelled == "--speculative-num-draft-tokens" and engine != of:  # it wants all three of them
                said += ["--speculative-num-steps", str(meant - 1), "--speculative-eagle-topk", "1"]
    return shlex.join(said), tuple(left)


def _spelled(one: Command, name: str) -> str:
    return "--" + name[2:].replace("-", "_") if one.underscores and name.startswith("--") else name


def _meant(
    words: Mapping[str, Any], of: str, engine: str, draft: str | None, shares_experts: bool
) -> Mapping[str, Any]:
    """Settings of one engine whose numbers another one counts otherwise.

    SGLang's data-parallel attention divides the ranks that `tensor` counts, vLLM's replicas multiply them; SGLang
    counts the token that is checked among a draft's.
    """
    found = dict(words)
    tensor, data = int(found.get("tensor") or 1), int(found.get("data") or 1)
    if of == "sglang" and found.get("enable_dp_attention") and engine == "vllm":
        found.pop("enable_dp_attention")
        found |= {"tensor": tensor // data}
    if of == "vllm" and engine == "sglang" and data > 1 and shares_experts:
        found |= {"tensor": tensor * data, "enable_dp_attention": True}
    steps, _ = found.pop("speculative_num_steps", None), found.pop("speculative_eagle_topk", None)
    if of == "sglang" and steps:
        found["num_draft_tokens"] = steps + 1
    drafts = found.get("num_draft_tokens" if of == "sglang" else "num_speculative_tokens")
    if of == "sglang" and engine == "vllm" and drafts:
        found["num_draft_tokens"] = drafts - 1
    if of == "vllm" and engine == "sglang" and drafts:
        found["num_speculative_tokens"] = drafts + 1
    if of == "sglang" and draft is None and str(found.get("speculative_algorithm")).upper() == "EAGLE":
        found["speculative_algorithm"] = "NEXTN"
    return found
