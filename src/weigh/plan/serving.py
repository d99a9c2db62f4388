"""When serving does not fit: single changes that are tried by launching with each, and which quantization to choose.

Nothing is estimated: every change is a launch with other settings. What it saves is how much less it is short of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from weigh.errors import WeighError
from weigh.records import dataclass
from weigh.runtimes.engine import WEIGHTS, Launch, ServeJob

SHOWN = 8
"""Changes that are shown at most."""
GIB = 2**30


class Change(NamedTuple):
    """Other settings."""

    what: str
    """In words: "keys and values in fp8"."""
    words: Mapping[str, Any]
    price: str
    """What it asks for."""
    own: bool = True
    """Of the engine's settings: neither more devices nor fewer requests nor shorter ones."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A launch with a change."""

    change: Change
    saving: int
    """Bytes on the fullest device."""
    short: int
    """Bytes that are still missing there; 0 where it fits."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "change": self.change.what,
            "settings": dict(self.change.words),
            "price": self.change.price,
            "saving_bytes": self.saving,
            "short_bytes": self.short,
        }


def missing(launch: Launch, context: int, users: int, engine: str) -> int:
    """Bytes that the fullest device lacks for so many requests of so many tokens; negative: that it has to spare."""
    assert launch.supply is not None
    over = max((-share.free for share in launch.shares if share.free is not None), default=0)
    if engine in AS_ASKED:
        return over
    lacks = launch.demand(context, users) - launch.supply
    return max(over, lacks) if over > 0 else lacks  # a cache that takes what is left leaves nothing to compare


def short_of(launch: Launch, context: int, users: int, engine: str) -> int:
    """Bytes that are missing; 0 where it fits."""
    return max(0, missing(launch, context, users, engine))


AS_ASKED = ("llama.cpp", "lm-studio", "ollama")
"""Engines whose cache is as large as the requests need; others give it what is left."""


def remedies(
    job: ServeJob,
    engine: str,
    launch: Launch,
    context: int,
    again: Callable[[Mapping[str, Any]], tuple[Launch, ServeJob]],
    is_quantized: bool = False,
) -> list[Outcome]:
    """What single changes save, those that make it fit first, then by what they save.

    A checkpoint that `is_quantized` stays as it is: engines cannot quantize it once more.
    """
    before = missing(launch, context, job.concurrency, engine)
    found = []
    for change in _changes(job, engine, launch, context, max(0, before)):
        if is_quantized and "quantization" in change.words and engine != "llama.cpp":
            continue
        try:
            made, other = again(change.words)
        except WeighError:  # the engine, the model or the device rules it out
            continue
        after = missing(made, other.context or context, other.concurrency, engine)
        if after < before:
            found.append(Outcome(change, before - after, max(0, after)))
    enough = [one for one in found if not one.short]
    others = sorted((one for one in found if one.short), key=lambda one: -one.saving)
    both = _together([one for one in others if one.change.own], engine, before, context, again)
    return [*enough, *both, *others][:SHOWN]


def _together(
    others: Sequence[Outcome],
    engine: str,
    before: int,
    context: int,
    again: Callable[[Mapping[str, Any]], tuple[Launch, ServeJob]],
) -> list[Outcome]:
    """Changes that save most, one after another until it fits; of settings that exclude each other the first."""
    words: dict[str, Any] = {}
    said: list[Change] = []
    for one in others:
        if set(one.change.words) & set(words):
            continue
        words |= one.change.words
        said.append(one.change)
        try:
            made, job = again(words)
        except WeighError:
            return []
        after = missing(made, job.context or context, job.concurrency, engine)
        if after <= 0 and len(said) > 1:
            what, price = (" + ".join(c.what for c in said), " + ".join(c.price for c in said))
            return [Outcome(Change(what, words, price), before - after, 0)]
    return []


def _changes(job: ServeJob, engine: str, launch: Launch, context: int, short: int) -> Iterator[Change]:
    """In the order of what they ask of a user."""
    if engine == "vllm":
        yield Change("steps of 2,048 tokens", {"max_num_batched_tokens": 2048}, "long prompts take more steps")
        requests = max(1, job.concurrency)
        yield Change(f"{requests} request{'s' * (requests > 1)} in a step", {"max_num_seqs": requests}, "others wait")
        yield Change("95 % of the device", {"gpu_memory_utilization": 0.95}, "less room for what is not counted")
        yield Change("no CUDA graphs", {"enforce_eager": True}, "slower steps")
    if job.kv_dtype == "auto":
        if engine == "llama.cpp":
            yield Change("keys and values in q8_0", {"kv_dtype": "q8_0"}, "a little quality")
        else:
            yield Change("keys and values in fp8", {"kv_dtype": "fp8"}, "a little quality")
    if job.quantization is None:
        for method, price in WEIGHTS_OF.get(engine, WEIGHTS_OF["vllm"]):
            yield Change(f"weights in {method}", {"quantization": method}, price)
    if engine == "vllm" and short:
        weights = max(share.of(WEIGHTS) for share in launch.shares)
        gib = -(-min(short * 21 // 20, weights) // GIB)
        what = f"{gib} GiB of weights in the host's memory"
        yield Change(what, {"cpu_offload_gb": gib}, "they cross the bus each step")
    if engine == "llama.cpp":
        yield Change("all experts in the host's memory", {"cpu_moe": True}, "the processor computes them")
        yield Change("no device for the cache", {"no_kv_offload": True}, "the processor attends")
        for layers in (24, 12):
            words = {"gpu_layers": str(layers)}
            yield Change(f"{layers} layers on the device", words, "the processor computes the others")
    else:
        for ranks in (2, 4, 8):
            wanted = job.tensor * ranks
            yield Change(f"tensor parallelism of {wanted}", {"tensor": wanted}, f"{ranks} times the devices", own=False)
    users, tokens = launch.most_users(context), launch.longest_context(job.concurrency)
    if users:
        yield Change(f"{users} at once", {"concurrency": users}, "others wait", own=False)
    if tokens:
        yield Change(f"contexts of {tokens:,} tokens", {"context": tokens}, "longer requests are refused", own=False)


WEIGHTS_OF = {
    "vllm": (
        ("fp8", "a checkpoint of it; a little quality"),
        ("w8a8", "a checkpoint of it; a little quality"),
        ("awq", "a checkpoint of it; some quality"),
    ),
    "llama.cpp": (
        ("Q8_0", "hardly any quality"),
        ("Q5_K_M", "a little quality"),
        ("Q4_K_M", "some quality"),
        ("Q2_K", "very much quality"),
    ),
}
"""How weights may be stored instead, from most bits to fewest, and what it costs: the order of perplexities that
llama.cpp's tools/quantize/README.md and vLLM's docs/features/quantization publish; nothing is measured here."""
FORMATS = {
    "vllm": ("fp8", "w8a8", "awq", "gptq", "nvfp4", "bitsandbytes"),
    "llama.cpp": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XXS"),
}
"""What is laid beside one another for advice."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to store the weights, launched."""

    method: str
    weights: int
    """Bytes on the fullest device."""
    bits: float
    """For each parameter, over all devices."""
    most_users: int
    longest_context: int
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "quantization": self.method,
            "weights_bytes": self.weights,
            "bits_per_parameter": round(self.bits, 3),
            "most_users": self.most_users,
            "longest_context": self.longest_context,
            "fits": self.fits,
        }


def choices(
    job: ServeJob,
    engine: str,
    context: int,
    parameters: int,
    again: Callable[[Mapping[str, Any]], tuple[Launch, ServeJob]],
) -> list[Choice]:
    """The model as it is, and stored in each way that the engine reads."""
    found = []
    formats: Sequence[str | None] = (None, *FORMATS.get(engine, FORMATS["vllm"]))
    for method in formats if job.quantization is None else (job.quantization,):
        try:
            launch, _ = again({} if method is None else {"quantization": method})
        except WeighError:
            continue
        weights = [share.of(WEIGHTS) for share in launch.shares]
        copies = job.ranks // len([share for share in launch.shares if share.memory_bytes is not None])
        bits = 8 * sum(weights) * max(1, copies) / job.data / parameters
        fits = short_of(launch, context, job.concurrency, engine) == 0
        users, tokens = launch.most_users(context) or 0, launch.longest_context(job.concurrency) or 0
        found.append(Choice(method or "as it is", max(weights), bits, users, tokens, fits))
    return found


def advised(found: Sequence[Choice]) -> Choice | None:
    """The choice with the most bits that fits."""
    return max((one for one in found if one.fits), key=lambda one: one.bits, default=None)
