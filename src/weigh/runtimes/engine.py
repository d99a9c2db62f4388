"""Engines: programs that serve models. One file each says how it lays out the memory of its devices as it starts.

What they share is here: the job in words that all of them understand, the model, and what a launch takes, device by
device. Nothing here knows an engine; how fast one runs is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from weigh import models
from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.ghost.state import recording
from weigh.models.layout import CROSS
from weigh.records import dataclass, field

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.hardware import Device
    from weigh.models.common import CausalModel
    from weigh.models.layout import LayerCache
    from weigh.recipes.settings import Text
    from weigh.sources.source import Source

ENGINES = {
    "llama.cpp": "weigh.runtimes.llama_cpp",
    "lm-studio": "weigh.runtimes.lm_studio",
    "ollama": "weigh.runtimes.ollama",
    "sglang": "weigh.runtimes.sglang",
    "tensorrt-llm": "weigh.runtimes.tensorrt_llm",
    "vllm": "weigh.runtimes.vllm",
}
"""Name -> the module that describes it, as `ENGINE`."""

EXACT, MODELLED, ASSUMED = "exact", "modelled", "assumed"
"""How far a part can be trusted; the words of `weigh.report.assumption`."""

WEIGHTS, KV_CACHE, STATES, ACTIVATIONS, OVERHEAD = "weights", "KV cache", "recurrent states", "activations", "overhead"
"""What a part is of; every engine's parts are one of these."""


@dataclass(frozen=True, slots=True)
class ServeJob:
    """What is asked of an engine, in words that all of them share."""

    context: int | None = None
    """Tokens of a request at most, its answer included; the model's own where nobody says. Several (1k,8k, 1k..64k
    doubled each time, 400..8000+400 in steps) make a table."""
    concurrency: int = 1
    """Requests at once; several (1,8,64, 1..256, 1..96+5) make a table."""
    dtype: Text = "auto"
    """Number format of the weights and the arithmetic; "auto" is the model's own."""
    kv_dtype: Text = "auto"
    """Number format of keys and values ("fp8", "q8_0"), or of each ("q8_0,f16"); "auto" is the model's."""
    quantization: Text | None = None
    """How the weights are stored, where that is not what the model comes in: a method, as the engine names it."""
    tensor: int = 1
    """Ranks that share every layer (tensor parallelism)."""
    pipeline: int = 1
    """Stages, each with some of the layers."""
    data: int = 1
    """Replicas, each with requests of its own."""
    expert: bool = False
    """Whole experts on the ranks, instead of a slice of every expert (expert parallelism)."""

    @property
    def ranks(self) -> int:
        """Devices that it takes."""
        return self.tensor * self.pipeline * self.data


class Served:
    """The model that is served, built once however many jobs it is weighed for."""

    def __init__(self, source: Source, dtype: DType, draft: Served | None = None) -> None:
        self.source = source
        self.dtype = dtype
        """Of the weights that are not quantized, and of the arithmetic."""
        self.draft = draft
        """The model that proposes tokens, where one is named."""
        self.memo: dict[object, Any] = {}
        """What engines have worked out of it, for other jobs and devices."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The keys of its `config.json`."""
        return self.source.config

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """Those of its language model."""
        return models.language_config(self.source.config)

    @cached_property
    def model(self) -> CausalModel:
        """It, on ghost tensors in `dtype`."""
        with recording():
            return models.build(self.source.config, self.dtype, self.source.where)

    @cached_property
    def layers(self) -> tuple[LayerCache, ...]:
        """What each layer keeps."""
        return self.model.cache_layout()

    @cached_property
    def longest(self) -> int | None:
        """Tokens that the model is made for; None where its config does not say."""
        keys = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_target_positions")
        return next((self.text_config[key] for key in keys if isinstance(self.text_config.get(key), int)), None)

    @property
    def hidden(self) -> int:
        """The width of its hidden states."""
        keys = ("hidden_size", "n_embd", "d_model")
        return next((self.text_config[key] for key in keys if isinstance(self.text_config.get(key), int)), 0)

    @property
    def experts_per_token(self) -> int:
        """Experts that a token goes through; 0 where there are none."""
        keys = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
        return next((self.text_config[key] for key in keys if isinstance(self.text_config.get(key), int)), 0)


def check_limits(served: Served, context: int | None, ranks: int) -> None:
    """What every engine refuses.

    Raises:
        UsageError: more tokens than the model is made for, or ranks that cannot share its heads.
    """
    if context is not None and served.longest is not None and context > served.longest:
        what = f"{context:,} tokens are more than the model's {served.longest:,}"
        raise UsageError(what, where="context", hint="Give fewer, or scale its positions in the config.")
    heads = served.text_config.get("num_attention_heads") or served.text_config.get("n_head")
    if isinstance(heads, int) and heads % ranks:
        what = f"{ranks} ranks cannot share {heads} attention heads"
        raise UsageError(what, where="tensor", hint="Take a divisor of the heads.")


def check_cache(served: Served, kv_dtype: str, engine: str, others: Sequence[str] = (), reads: bool = False) -> None:
    """What engines of PyTorch refuse or are not described to keep.

    `others` are formats beside the usual ones; `reads` says that it keeps what an encoder of constant length said.

    Raises:
        NotModelledError: layers attend to an encoder, or none attends to anything.
        UsageError: a format that they do not keep keys and values in.
    """
    if any(layer.kind == CROSS and not (reads and layer.window) for layer in served.layers):
        raise NotModelledError(f"the cache of cross attention in {engine}", where=served.source.name)
    if kv_dtype in others:
        return
    for one in kv_dtypes(kv_dtype, served):
        if one.name not in (*KV_FORMATS, *others):
            hint = f"It keeps them in {', '.join((*KV_FORMATS, *others))}."
            raise UsageError(f"{engine} has no cache in {one.name}", where="kv_dtype", hint=hint)


KV_FORMATS = ("bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2")
"""What vLLM, SGLang and TensorRT-LLM keep keys and values in."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the engine runs on."""

    device: Device | None
    """Of the catalogue; None where none is named."""
    count: int = 1
    known_bytes: int | None = None
    """Memory of one of them, where that is all that is known."""

    @property
    def memory_bytes(self) -> int | None:
        """Of one device, as programs see it."""
        if self.known_bytes is not None:
            return self.known_bytes
        if self.device is None:
            return None
        return self.device.memory_bytes - (self.device.reserved_bytes or 0)


class Part(NamedTuple):
    """Some of what a device holds."""

    what: str
    """In a few words: "KV cache", "rotary tables"."""
    of: str
    """`WEIGHTS`, `KV_CACHE`, ..."""
    num_bytes: int
    basis: str
    """`EXACT`, `MODELLED` or `ASSUMED`."""
    source: str
    """By what rule, and where that is read."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one device holds. Devices that hold the same are one share."""

    device: str
    """ "GPU 0", "GPU 0 to 7", "CPU"."""
    memory_bytes: int | None
    """What there is; None where no device is named."""
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """All together."""
        return sum(part.num_bytes for part in self.parts)

    def of(self, kind: str) -> int:
        """Bytes of one kind."""
        return sum(part.num_bytes for part in self.parts if part.of == kind)

    @property
    def free(self) -> int | None:
        """What is left; negative where it does not fit."""
        return None if self.memory_bytes is None else self.memory_bytes - self.num_bytes


@dataclass(frozen=True)
class Launch:
    """An engine that has started."""

    shares: tuple[Share, ...]
    demand: Callable[[int, int], int]
    """Bytes of keys, values and states (and of whatever else grows with them) on the fullest device, for requests of so
    many tokens and so many of them."""
    supply: int | None
    """Bytes that there are for them on that device; None where no device is named."""
    longest: int | None
    """Tokens beyond which a request is refused, however much room there is."""
    tokens: int | None = None
    """Tokens that the cache has room for, as the engine prints it; None where it has as many as are asked for."""
    blocks: int | None = None
    """Blocks (pages) of the cache, as the engine prints it."""
    block_size: int = 1
    """Tokens of a block."""
    printed: Mapping[str, int] = field(default_factory=dict)
    """Other figures that the engine's log has, by the name under which measured cases have them."""
    assumptions: tuple[tuple[str, str, str], ...] = ()
    """What was taken for granted: what, why, and what it does to the figures."""
    weights: str | None = None
    """What the weights are stored in, where that is not the model's dtype: "Q4_K_M"."""
    most_sequences: int | None = None
    """Requests at once beyond which others wait (`--max-num-seqs`, `--parallel`)."""
    kv_dtype: str | None = None
    """The number format that comes nearest to an engine's own one of keys and values, where the job names such."""
    at_host: bool = False
    """Some of the layers, or of what they keep, are in host memory."""
    routed: int = 0
    """Bytes of the shares' weights that are of experts, of which a token goes through some."""

    def fits(self, context: int, concurrency: int) -> bool | None:
        """Whether there is room for so many requests of so many tokens; None where no device is named."""
        return None if self.supply is None else self.demand(context, concurrency) <= self.supply

    def most_users(self, context: int) -> int | None:
        """Requests of so many tokens that there is room for; None where no device is named, or nothing is kept."""
        if not self.demand(context, 1):
            return None
        return None if self.supply is None else _last(lambda n: self.demand(context, n), self.supply)

    def longest_context(self, concurrency: int) -> int | None:
        """Tokens that each of so many requests can have; None where no device is named."""
        if self.supply is None:
            return None
        return _last(lambda n: self.demand(n, concurrency), self.supply, self.longest)


def _last(need: Callable[[int], int], supply: int, limit: int | None = None) -> int:
    """The last whole number from 0 whose need is met, where needs never fall.

    Needs grow nearly evenly and take time to find: the next that is asked for is where two others point to, and every
    third twice as many or the middle.

    >>> _last(lambda n: n * n, 50), _last(lambda n: n, 9, 4), _last(lambda n: 100 * n, 99)
    (7, 4, 0)
    """
    low, high, turn = (0, 0), (2**40 if limit is None else limit + 1, NEVER), 0
    before, at = low, 1
    while high[0] - low[0] > 1:
        needed = need(at)
        if needed <= supply:
            before, low = low, (at, needed)
        else:
            high = at, needed
        turn += 1
        first, second = (before, low) if high[1] >= NEVER else (low, high)
        rise, run = second[1] - first[1], second[0] - first[0]
        if turn % 3 == 0 or not rise:
            at = min(2 * low[0], (low[0] + high[0]) // 2)
        else:
            at = low[0] + (supply - low[1]) * run // rise
        at = max(low[0] + 1, min(at, high[0] - 1))
    return low[0]


NEVER = 2**62
"""Bytes that there never are."""


class Engine(ABC):
    """A program that serves models."""

    name: ClassVar[str]
    versions: ClassVar[tuple[str, ...]]
    """Releases whose sources were read."""
    told_ranks: ClassVar[bool] = True
    """Devices share a model only by ranks that it is told of; else it divides the layers among all that it sees."""
    options: ClassVar[type]
    """Its own settings, a frozen dataclass: fields in the engine's words, as its command line spells them."""

    def devices(self, job: ServeJob, options: Any) -> int:
        """Devices that a job takes."""
        return job.ranks

    @classmethod
    def unread(cls, version: Version) -> Iterator[tuple[str, str, str]]:
        """That a release's source was not read."""
        if not version.read:
            what = f"{cls.name} {version} does as the releases that were read"
            yield what, f"sources were read of {', '.join(cls.versions)}", "defaults and buffers may differ"

    @abstractmethod
    def launch(self, served: Served, job: ServeJob, options: Any, place: Place, version: Version) -> Launch:
        """What it takes to start.

        Raises:
            NotModelledError: the job asks for what is not described.
            UsageError: the engine refuses the job: ranks that cannot share the heads, an unknown format.
        """


class Version(NamedTuple):
    """A release of an engine."""

    numbers: tuple[int, ...]
    """(0, 21) is 0.21."""
    read: bool
    """Whether its source was read, or that of others whose figures are taken for it."""

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers))


def named(text: str) -> tuple[Engine, Version]:
    """An engine and its release, as people write them: "vllm", "vllm@0.21".

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: the release is no version.
    """
    name, _, release = text.partition("@")
    if name == "transformers":
        hint = "`weigh generate` weighs its `generate`, batch by batch."
        raise UsageError("transformers has no server that is described", where="runtime", hint=hint)
    if name not in ENGINES:
        raise UnknownNameError("runtime", name, ENGINES)
    engine: Engine = import_module(ENGINES[name]).ENGINE
    return engine, version(engine, release)


def version(engine: Engine, release: str = "") -> Version:
    """A release in numbers: the newest that was read where none is named.

    Raises:
        UsageError: it is no version.
    """
    release = release.removeprefix("v") or engine.versions[-1]
    numbers = []
    for part in release.split("."):
        digits = part[: next((i for i, c in enumerate(part) if not c.isdecimal()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    if not numbers:
        raise UsageError(f"{release!r} is no release", where="runtime", hint=f'Write it as "{engine.name}@0.21".')
    read = any(tuple(numbers[: len(known)]) == known for known in map(_numbers, engine.versions))
    return Version(tuple(numbers), read)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def kv_dtypes(spelled: str, served: Served) -> tuple[DType, DType]:
    """The formats of keys and of values.

    Raises:
        UsageError: there is no such format.
    """
    from weigh.recipes.keeping import key_value_dtypes

    return key_value_dtypes(spelled, served.dtype)
