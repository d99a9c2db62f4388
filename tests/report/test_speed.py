"""How fast an engine serves: what grows with what, and when nothing is said."""

import itertools
from typing import Any

import pytest

from weigh import api
from weigh.report.serving import ServingReport


def _served(model: str = "llama-3-8b", device: str = "h100", **settings: Any) -> ServingReport:
    return api.serve(model, device, **settings)


def test_one_user_waits_for_the_weights_and_a_prompt_for_arithmetic() -> None:
    speed = _served(context="2k").speed
    assert speed.decodes[0].users == 1
    assert speed.decodes[0].pace.waits_for == "weights"
    assert speed.prefills[-1].pace.waits_for == "arithmetic"
    assert 40 < speed.decodes[0].each < 3.35e12 / 15.0e9


def test_more_users_are_slower_each_and_faster_together() -> None:
    decodes = _served(context="4k", concurrency=16).speed.decodes
    assert [d.users for d in decodes] == sorted(d.users for d in decodes)
    assert len(decodes) == 3
    for few, many in itertools.pairwise(decodes):
        assert many.each < few.each
        assert many.together > few.together


def test_longer_contexts_are_slower() -> None:
    short, long = (_served(context=c, concurrency=8).speed.decodes[1] for c in ("1k", "8k"))
    assert long.each < short.each


def test_quantized_weights_decode_faster() -> None:
    plain, quantized = (_served(runtime="llama.cpp", device="rtx-4090", quantization=q) for q in ("Q8_0", "Q4_K_M"))
    ratio = quantized.speed.decodes[0].pace.weights / plain.speed.decodes[0].pace.weights
    held = [r.launch.shares[0].parts[0].num_bytes for r in (quantized, plain)]
    assert ratio == pytest.approx(held[0] / held[1], rel=0.01)


def test_ranks_and_experts() -> None:
    one, two = (_served("llama-3-70b", "h200", tensor=t, context="1k").speed.decodes[0] for t in (2, 4))
    assert one.each < two.each < 2 * one.each
    mixed = _served("qwen3-30b-a3b", context="1k").speed
    assert mixed.decodes[0].each > 2 * _served("qwen2.5-32b", context="1k").speed.decodes[0].each
    assert any("expert" in a.what for a in mixed.assumptions())


def test_sums_over_more_ranks_wait_longer() -> None:
    """On Hopper too, where only two ranks were measured, which show no wait."""
    two, eight = (_served("llama-3-70b", "h200", tensor=t, context="1k").speed for t in (2, 8))
    sums = [s.decodes[0].pace.links for s in (two, eight)]
    assert sums[1] == pytest.approx(7 * sums[0], rel=0.1)
    assert "us for each sum over 8 ranks" in eight.assumptions()[0].why


def test_a_quarter_of_the_cache_for_fp8() -> None:
    full, half = (_served(context="8k", concurrency=8, kv_dtype=k).speed.decodes[1].pace.cache for k in ("auto", "fp8"))
    assert half == pytest.approx(full / 2)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"device": "h20"}, "bf16 speed of NVIDIA H20"),
        ({"device": "h100x2", "pipeline": 2}, "pipeline stages"),
        ({"runtime": "llama.cpp", "device": "rtx-3060", "gpu_layers": "20"}, "host memory"),
        ({"draft": "llama-3.2-1b"}, "speculative decoding"),
    ],
)
def test_what_is_not_known_is_not_said(settings: dict[str, Any], why: str) -> None:
    report = _served(context="2k", **settings)
    assert why in (report.speed.unsaid or "")
    assert report.as_dict()["speed"] == {"unsaid": report.speed.unsaid}
    assert "How fast is not said" in report.text()


def test_without_a_device_nothing_is_said() -> None:
    report = api.serve("llama-3-8b", context="2k")
    assert report.speed.unsaid == "no device is named"
    assert "fast" not in report.text()


def test_the_text_says_what_it_rests_on() -> None:
    text = _served(context="2k").text(explain=True)
    assert "tokens/s" in text
    assert "docs/speed.md" in text
    assert "of the bandwidth" in text
