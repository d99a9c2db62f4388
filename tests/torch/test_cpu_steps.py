"""Whole training steps on the CPU: what PyTorch counts, fake and real, is what ghost tensors count, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weigh import dtypes
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import BACKWARD, FORWARD, STEP
from weigh.trace.peak import phase_peaks

pytestmark = pytest.mark.torch

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 99, "n_positions": 256}
STILL = {**GPT2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "tie_word_embeddings": False,
}

RECURRENT = {"vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8}
MAMBA = {"model_type": "mamba"} | RECURRENT
MAMBA2 = {"model_type": "mamba2", "num_heads": 12, "head_dim": 8, "n_groups": 2, "chunk_size": 16} | RECURRENT
FALCON_MAMBA = {"model_type": "falcon_mamba"} | RECURRENT

# Activations outweigh the weights many times over, so that the peaks are theirs.
STEPS: dict[str, dict[str, Any]] = {
    "gpt2, dropout": {"config": GPT2, "batch": 4, "sequence": 128, "dtype": "fp32", "attention": "sdpa"},
    "gpt2": {"config": STILL, "batch": 3, "sequence": 120, "dtype": "fp32", "attention": "sdpa"},
    "gpt2, batch 1": {"config": STILL, "batch": 1, "sequence": 256, "dtype": "bf16", "attention": "sdpa"},
    "gpt2, autocast": {"config": GPT2, "batch": 4, "sequence": 96, "dtype": "fp32", "attention": "sdpa",
                       "autocast": "bf16"},
    "gpt2, eager": {"config": GPT2, "batch": 2, "sequence": 128, "dtype": "fp32", "attention": "eager"},
    "llama": {"config": LLAMA, "batch": 4, "sequence": 128, "dtype": "fp32", "attention": "sdpa"},
    "llama, bf16": {"config": LLAMA, "batch": 3, "sequence": 100, "dtype": "bf16", "attention": "sdpa"},
    "llama, eager": {"config": LLAMA, "batch": 2, "sequence": 128, "dtype": "bf16", "attention": "eager"},
    "llama, autocast": {"config": LLAMA, "batch": 2, "sequence": 64, "dtype": "fp32", "attention": "sdpa",
                        "autocast": "bf16"},
    "llama, checkpointing": {"config": LLAMA, "batch": 4, "sequence": 128, "dtype": "bf16", "attention": "sdpa",
                             "checkpointing": "full"},
    "llama, reentrant checkpointing": {"config": LLAMA, "batch": 4, "sequence": 128, "dtype": "bf16",
                                       "attention": "sdpa", "checkpointing": "reentrant"},
    "mamba": {"config": MAMBA, "batch": 3, "sequence": 40, "dtype": "bf16", "attention": "eager"},
    "mamba, autocast": {"config": MAMBA, "batch": 2, "sequence": 40, "dtype": "fp32", "attention": "eager",
                        "autocast": "bf16"},
    "mamba 2": {"config": MAMBA2, "batch": 3, "sequence": 40, "dtype": "bf16", "attention": "eager"},
    "mamba 2, whole chunks": {"config": MAMBA2, "batch": 2, "sequence": 48, "dtype": "fp32", "attention": "eager",
                              "autocast": "bf16"},
    "falcon mamba": {"config": FALCON_MAMBA, "batch": 3, "sequence": 40, "dtype": "bf16", "attention": "eager",
                     "checkpointing": "full"},
}  # fmt: skip


def ask(jobs: list[dict[str, Any]]) -> list[dict[str, int]]:
    """What PyTorch counts for each job (see `support.real_training`)."""
    command = [sys.executable, "-W", "ignore", "-m", "support.real_training", json.dumps(jobs)]
    folder = Path(__file__).parent
    answer = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer)  # type: ignore[no-any-return]


def predict(job: dict[str, Any], **settings: Any) -> dict[str, int]:
    """The same figures off ghost tensors."""
    recipe = Training(
        batch=job["batch"],
        sequence=job["sequence"],
        dtype=dtypes.get(job["dtype"]),
        attention=job["attention"],
        autocast=dtypes.get(job["autocast"]) if job.get("autocast") else None,
        checkpointing=job.get("checkpointing"),
        device="cpu",
        labels_are_inputs=True,
        traced=job.get("counted") != "profiled",
        **settings,
    )
    last = recipe.steps - 1
    peaks = {p.mark.phase: p for p in phase_peaks(run(job["config"], recipe).trace) if p.mark.round == last}
    figures = {
        "peak_forward": peaks[FORWARD].peak,
        "after_forward": peaks[FORWARD].after,
        "peak_backward": peaks[BACKWARD].peak,
        "peak_step": peaks[STEP].peak,
    }
    return {**figures, "peak": max(figures.values())}  # type: ignore[dict-item,type-var]


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], dict[str, int]]:
    asked = [(name, how) for name in STEPS for how in ("real", "fake")]
    answers = ask([{**STEPS[name], "counted": how} for name, how in asked])
    return dict(zip(asked, answers, strict=True))


@pytest.mark.parametrize("how", ["real", "fake"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_the_cpu(name: str, how: str, counted: dict[tuple[str, str], dict[str, int]]) -> None:
    assert predict(STEPS[name]) == counted[name, how]


TIED = {**LLAMA, "vocab_size": 9000, "tie_word_embeddings": True}
PLAIN = {
    **{name: STEPS[name] for name in ("gpt2", "gpt2, eager", "llama", "llama, eager", "mamba", "mamba 2")},
    "llama, tied": {"config": TIED, "batch": 1, "sequence": 8, "dtype": "fp32", "attention": "sdpa"},
}
NUMBER = 8
"""Bytes of a Python number that a product saves for its gradient: on the CPU its allocator gives them."""


@pytest.fixture(scope="module")
def profiled() -> dict[str, dict[str, int]]:
    jobs = [{**job, "dtype": "fp32", "counted": "profiled"} for job in PLAIN.values()]
    return dict(zip(PLAIN, ask(jobs), strict=True))


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_that_nothing_watches(name: str, profiled: dict[str, dict[str, int]]) -> None:
    """No dispatch mode: gradients are summed in place where PyTorch does so, and kernels' own buffers count."""
    job = {**PLAIN[name], "dtype": "fp32", "counted": "profiled"}
    ours = predict(job, optimizer=None, steps=1)
    for figure, real in profiled[name].items():
        assert 0 <= real - ours[figure] <= 12 * NUMBER, figure


def test_a_tied_embedding_is_three_high_while_its_gradients_are_summed(profiled: dict[str, dict[str, int]]) -> None:
    embedding = 9000 * 64 * 4
    real = profiled["llama, tied"]
    # The weight itself, the head's gradient, the embedding's, and their sum.
    assert 4 * embedding < real["peak_backward"] < 5 * embedding
