"""What is asked for where nothing reads it is refused, not passed over."""

from typing import Any

import pytest

import weigh
from weigh.errors import UsageError
from weigh.recipes.idle import READERS
from weigh.recipes.settings import settings
from weigh.recipes.training import PROGRAM_OF_LOSS, Training

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
OTHER: dict[str, Any] = {
    "param_dtype": "bf16",
    "reduce_dtype": "bf16",
    "backward_prefetch": "post",
    "projection_targets": "mlp",
    "upcast": "norms",
    "pipeline_schedule": "gpipe",
    "context_method": "ulysses",
    "reshard_after_forward": False,
}
"""A value that the setting has not by default, where its kind does not tell one."""


@pytest.mark.parametrize("name", [n for n in READERS if n != "freeze"])
def test_a_setting_without_its_reader_is_refused(name: str) -> None:
    default = next(s.default for s in settings(Training) if s.name == name)
    value = OTHER.get(name, (not default) if isinstance(default, bool) else 7)
    with pytest.raises(UsageError, match="reads it, and there is none") as refused:
        weigh.train(SMALL, sequence=8, **{name: value})
    assert refused.value.where == name


def test_with_its_reader_it_is_read() -> None:
    found = [
        weigh.train(SMALL, sequence=8, shard="zero2", gpus_per_node=2, zero_reduce_bucket_size=size).peak
        for size in (1_000, 10_000_000)
    ]
    assert found[0] < found[1]


@pytest.mark.parametrize("loss", PROGRAM_OF_LOSS)
def test_a_loss_of_another_program_names_it(loss: str) -> None:
    with pytest.raises(UsageError, match=f"--runtime {PROGRAM_OF_LOSS[loss]}"):
        weigh.train(SMALL, sequence=8, loss=loss)


def test_defaults_may_be_said() -> None:
    assert weigh.train(SMALL, sequence=8, backward_prefetch="pre").peak == weigh.train(SMALL, sequence=8).peak


def test_an_adapter_freezes_more_than_a_part() -> None:
    with pytest.raises(UsageError, match="freeze"):
        weigh.train(SMALL, sequence=8, lora="4", freeze="embeddings")
