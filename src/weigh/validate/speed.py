"""Predicted speeds beside published ones, and what programs reach of a device's peaks, fitted to half of those.

Cases are measurements that others published: tokens per second of single users, first tokens, whole batches. Which half
a case is in follows from its name alone (`fitted`), so that no case can be moved where it suits. Of each program and
generation of devices the fit takes one share of the bandwidth (from single users' decoding), one of the arithmetic
(from prefills) and one time a message between ranks; of each program one time a kernel. Programs that read weights with
the same kernels have the bandwidth's shares in common.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from weigh import dtypes, models
from weigh.formats import gguf
from weigh.ghost.state import recording
from weigh.hardware import get_device
from weigh.hardware.efficiency import EXPERTS, PROMPTS, USERS, Measured
from weigh.hardware.roofline import PEAK, Efficiency, rate
from weigh.recipes.keeping import Keeping, keep
from weigh.recipes.launches import ENDS
from weigh.recipes.pace import Machine
from weigh.recipes.work import AS_RUN, Pass, Weights, passes, weights_of
from weigh.records import dataclass, replace
from weigh.sources.catalogue import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from weigh.dtypes import DType
    from weigh.hardware import Device

K = TypeVar("K")

DECODE, PREFILL, BATCH, STEP = "decode", "prefill", "batch", "step"

LONG = 512
"""Tokens of a prompt from which on reading it waits for arithmetic: the share of that is fitted to such prompts."""

MOSTLY = 15
"""Tokens of a prompt for each new one from which on a single user's time is mostly the prompt's."""

FEW = 5
"""Pairs of a device and a model below which the range of a generation is that of all of the program's cases, and the
range of a program that of all programs'."""

FAMILY = {
    **dict.fromkeys(("vLLM V0", "vLLM V1", "SGLang"), "PyTorch"),
    **dict.fromkeys(("llama.cpp CUDA, 2024", "llama.cpp CUDA, 2025"), "llama.cpp CUDA"),
}
"""Programs that read weights with the same kernels (cuBLAS's and Marlin's; ggml's) share the bandwidth's shares."""

LLAMA_BLOCK = 10
"""Kernels of a block of Llama's (`weigh.recipes.launches`)."""

ROUNDS, SURE = 500, 0.02
"""Of the fit of steps, and the relative error below which a case counts no more."""

BITS = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K_M": 4.5}
"""Bits of a number in the embedding of a GGUF file of that type (blocks of ggml: 34, 18 and 144 bytes for 32, 32 and
256), which a step does not read."""

GROUPED = {"GPTQ-Int8": 8 + (16 + 8) / 128, "GPTQ-Int4": 4 + (16 + 4) / 128, "AWQ": 4 + (16 + 4) / 128}
"""Bits of a number in linear layers but the head: a scale in fp16 and a zero point for each 128."""

MXFP4 = 4.25
"""Bits of a number of the experts in that format, the others being in 16: a scale of a byte for each 32."""

HALVED = ("fp8", "int8")
"""Formats of one byte a number."""


@dataclass(frozen=True, slots=True)
class Case:
    """One published measurement."""

    id: str
    phase: str
    """`DECODE`: tokens a second of one user; `PREFILL`: of reading a prompt, or the time to its first token; `BATCH`:
    new tokens a second of a batch, its prefill included; `STEP`: of reading one prompt `batch` tokens at a time, with
    `prompt` others before them in the middle."""
    engine: str
    device: str
    model: str
    format: str
    """Of the weights."""
    batch: int
    prompt: int
    new: int
    tensor: int
    """Devices that share every layer."""
    measured: float
    unit: str
    """ "tokens/s" or "ms"."""
    source: str
    file_gib: float | None = None
    """Size of the file of weights, as the program prints it."""
    read_gb: float | None = None
    """Bytes of weights that a step reads, as the program prints them."""
    kv: str | None = None
    """Format of keys and values, where that is not the weights' (fp8) or 16 bits."""

    @property
    def fitted(self) -> bool:
        """Whether the case is in the half that the efficiencies are fitted to: the parity of its name's SHA-256.

        Nothing is fitted to models of experts, nor to a few tokens at a time: all of those are held out.
        """
        return not self.apart and hashlib.sha256(self.id.encode()).digest()[-1] % 2 == 0

    @property
    def apart(self) -> bool:
        """Whether nothing of its kind is fitted."""
        return self.phase == STEP or self.has_experts

    @property
    def has_experts(self) -> bool:
        """Whether a token goes through some of the model's weights only."""
        return _weights(self.model).routed > 0

    @property
    def kind(self) -> str | None:
        """Whose range it counts for: `EXPERTS`, `USERS`, `PROMPTS`; None for a single user of a dense model."""
        if self.has_experts:
            return EXPERTS
        if self.batch > 1:
            return USERS
        return PROMPTS if self.phase == PREFILL else None

    @property
    def seconds(self) -> float:
        """What was measured, as a time: of a step, of a prefill, of a batch."""
        if self.unit == "ms":
            return self.measured / 1000
        done = {DECODE: 1, PREFILL: self.batch * self.prompt, BATCH: self.batch * self.new, STEP: self.batch}
        return done[self.phase] / self.measured

    @property
    def on(self) -> Device:
        """Its device."""
        return get_device(self.device)


def read(path: Path) -> tuple[Case, ...]:
    """The cases of a file, one JSON object a line."""
    return tuple(Case(**json.loads(line)) for line in path.read_text().splitlines())


def predict(case: Case, reached: Efficiency = PEAK) -> float:
    """The case's time, in seconds.

    Raises:
        NotModelledError: a figure of the device has no source.
    """
    machine = Machine(case.on, arithmetic(case), reached, case.tensor)
    stored = _stored(case)
    total = 0.0
    if case.phase == STEP:
        _, step = _passes(case.model, case.batch, case.prompt)
        return machine.pace(step, _kept(case, case.prompt) / case.batch, stored).seconds
    if case.phase != DECODE:
        first, _ = _passes(case.model, case.batch, case.prompt)
        kept = _kept(case, case.prompt)
        total += machine.pace(first, kept, stored).seconds
    if case.phase != PREFILL:
        context = case.prompt + case.new // 2
        _, step = _passes(case.model, case.batch, max(1, context - 1))
        steps = 1 if case.phase == DECODE else case.new
        total += steps * machine.pace(step, _kept(case, context), stored).seconds
    return total


def arithmetic(case: Case) -> DType:
    """The format of a case's products: llama.cpp sums in fp16, which GeForce cards do twice as fast as in fp32."""
    if case.format == "fp8":
        return dtypes.get(next(name for name in ("fp8_e4m3", "fp8_e4m3fnuz") if name in case.on.flops))
    return dtypes.get("fp16" if case.engine.startswith("llama.cpp") else "bf16")


def _stored(case: Case) -> Weights:
    """How many times the bytes of 16 bits the weights are, as they are stored."""
    whole = _weights(case.model)
    if case.read_gb is not None:
        return replace(AS_RUN, shared=case.read_gb * 1e9 / whole.shared)
    if case.file_gib is not None:
        table = whole.looked_up / 2 * BITS[case.format] / 8
        return Weights(case.file_gib * 2**30 - table, 0).over(whole)
    if case.engine.startswith("llama.cpp"):
        return _file(case.model, case.format).over(whole)
    if case.format in GROUPED:
        packed = _linear(case.model)
        return replace(AS_RUN, shared=1 - packed / whole.shared * (1 - GROUPED[case.format] / 16))
    if case.format == "mxfp4":
        return Weights(1.0, MXFP4 / 16)
    return Weights(0.5, 0.5) if case.format in HALVED else AS_RUN


def _kept(case: Case, tokens: int) -> float:
    """Bytes of keys and values of the batch on one rank."""
    kv = case.kv or ("fp8" if case.format == "fp8" else "fp16")
    held = keep(_layout(case.model), Keeping(tokens, kv_dtype=kv, tensor=case.tensor), dtypes.FLOAT16)
    return case.batch * sum(layer.num_bytes for layer in held)


@cache
def _passes(model: str, batch: int, prompt: int) -> tuple[Pass, Pass]:
    return passes(find(model).config, dtypes.FLOAT16, batch, prompt)


def extra_kernels(model: str) -> int:
    """Kernels of a step beyond those of as many of Llama's blocks."""
    step = _passes(model, 1, 1)[1]
    return step.kernels - ENDS - LLAMA_BLOCK * step.layers


@cache
def _layout(model: str) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", _built(model).cache_layout())


@cache
def _built(model: str) -> Any:
    with recording():
        return models.build(find(model).config, dtypes.FLOAT16)


@cache
def _weights(model: str) -> Weights:
    return weights_of(_built(model).parameters())


@cache
def _linear(model: str) -> int:
    """Bytes of the linear layers but the head, at 16 bits."""
    rows = [(p.names[0], p.count * p.tensor.num_bytes, len(p.tensor.shape)) for p in _built(model).parameters()]
    return sum(size for name, size, axes in rows if axes == 2 and "embed" not in name and "head" not in name)


@cache
def _file(model: str, file_type: str) -> Weights:
    """Of the GGUF file that llama.cpp's quantizer makes."""
    tensors = gguf.predict(find(model).config, _built(model), file_type).tensors
    routed = sum(one.num_bytes for name, one in tensors.items() if "_exps." in name)
    table = tensors["token_embd.weight"].num_bytes if "output.weight" in tensors else 0
    return Weights(sum(one.num_bytes for one in tensors.values()) - routed - table, routed, table)


# -- fitting
def fit(cases: Iterable[Case]) -> dict[str, Measured]:
    """What every program reaches, from the half of the cases that is for it; how far off it is, from all."""
    by_engine: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_engine[case.engine].append(case)
    families: dict[str, list[Case]] = defaultdict(list)
    for engine, mine in by_engine.items():
        families[FAMILY.get(engine, engine)] += [case for case in mine if case.fitted and not case.apart]
    shares = {family: _shares(mine) for family, mine in families.items()}
    found = {
        engine: _fit(engine, mine, shares[FAMILY.get(engine, engine)]) for engine, mine in sorted(by_engine.items())
    }
    off = {c: predict(c, found[c.engine].on(c.on)) / c.seconds for mine in by_engine.values() for c in mine}
    return {engine: _with_ranges(one, off) for engine, one in found.items()}


def _with_ranges(one: Measured, off: Mapping[Case, float]) -> Measured:
    """With what the slowest and the fastest tenth of the measured cases reached of their predictions.

    Of the program's own, and of single users on one generation its own, where there are enough; else of all.
    """

    def among(kind: str | None, generation: str | None = None) -> tuple[float, float]:
        like = {case: ratio for case, ratio in off.items() if case.kind == kind}
        own = {case: ratio for case, ratio in like.items() if case.engine == one.program}
        there = {case: ratio for case, ratio in own.items() if case.on.generation == generation}
        various = (some for some in (there, own) if len({(c.device, c.model) for c in some}) >= FEW)
        return _ends(next(various, like).values())

    def ranged(reached: Efficiency, generation: str | None) -> Efficiency:
        low, high = among(None, generation)
        return replace(reached, low=low, high=high)

    return replace(
        one,
        usual=ranged(one.usual, None),
        generations={generation: ranged(reached, generation) for generation, reached in one.generations.items()},
        ranges={kind: among(kind) for kind in (EXPERTS, USERS, PROMPTS)},
    )


class Shares(NamedTuple):
    """What programs that run the same kernels reach, and each by itself."""

    bandwidth: Mapping[str, float]
    """Of the peak, by generation."""
    compute: Mapping[str, Mapping[str, float]]
    """Of the peak, by program and generation."""
    per_kernel: Mapping[str, float]
    """Seconds, by program."""


def _shares(mine: Sequence[Case]) -> Shares:
    per_kernel, bandwidths = _steps([c for c in mine if c.phase == DECODE and c.tensor == 1 and c.batch == 1])
    usual = _usual(bandwidths)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    long = [c for c in mine if c.tensor == 1 and c.prompt >= LONG and _is_prompt(c) and _is_known(c)]
    for (engine, generation), cases in _by(long, lambda c: (c.engine, c.on.generation)).items():
        found[engine][generation] = _bisect(
            cases, Efficiency(bandwidths.get(generation, usual), 1.0, per_kernel.get(engine, 0.0))
        )
    return Shares(bandwidths, found, per_kernel)


def _usual(shares: Mapping[str, float]) -> float:
    return statistics.median(shares.values()) if shares else 1.0


def _fit(engine: str, cases: Sequence[Case], shares: Shares) -> Measured:
    like = [case for case in cases if not case.apart]
    compute = shares.compute.get(engine, {})
    waits: dict[str, float] = {}
    middle = Efficiency(_usual(shares.bandwidth), _usual(compute), shares.per_kernel.get(engine, 0.0))

    def on(generation: str) -> Efficiency:
        return replace(
            middle,
            bandwidth=shares.bandwidth.get(generation, middle.bandwidth),
            compute=compute.get(generation, middle.compute),
            per_message=waits.get(generation, middle.per_message),
        )

    alone = [
        c for c in like if c.fitted and c.tensor > 1 and c.batch == 1 and (c.phase == DECODE or c.new >= c.prompt > 0)
    ]
    if alone:
        found = {case: _message(case, on(case.on.generation)) for case in alone}
        own = {name: statistics.median(found[c][0] for c in some) for name, some in _by(alone, _generation).items()}
        middle = replace(middle, per_message=max(0.0, _weighted(found.values())))
        waits |= {name: wait for name, wait in own.items() if wait > 0}
    known = sorted({*shares.bandwidth, *compute, *waits})
    middle = replace(middle, source=f"{sum(case.fitted for case in like)} published measurements")
    generations = {generation: on(generation) for generation in known}
    return Measured(engine, generations, middle, frozenset(shares.bandwidth), frozenset(compute), {})


def _is_known(case: Case) -> bool:
    """Whether the catalogue has the arithmetic of the device's matrix units, where it has some."""
    return rate(case.on, arithmetic(case))[1] != "fp32" or (case.on.compute_capability or (0, 0)) < (7, 0)


def _is_prompt(case: Case) -> bool:
    return case.phase == PREFILL or (case.phase == BATCH and case.batch == 1 and case.prompt >= MOSTLY * case.new)


def _steps(cases: Sequence[Case]) -> tuple[dict[str, float], dict[str, float]]:
    """Each program's time a kernel, and each generation's share of the bandwidth, that come nearest to measured steps.

    Least absolute relative errors, so that one bad measurement moves nothing: squares, each weighed by how far off the
    last round left it, are least where all but one are held, in turn until none moves.
    """
    rows = [
        (c.engine, c.on.generation, _passes(c.model, 1, 1)[1].kernels / c.seconds, predict(c) / c.seconds)
        for c in cases
    ]
    waits = dict.fromkeys(sorted({engine for engine, *_ in rows}), 0.0)
    slow = dict.fromkeys(sorted({generation for _, generation, *_ in rows}), 1.0)
    for _ in range(ROUNDS):
        weights = [1 / max(SURE, abs(1 - waits[e] * a - slow[g] * b)) for e, g, a, b in rows]
        for generation in slow:
            own = [(1 - waits[e] * a, b, w) for (e, g, a, b), w in zip(rows, weights, strict=True) if g == generation]
            slow[generation] = max(1.0, sum(w * y * b for y, b, w in own) / sum(w * b * b for _, b, w in own))
        for engine in waits:
            left = [(1 - slow[g] * b, a, w) for (e, g, a, b), w in zip(rows, weights, strict=True) if e == engine]
            waits[engine] = max(0.0, sum(w * y * a for y, a, w in left) / sum(w * a * a for _, a, w in left))
    return waits, {generation: 1 / times for generation, times in slow.items()}


def _generation(case: Case) -> str:
    return case.on.generation


def _by(cases: Iterable[Case], key: Callable[[Case], K]) -> dict[K, list[Case]]:
    found: dict[K, list[Case]] = defaultdict(list)
    for case in cases:
        found[key(case)].append(case)
    return found


def _middle(cases: Sequence[Case], reached: Efficiency) -> float:
    """How much longer than measured the middle case is predicted to take."""
    return statistics.median(predict(c, reached) / c.seconds for c in cases)


def _bisect(cases: Sequence[Case], reached: Efficiency) -> float:
    """The share of the arithmetic, at most 1, at which the middle case takes as long as predicted."""
    low, high = 0.01, 1.0
    if _middle(cases, replace(reached, compute=high)) >= 1:
        return high
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if _middle(cases, replace(reached, compute=share)) > 1 else (low, share)
    return low


def _message(case: Case, reached: Efficiency) -> tuple[float, float]:
    """What a case of several devices takes longer than predicted, for each message, and its messages for its time."""
    without, with_ones = (predict(case, replace(reached, per_message=wait)) for wait in (0.0, 1.0))
    messages = with_ones - without
    return (case.seconds - without) / messages, messages / case.seconds


def _weighted(found: Iterable[tuple[float, float]]) -> float:
    """The median of values that have weights: where their relative errors come to least."""
    ordered = sorted(found)
    half = sum(weight for _, weight in ordered) / 2
    up_to = accumulate(weight for _, weight in ordered)
    return next(value for (value, _), weight in zip(ordered, up_to, strict=True) if weight >= half)


def _ends(ratios: Iterable[float]) -> tuple[float, float]:
    """One case in ten at either end; 1 is between them."""
    ordered = sorted(ratios)
    tenth = (len(ordered) - 1) / 10
    return min(1.0, ordered[round(tenth)]), max(1.0, ordered[round(9 * tenth)])
