"""--precision: the words of Lightning, as the settings that they stand for."""

from __future__ import annotations

from typing import Any

import pytest

import weigh
from weigh.errors import UsageError


@pytest.mark.parametrize(
    ("precision", "runtime", "settings", "same"),
    [
        ("bf16", "pytorch", {}, {"dtype": "bf16"}),
        ("32-true", "pytorch", {}, {"dtype": "fp32"}),
        ("tf32", "pytorch", {}, {"dtype": "fp32"}),
        ("bf16-mixed", "pytorch", {}, {"dtype": "fp32", "autocast": "bf16"}),
        ("16-mixed", "pytorch", {}, {"dtype": "fp32", "autocast": "fp16", "loss_scaling": True}),
        ("bf16-mixed", "pytorch", {"shard": "fsdp2"}, {"dtype": "fp32", "param_dtype": "bf16"}),
        ("bf16-mixed", "pytorch", {"shard": "zero2"}, {"dtype": "bf16"}),
        ("bf16-mixed", "megatron", {}, {"dtype": "bf16"}),
        ("bf16-mixed", "transformers", {"shard": "fsdp1"}, {"dtype": "fp32", "autocast": "bf16"}),
    ],
)
def test_one_word_is_several_settings(
    precision: str, runtime: str, settings: dict[str, Any], same: dict[str, Any]
) -> None:
    job = {"gpus_per_node": 2, "sequence": 64, **settings}
    one = weigh.train("llama-3.2-1b", runtime=runtime, precision=precision, **job)
    assert one.run.recipe == weigh.train("llama-3.2-1b", runtime=runtime, **same, **job).run.recipe


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"precision": "bf15"}, "precision: there is no 'bf15'. Did you mean bf16"),
        ({"precision": "bf16", "dtype": "fp32"}, "precision: dtype says it too. Leave one of them out."),
    ],
)
def test_what_is_no_precision(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        weigh.train("gpt2", **settings)
