"""Predicted speeds beside published ones, and what programs reach of a device's peaks, fitted to half of those.

Cases are measurements that others published: tokens per second of single users, first tokens, whole batches. Which half
a case is in follows from its name alone (`fitted`), so that no case can be moved where it suits. Of each program and
generation of devices the fit takes one share of the bandwidth (from single users' decoding) and one of the arithmetic
(from prefills); of each program one time a layer, and one time a message between ranks.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from weigh import dtypes, models
from weigh.ghost.state import recording
from weigh.hardware import get_device
from weigh.hardware.efficiency import Measured
from weigh.hardware.roofline import PEAK, Efficiency
from weigh.recipes.keeping import Keeping, keep
from weigh.recipes.pace import Machine
from weigh.recipes.work import Pass, passes
from weigh.sources.catalogue import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from weigh.dtypes import DType
    from weigh.hardware import Device

DECODE, PREFILL, BATCH = "decode", "prefill", "batch"

LONG = 512
"""Tokens of a prompt from which on reading it waits for arithmetic: the share of that is fitted to such prompts."""

FEW = 8
"""Cases of a generation below which the range is that of all of the program's."""

BITS = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K_M": 4.5}
"""Bits of a number in the embedding of a GGUF file of that type (blocks of ggml: 34, 18 and 144 bytes for 32, 32 and
256), which a step does not read."""


@dataclass(frozen=True, slots=True)
class Case:
    """One published measurement."""

    id: str
    phase: str
    """`DECODE`: tokens a second of one user; `PREFILL`: of reading a prompt, or the time to its first token; `BATCH`:
    new tokens a second of a batch, its prefill included."""
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

    @property
    def fitted(self) -> bool:
        """Whether the case is in the half that the efficiencies are fitted to: the parity of its name's SHA-256."""
        return hashlib.sha256(self.id.encode()).digest()[-1] % 2 == 0

    @property
    def seconds(self) -> float:
        """What was measured, as a time: of a step, of a prefill, of a batch."""
        if self.unit == "ms":
            return self.measured / 1000
        done = {DECODE: 1, PREFILL: self.batch * self.prompt, BATCH: self.batch * self.new}
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
    total = 0.0
    if case.phase != DECODE:
        first, _ = _passes(case.model, case.batch, case.prompt)
        kept = _kept(case, case.prompt)
        total += machine.pace(first, kept, _stored(case, first)).seconds
    if case.phase != PREFILL:
        context = case.prompt + case.new // 2
        _, step = _passes(case.model, case.batch, max(1, context - 1))
        steps = 1 if case.phase == DECODE else case.new
        total += steps * machine.pace(step, _kept(case, context), _stored(case, step)).seconds
    return total


def arithmetic(case: Case) -> DType:
    """The format of a case's products: llama.cpp sums in fp16, which GeForce cards do twice as fast as in fp32."""
    if case.format == "fp8":
        return dtypes.get("fp8_e4m3")
    return dtypes.get("fp16" if case.engine.startswith("llama.cpp") else "bf16")


def _stored(case: Case, work: Pass) -> float:
    """Bytes of the weights that the pass reads, as they are stored."""
    if case.read_gb is not None:
        return case.read_gb * 1e9
    if case.file_gib is not None:
        table, tied = _embedding(case.model)
        return case.file_gib * 2**30 - (0 if tied else table * BITS[case.format] / 8)
    return work.weights / (2 if case.format == "fp8" else 1)


def _kept(case: Case, tokens: int) -> float:
    """Bytes of keys and values of the batch on one rank."""
    kv = "fp8" if case.format == "fp8" else "fp16"
    held = keep(_layout(case.model), Keeping(tokens, kv_dtype=kv, tensor=case.tensor), dtypes.FLOAT16)
    return case.batch * sum(layer.num_bytes for layer in held)


@cache
def _passes(model: str, batch: int, prompt: int) -> tuple[Pass, Pass]:
    return passes(find(model).config, dtypes.FLOAT16, batch, prompt)


@cache
def _layout(model: str) -> tuple[Any, ...]:
    with recording():
        return models.build(find(model).config, dtypes.FLOAT16).cache_layout()


@cache
def _embedding(model: str) -> tuple[int, bool]:
    """Numbers of the embedding, and whether the head is tied to it."""
    config = models.language_config(find(model).config)
    return config["vocab_size"] * config["hidden_size"], bool(config.get("tie_word_embeddings"))


# -- fitting
def fit(cases: Iterable[Case]) -> dict[str, Measured]:
    """What every program reaches, from the half of the cases that is for it; how far off it is, from all."""
    by_engine: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_engine[case.engine].append(case)
    return {engine: _fit(engine, found) for engine, found in sorted(by_engine.items())}


def _fit(engine: str, cases: Sequence[Case]) -> Measured:
    mine = [case for case in cases if case.fitted]
    per_layer, bandwidths = _steps([c for c in mine if c.phase == DECODE and c.tensor == 1])
    usual = statistics.median(bandwidths.values()) if bandwidths else 1.0
    computes = {}
    long = (c for c in mine if c.phase == PREFILL and c.tensor == 1 and c.prompt >= LONG)
    for generation, found in _by_generation(long).items():
        reached = Efficiency(bandwidths.get(generation, usual), 1.0, per_layer)
        computes[generation] = _bisect(found, reached)
    shared = [c for c in mine if c.tensor > 1 and c.phase == DECODE]
    middle = Efficiency(usual, statistics.median(computes.values()) if computes else 1.0, per_layer)
    waits = [_message(c, replace(middle, bandwidth=bandwidths.get(c.on.generation, usual))) for c in shared]
    middle = replace(middle, per_message=max(0.0, statistics.median(waits)) if waits else 0.0)
    generations = {}
    for generation in sorted({*bandwidths, *computes}):
        reached = replace(
            middle,
            bandwidth=bandwidths.get(generation, middle.bandwidth),
            compute=computes.get(generation, middle.compute),
        )
        own = [c for c in cases if c.on.generation == generation]
        generations[generation] = _with_range(reached, own if len(own) >= FEW else cases)
    return Measured(engine, generations, _with_range(middle, cases), frozenset(bandwidths), frozenset(computes))


def _steps(cases: Sequence[Case]) -> tuple[float, dict[str, float]]:
    """The time a layer, and each generation's share of the bandwidth, that come nearest to the measured steps.

    Least squares of relative errors: the one follows from the other in closed form, in turn until neither moves.
    """
    rows = [(c.on.generation, _passes(c.model, 1, 1)[1].layers / c.seconds, predict(c) / c.seconds) for c in cases]
    per_layer, slow = 0.0, dict.fromkeys({generation for generation, _, _ in rows}, 1.0)
    for _ in range(200 if rows else 0):
        for generation in slow:
            own = [(layer, read) for g, layer, read in rows if g == generation]
            slow[generation] = sum((1 - per_layer * a) * b for a, b in own) / sum(b * b for _, b in own)
            slow[generation] = max(1.0, slow[generation])
        per_layer = sum((1 - slow[g] * b) * a for g, a, b in rows) / sum(a * a for _, a, _ in rows)
        per_layer = max(0.0, per_layer)
    return per_layer, {generation: 1 / times for generation, times in sorted(slow.items())}


def _by_generation(cases: Iterable[Case]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        found[case.on.generation].append(case)
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


def _message(case: Case, reached: Efficiency) -> float:
    """What a case of several devices takes longer than predicted, for each of its sums."""
    layers = _passes(case.model, 1, 1)[1].layers
    return (case.seconds - predict(case, reached)) / (2 * layers)


def _with_range(reached: Efficiency, cases: Sequence[Case]) -> Efficiency:
    """What the slowest and the fastest tenth of the measured cases reached of the prediction."""
    ratios = sorted(predict(c, reached) / c.seconds for c in cases)
    tenth = (len(ratios) - 1) / 10
    low, high = ratios[round(tenth)], ratios[round(9 * tenth)]
    return replace(reached, low=min(1.0, low), high=max(1.0, high), source=f"{len(ratios)} published measurements")
