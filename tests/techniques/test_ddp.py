"""DistributedDataParallel: buckets as large as the gradients, beside everything that one device has."""

from __future__ import annotations

import pytest

from weigh import api
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.techniques.ddp import BUCKET, FIRST_BUCKET
from weigh.trace.events import COMMUNICATION

CONFIG = {"model_type": "gpt2", "n_layer": 5, "n_embd": 512, "n_head": 4, "vocab_size": 8000, "n_positions": 64}


def buckets(**settings: object) -> list[int]:
    recipe = make(Training, {"gpus_per_node": 2, "sequence": 32, **settings})
    trace = run(CONFIG, recipe).trace
    return [int(a.num_bytes) for a in trace.allocations if a.purpose == COMMUNICATION]  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"dtype": "bf16"}, {"freeze": "embeddings"}, {"lora": "4:c_attn"}], ids=str)
def test_buckets_hold_every_gradient_once(settings: dict[str, object]) -> None:
    found = buckets(**settings)
    recipe = make(Training, {"sequence": 32, **settings})
    trained = [p for p in run(CONFIG, recipe).parameters if p.tensor.requires_grad]
    assert sum(found) == sum(p.count * p.tensor.num_bytes for p in trained)
    assert all(size >= FIRST_BUCKET for size in found[:-1])
    largest = max(p.tensor.num_bytes for p in trained)
    assert all(size < BUCKET + largest for size in found)


def test_the_peak_is_one_devices_and_the_buckets() -> None:
    words = {"sequence": 32, "implementation": "forloop"}
    alone, shared = (api.train(CONFIG, gpus_per_node=n, **words).memory.unrounded_peak for n in (1, 2))
    assert shared - alone == sum(buckets(**words))
    assert any("DistributedDataParallel" in a.what for a in api.train(CONFIG, gpus_per_node=2, **words).assumptions)


def test_one_device_has_none() -> None:
    assert buckets(gpus_per_node=1) == []
