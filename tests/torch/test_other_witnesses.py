"""Beside other counters: PyTorch's own MemTracker and FSDPMemTracker, real ranks, ops that nobody sees into."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from weigh.measure import witness
from weigh.measure.job import Job
from weigh.measure.job import words as measured_words
from weigh.measure.process import Process
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import BACKWARD, FORWARD, STEP, WEIGHT, Trace
from weigh.trace.file import load
from weigh.trace.peak import phase_peaks

pytestmark = [pytest.mark.torch, pytest.mark.slow]

HERE = Path(__file__).parent
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 131, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def cuda() -> Iterator[Process]:
    with Process(timeout=300) as running:
        yield running


TRACKER = """
import json, sys
import torch
from weigh.measure import fake_cuda, faithful, streams
from weigh.measure.attention import Attention
from weigh.measure.training import workload, train
from weigh.measure.watcher import Watcher
from weigh.recipes.settings import make
from weigh.recipes.training import Training

settings = json.loads(sys.argv[2])
recipe = make(Training, settings)
fake_cuda.install()
attention = Attention()
prepare = lambda model: model
if recipe.shard:
    from weigh.measure import parallel
    streams.install(recipe.mesh.world)
    mesh = parallel.start(recipe, fake=True)
    prepare = lambda model: parallel.distribute(model, recipe, mesh)
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
else:
    from torch.distributed._tools.mem_tracker import MemTracker
with faithful.as_real(attention):
    work = workload(json.loads(sys.argv[1]), recipe, "cuda", False, prepare)
    optimizer = torch.optim.AdamW(work.model.parameters(), lr=1e-4)
    work.optimizer = lambda parameters: optimizer
    if recipe.shard:
        tracker = FSDPMemTracker(work.model, optimizer)
        tracker.track_inputs((work.batch["input_ids"],))
    else:
        tracker = MemTracker()
        tracker.track_external(work.model, optimizer, work.batch["input_ids"])
    class EveryStep(Watcher):
        def mark(self, phase, round=0):
            if phase == "forward":
                tracker.reset_mod_stats()

    with tracker:
        train(work, recipe, "cuda", EveryStep())
peaks = tracker.get_tracker_snapshot("peak")
print("@" + json.dumps({str(device): peak["Total"] for device, peak in peaks.items()}), flush=True)
import os
os._exit(0)
"""


def tracked(**settings: object) -> int:
    """The peak that PyTorch's own tracker finds."""
    words = {"batch": 4, "sequence": 128, "dtype": "bf16", "labels_are_inputs": True, **settings}
    command = [sys.executable, "-W", "ignore", "-c", TRACKER, json.dumps(TINY), json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "@" in done.stdout, done.stderr
    peaks: dict[str, int] = json.loads(done.stdout.rpartition("@")[2])
    (found,) = (peak for device, peak in peaks.items() if device.startswith("cuda"))
    return found


def ours(**settings: object) -> tuple[int, int]:
    """The peak that the recorder finds, as it is and with every storage rounded up to 512 bytes."""
    found = witness.trace(TINY, batch=4, sequence=128, dtype="bf16", labels_are_inputs=True, **settings)
    assert found.comparison() is not None
    peaks = [phase_peaks(found.run.trace, rounded) for rounded in (False, True)]
    plain, rounded = (max(int(p.peak) for p in each) for each in peaks)  # type: ignore[arg-type]
    return plain, rounded


def test_pytorchs_mem_tracker_agrees() -> None:
    assert tracked() == ours()[1]


def test_pytorchs_fsdp_mem_tracker_agrees() -> None:
    mesh = {"shard": "fsdp2", "gpus_per_node": 4}
    assert tracked(**mesh) == ours(**mesh)[1]


@pytest.mark.parametrize("shard", ["fsdp2", None])
def test_two_real_processes(shard: str | None) -> None:
    settings = {"batch": 2, "sequence": 64, "gpus_per_node": 2, "shard": shard, "kernels": "cpu"}
    found = witness.measure(TINY, **settings)
    assert found.how == "measured on the CPU in 2 processes"
    ranks = [found.run.trace, witness.settled(found.others[0])]
    weights = [sum(int(a.num_bytes) for a in t.allocations if a.purpose == WEIGHT) for t in ranks]  # type: ignore[misc]
    whole = 4 * found.answers[0].parameters
    if shard is None:
        assert weights == [whole, whole]
        assert found.answers[0].parameters == found.answers[1].parameters
        for row in found.phases():
            assert row["measured_bytes"] == pytest.approx(row["predicted_bytes"], rel=1e-3), row
        return
    assert weights[0] >= weights[1]
    assert sum(weights) >= whole
    assert weights[0] < 0.52 * whole
    predicted = run(TINY, make(Training, {**settings, "traced": True})).trace
    for trace in ranks:
        # Gloo's own threads may hold a buffer a moment longer than the step.
        for phase in (FORWARD, BACKWARD, STEP):
            assert peak_of(trace, phase) == pytest.approx(peak_of(predicted, phase), rel=0.05)


def peak_of(trace: Trace, phase: str) -> int:
    return max(int(p.peak) for p in phase_peaks(trace) if p.mark.phase == phase)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_what_nobody_sees_into_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    found = witness.measure("support.models:eight_bit", kernels="cpu")
    assert any(name.startswith("bitsandbytes::") for name in found.answers[0].opaque)
    steps = [row for row in found.phases() if row["phase"] == "step"]
    assert all(row["measured_bytes"] > row["traced_bytes"] for row in steps)
    assert found.measured_peak == max(row["measured_bytes"] for row in found.phases())
    assert "Opaque: bitsandbytes::" in found.text()


@pytest.mark.parametrize(
    "words", [{"offload_parameters": True, "param_dtype": "bf16"}, {"replicas": 2}, {"replicas": 2, "rank": 3}]
)
def test_fsdp2_traced(words: dict[str, Any], cuda: Process, tmp_path: Path) -> None:
    """Shards on the host, and hybrid sharding: every phase of a fake CUDA run."""
    settings = {"batch": 2, "sequence": 64, "shard": "fsdp2", "gpus_per_node": 4, "labels_are_inputs": True, **words}
    output = str(tmp_path / "step.trace")
    job_words = measured_words(make(Training, settings))
    cuda.ask(Job("train", job_words, config=TINY, output=output))
    real = phase_peaks(load(output)[0])[1:]
    ours = phase_peaks(run(TINY, make(Training, {**settings, "traced": True})).trace)[1:]
    assert [(p.mark.phase, p.before, p.peak) for p in ours] == [(p.mark.phase, p.before, p.peak) for p in real]
