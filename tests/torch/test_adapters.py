"""peft's methods: the real ones on fake CUDA tensors and ours do the same to memory, event by event."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from weigh.measure.job import Job, words
from weigh.measure.process import Process
from weigh.recipes.settings import make
from weigh.recipes.training import Training, run
from weigh.techniques.adapters import KINDS
from weigh.trace.events import LOAD, Trace
from weigh.trace.expand import expand
from weigh.trace.file import load

pytestmark = [pytest.mark.torch]

LLAMA = {"model_type": "llama", "vocab_size": 67, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 192}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 67, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
BASE = {"batch": 3, "sequence": 40, "dtype": "bf16"}

CASES: list[dict[str, Any]] = [
    {"kind": "lora", "rank": 4, "targets": ["q_proj", "o_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 8},
     "layers": [0, 1], "excluded": ["layers.0.self_attn.o_proj"], "lora_bias": True},
    {"kind": "lora", "targets": ["c_attn", "mlp.c_proj"], "bias": "all"},
    {"kind": "lora", "targets": [r"^.*\.[12]\.attn\.c_attn"], "bias": "lora_only"},
    {"kind": "beft"},
    {"kind": "gralora", "targets": ["q_proj", "down_proj"], "rank": 8, "dropout": 0.1, "hybrid_rank": 4},
    {"kind": "ia3"},
    {"kind": "ln_tuning", "modules_to_save": ["lm_head"]},
    {"kind": "vera", "targets": ["all-linear"], "rank": 16, "dropout": 0.1},
]  # fmt: skip


@pytest.fixture(scope="module")
def cuda() -> Iterator[Process]:
    with Process(timeout=300) as running:
        yield running


def happenings(trace: Trace) -> list[list[Any]]:
    """Every phase after loading: each birth with its bytes and op, and before it what has died, sorted."""
    found: list[list[Any]] = []
    for mark, stop in pairwise([*trace.marks, None]):
        assert mark is not None
        if mark.phase == LOAD:
            continue
        told: list[Any] = [f"{mark.phase} {mark.round}"]
        dead: list[int] = []
        for event in trace.events[mark.event : stop and stop.event]:
            allocation = trace.allocations[abs(event) - 1]
            if event < 0:
                dead.append(int(allocation.num_bytes))  # type: ignore[arg-type]
                continue
            told.append((sorted(dead), allocation.num_bytes, allocation.op.removesuffix(".Scalar")))
            dead = []
        found.append([*told, sorted(dead)])
    return found


def beside(adapter: dict[str, Any], cuda: Process, folder: Path, **more: Any) -> None:
    config = GPT2 if "c_attn" in str(adapter.get("targets")) else LLAMA
    recipe = make(Training, {**BASE, "adapter": adapter, "traced": True, **more})
    output = str(folder / "run.trace")
    answer = cuda.ask(Job("train", words(recipe), config=config, output=output))
    ours = run(config, recipe)
    assert (ours.counted.total, ours.counted.trainable) == (answer.parameters, answer.trainable)
    assert happenings(expand(ours.trace)) == happenings(load(output)[0])


@pytest.mark.parametrize("adapter", CASES, ids=lambda case: case["kind"])
def test_each_method_is_peft_s(adapter: dict[str, Any], cuda: Process, tmp_path: Path) -> None:
    beside(adapter, cuda, tmp_path)


def test_every_method_has_a_case() -> None:
    assert {case["kind"] for case in CASES} == set(KINDS)
