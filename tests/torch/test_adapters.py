"""peft's methods: the real ones on fake CUDA tensors and ours do the same to memory, event by event."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from weigh.measure.job import FAKE, REAL, Job, words
from weigh.measure.process import Process
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.techniques.adapters import KINDS
from weigh.trace.events import FORWARD, LOAD, Trace
from weigh.trace.expand import expand
from weigh.trace.file import load
from weigh.trace.peak import phase_peaks

pytestmark = [pytest.mark.torch]

LLAMA = {"model_type": "llama", "vocab_size": 67, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 192}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 67, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
MIXTURE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
BASE = {"batch": 3, "sequence": 40, "dtype": "bf16"}

CASES: list[dict[str, Any]] = [
    {"kind": "lora", "rank": 4, "targets": ["q_proj", "o_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 8},
     "layers": [0, 1], "excluded": ["layers.0.self_attn.o_proj"], "lora_bias": True},
    {"kind": "lora", "rank": 4, "targets": ["q_proj"], "parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    {"kind": "lora", "targets": ["c_attn", "mlp.c_proj"], "bias": "all"},
    {"kind": "lora", "targets": [r"^.*\.[12]\.attn\.c_attn"], "bias": "lora_only"},
    {"kind": "adalora", "dropout": 0.1},
    {"kind": "beft"},
    {"kind": "boft"},
    {"kind": "gralora", "targets": ["q_proj", "down_proj"], "rank": 8, "dropout": 0.1, "hybrid_rank": 4},
    {"kind": "ia3"},
    {"kind": "ln_tuning", "modules_to_save": ["lm_head"]},
    {"kind": "oft", "share": True, "targets": ["q_proj", "down_proj"]},
    {"kind": "oft", "series": False, "block_size": 5},
    {"kind": "p_tuning", "hidden": 24},
    {"kind": "prefix_tuning"},
    {"kind": "prefix_tuning", "projection": True, "hidden": 24},
    {"kind": "prompt_tuning"},
    {"kind": "psoft", "rank": 8},
    {"kind": "psoft", "rank": 8, "start": "pissa_init", "orthogonal": False},
    {"kind": "trainable_tokens"},
    {"kind": "vera", "targets": ["all-linear"], "rank": 16, "dropout": 0.1},
]  # fmt: skip
ON_VALUES: list[dict[str, Any]] = [
    {"kind": "loha"},
    {"kind": "lokr"},
    {"kind": "lokr", "rank": 2, "decompose_both": True, "factor": 4, "targets": ["q_proj", "up_proj", "down_proj"]},
    {"kind": "psoft", "rank": 8, "decomposition": "lowrank", "series": True, "magnitude_a": False, "dropout": 0.1},
]
"""Those that ask for values while they run or are made: on the CPU, on real tensors."""


@pytest.fixture(scope="module")
def cuda() -> Iterator[Process]:
    with Process(timeout=300) as running:
        yield running


@pytest.fixture(scope="module")
def cpu() -> Iterator[Process]:
    with Process(timeout=300) as running:
        yield running


def happenings(trace: Trace, least: int = 0) -> list[list[Any]]:
    """Every phase after loading: each birth with its bytes, and before it what has died, sorted."""
    found: list[list[Any]] = []
    for mark, stop in pairwise([*trace.marks, None]):
        assert mark is not None
        if mark.phase == LOAD:
            continue
        told: list[Any] = [f"{mark.phase} {mark.round}"]
        dead: list[int] = []
        for event in trace.events[mark.event : stop and stop.event]:
            allocation = trace.allocations[abs(event) - 1]
            if allocation.num_bytes < least:
                continue
            if event < 0:
                dead.append(int(allocation.num_bytes))  # type: ignore[arg-type]
                continue
            told.append((sorted(dead), allocation.num_bytes))
            dead = []
        found.append([*told, sorted(dead)])
    return found


def same(ours: list[list[Any]], theirs: list[list[Any]]) -> None:
    """Or say where they part."""
    for left, right in zip(ours, theirs, strict=True):
        found = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        assert found is None, (
            f"{left[0]}, birth {found}: ours {left[found : found + 3]}, theirs {right[found : found + 3]}"
        )
        assert len(left) == len(right)


def pair(adapter: dict[str, Any], running: Process, folder: Path, device: str, **more: Any) -> tuple[Trace, Trace]:
    """Ours and peft's."""
    config = MIXTURE if "parameters" in adapter else GPT2 if "attn" in str(adapter.get("targets")) else LLAMA
    config = config | {"tie_word_embeddings": "tokens" in adapter["kind"]}
    recipe = make(Training, {**BASE, "adapter": adapter, "traced": True, "kernels": device, **more})
    output, tensors = str(folder / "run.trace"), REAL if device == "cpu" else FAKE
    job = Job("train", words(recipe), config=config, device=device, tensors=tensors, output=output)
    answer, ours = running.ask(job), run(config, recipe)
    assert (ours.counted.total, ours.counted.trainable) == (answer.parameters, answer.trainable)
    return expand(ours.trace), load(output)[0]


def peaks(trace: Trace) -> list[int]:
    """Of every phase after loading."""
    return [int(p.peak) for p in phase_peaks(trace) if p.mark.phase != LOAD]  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", CASES, ids=lambda case: case["kind"])
def test_each_method_is_peft_s(adapter: dict[str, Any], cuda: Process, tmp_path: Path) -> None:
    ours, theirs = pair(adapter, cuda, tmp_path, "cuda")
    same(happenings(ours), happenings(theirs))
    assert peaks(ours) == peaks(theirs)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ia3", {"checkpointing": "reentrant"}),
        ("prompt_tuning", {"checkpointing": "full"}),
        ("trainable_tokens", {"autocast": "bf16", "dtype": "fp32"}),
        ("vera", {"autocast": "fp16", "dtype": "fp32"}),
    ],
)
def test_methods_compose(kind: str, more: dict[str, Any], cuda: Process, tmp_path: Path) -> None:
    ours, theirs = pair({"kind": kind, "input_gradients": True}, cuda, tmp_path, "cuda", **more)
    same(happenings(ours), happenings(theirs))


@pytest.mark.parametrize("adapter", ON_VALUES, ids=lambda case: case["kind"])
def test_methods_that_ask_for_values(adapter: dict[str, Any], cpu: Process, tmp_path: Path) -> None:
    """Left out: numbers of one element, and the forward pass, in which transformers looks for packed sequences."""
    ours, theirs = pair(adapter, cpu, tmp_path, "cpu")
    same(*([phase for phase in happenings(t, least=8) if not phase[0].startswith(FORWARD)] for t in (ours, theirs)))
    assert peaks(ours) == pytest.approx(peaks(theirs), abs=512)


def test_every_method_has_a_case() -> None:
    assert {case["kind"] for case in CASES + ON_VALUES} == set(KINDS)
