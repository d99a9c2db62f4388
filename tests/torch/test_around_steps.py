"""Loading, evaluating and saving beside the real thing: transformers, accelerate and torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weigh import api
from weigh.dtypes import BFLOAT16, FLOAT32
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.runtimes.transformers import TrainerLoop
from weigh.trace.events import EVALUATE, LOAD
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
LARGE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "vocab_size": 20000, **LLAMA}
SMALL = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "vocab_size": 1001, **LLAMA}
LENGTH, BATCH, BATCHES = 100, 4, 5
EVALUATIONS = [
    {"keeps": keeps, "bf16": bf16, "batch": BATCH, "batches": BATCHES, "length": LENGTH}
    for keeps, bf16 in (("loss", False), ("logits", False), ("argmax", False), ("loss", True), ("logits", True))
]
RANKS = (3, 4)


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """What the programs took."""
    asked = json.dumps({"large": LARGE, "small": SMALL, "evaluations": EVALUATIONS, "ranks": RANKS})
    script = Path(__file__).parent / "support/around_steps.py"
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed leaves the process at once
    done = subprocess.run(
        [sys.executable, script, asked],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **given_back},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def phases(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    model = {"model_type": "llama", "max_position_embeddings": 2048, **config}
    report = api.train(model, runtime="transformers", sequence=64, **settings)
    return {phase.name: phase for phase in report.job_phases} | {"resident": int(report.memory.phases[-1].after)}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_model_that_keeps_its_dtype_is_mapped_and_another_is_copied(real: dict[str, Any], dtype: str) -> None:
    """Within 4 MB, which Python takes while it loads."""
    found = phases({**LARGE, "dtype": "bfloat16"}, dtype=dtype, gpus_per_node=8)["load"]
    assert abs(found.host - real["loading"][dtype]) < 4e6
    assert found.node == 8 * found.host
    assert (found.host > 50e6) is (dtype == "fp32")


@pytest.mark.parametrize("number", range(len(EVALUATIONS)))
def test_what_an_evaluation_keeps(real: dict[str, Any], number: int) -> None:
    """Within two batches of token ids: a data loader is a batch ahead."""
    how = EVALUATIONS[number]
    recipe = Training(
        batch=BATCH,
        sequence=LENGTH,
        device="cpu",
        steps=0,
        optimizer=None,
        eval_batch=BATCH,
        eval_batches=BATCHES,
        eval_keeps=str(how["keeps"]),
        autocast=BFLOAT16 if how["bf16"] else None,
        dtype=FLOAT32,
    )
    trace = run({"model_type": "llama", **SMALL}, recipe, loop=TrainerLoop(), evaluate=True).trace
    found = phase_peaks(trace)
    loaded = next(int(p.after) for p in found if p.mark.phase == LOAD)  # type: ignore[arg-type]
    peak = max(int(p.peak) for p in found if p.mark.phase == EVALUATE)  # type: ignore[arg-type]
    assert abs(peak - loaded - real["evaluating"][number]) <= 2 * BATCH * LENGTH * 8


@pytest.mark.parametrize("ranks", RANKS)
def test_fsdp2_loads_and_saves_to_the_byte(real: dict[str, Any], ranks: int) -> None:
    measured = real["sharded"][str(ranks)]
    for word in ("full", "sharded"):
        found = phases({**SMALL, "dtype": "float32"}, shard="fsdp2", gpus_per_node=ranks, state_dict=word)
        assert found["load"].device == measured["load"]["device"]
        for name in ("model", "optimizer"):
            phase = found[f"save the {name}"]
            on_device = phase.device - found["resident"]
            assert (on_device, phase.host) == (measured[f"{name} {word}"]["device"], measured[f"{name} {word}"]["host"])
            assert phase.node == phase.host * (ranks if word == "sharded" else 1)
