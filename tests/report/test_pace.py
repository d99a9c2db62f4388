"""How long what PyTorch runs op by op takes."""

import pytest

from weigh import api
from weigh.hardware import get_device


def test_a_step_of_training_is_bound_by_its_arithmetic() -> None:
    report = api.train("llama-3-8b", device="h100", dtype="bf16", batch=8, sequence="4k")
    pace = report.pace
    assert pace is not None
    flops = sum(report.flops().values())
    assert pace.bound >= flops / get_device("h100").flops["bf16"]
    assert pace.bound < pace.span.least < pace.span.most
    assert pace.span.least == pytest.approx(flops / 989e12 / 0.57)
    assert pace.tokens == 8 * 4096
    assert any("of the peak arithmetic" in a.what for a in report.all_assumptions())


def test_short_steps_are_bound_by_the_optimizers_bytes_and_by_starting_operations() -> None:
    short = api.train("llama-3-8b", device="h200", dtype="bf16", batch=1, sequence=64).pace
    assert short is not None
    assert short.span.least >= short.bound > 8e9 * 2 * 3 / 4.8e12
    small = api.train("gpt2", device="h100", dtype="bf16", batch=1, sequence=8).pace
    assert small is not None
    assert small.bound < small.span.least


def test_generation_waits_for_starting_its_operations_until_the_batch_is_large() -> None:
    small, large = (api.generate("llama-2-7b", device="a100-80gb", batch=b, prompt=512).pace for b in (1, 128))
    assert small is not None
    assert large is not None
    assert small.alone < small.step.least
    assert large.alone == pytest.approx(large.step.least, rel=0.01)


def test_the_published_steps_are_the_ends_of_the_range() -> None:
    """25.5 tokens/s of Llama-7B on an A100, and 8.4 ms of Llama 3.1 8B on an H100, op by op."""
    a100 = api.generate("llama-2-7b", device="a100-80gb", prompt=5, new_tokens=100).pace
    h100 = api.generate("llama-3.1-8b", device="h100", prompt=5, new_tokens=100).pace
    assert a100 is not None
    assert h100 is not None
    assert a100.step.most == pytest.approx(1 / 25.5, rel=0.02)
    assert h100.step.least == pytest.approx(8.4e-3, rel=0.02)


@pytest.mark.parametrize("device", [None, "h20"])
def test_without_figures_nothing_is_said(device: str | None) -> None:
    assert api.generate("gpt2", device=device).pace is None
    assert api.train("gpt2", device=device).as_dict()["speed"] is None
