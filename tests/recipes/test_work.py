"""What a pass computes and moves, against what is known of it otherwise: active parameters, caches, experts."""

import itertools

import pytest

from weigh import api, dtypes, models
from weigh.hardware import get_device
from weigh.hardware.roofline import Efficiency
from weigh.recipes import generation
from weigh.recipes.generation import Generation
from weigh.recipes.pace import Machine
from weigh.recipes.work import EAGER, FUSED, Weights, of_run, passes, reached

MODELS = (
    "llama-3-8b",
    "gpt2",
    "qwen3-30b-a3b",
    "mixtral-8x7b",
    "deepseek-v3",
    "gpt-oss-20b",
    "mamba-2.8b",
    "qwen2.5-0.5b",
)
H100 = get_device("h100")


def _multiplied(name: str) -> int:
    """Elements of the matrices that a token is multiplied with: not of those that are looked up, nor of vectors."""
    total = 0
    for row in api.params(name).rows:
        lookup = row.component == "embedding" and not any("lm_head" in other for other in row.names)
        if len(row.shape) >= 2 and not lookup:
            total += round(row.total * row.active_share)
    tied = not any("lm_head" in row.names[0] for row in api.params(name).rows)
    return total + (api.params(name).rows[0].total if tied else 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_the_active_weights_and_multiplies_them(name: str) -> None:
    """And little else: attention over eight tokens, a scan's states."""
    _, step = passes(api.model(name).config, dtypes.BFLOAT16, 1, 8)
    active = _multiplied(name)
    assert step.weights == pytest.approx(2 * active, rel=0.02)
    assert step.flops == pytest.approx(2 * active, rel=0.05)


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b"])
def test_the_arithmetic_of_a_prefill_grows_with_the_tokens(name: str) -> None:
    short, long = (passes(api.model(name).config, dtypes.BFLOAT16, 1, n)[0].flops for n in (64, 512))
    assert long == pytest.approx(8 * short, rel=0.06)


def test_weights_do_not_grow_with_the_batch_but_experts_do() -> None:
    dense = [passes(api.model("llama-3-8b").config, dtypes.BFLOAT16, b, 8)[1].weights for b in (1, 2, 64)]
    assert len(set(dense)) == 1
    mixed = [passes(api.model("mixtral-8x7b").config, dtypes.BFLOAT16, b, 8)[1].weights for b in (1, 2, 4, 256)]
    assert all(a < b for a, b in itertools.pairwise(mixed))
    assert mixed[-1] == pytest.approx(2 * api.params("mixtral-8x7b").total, rel=0.02)


def test_experts_that_a_batch_reaches() -> None:
    """Against drawing them: 8 of 128, 4 tokens."""
    import random

    draws = random.Random(1)
    seen = [len({e for _ in range(4) for e in draws.sample(range(128), 8)}) for _ in range(2000)]
    assert reached(8 / 128, 4) * 128 == pytest.approx(sum(seen) / len(seen), rel=0.01)


def test_ops_that_run_by_themselves_move_more() -> None:
    source = api.model("llama-3-8b")
    run = generation.run(source.config, Generation(prompt=64, new_tokens=2))
    fused, eager = passes(source.config, dtypes.BFLOAT16, 1, 64), of_run(run, EAGER)
    for one, other in zip(fused, eager, strict=True):
        assert other.launches > 3 * one.launches
        assert sum(o.other * o.count for o in other.ops) > 2 * sum(o.other * o.count for o in one.ops)
        assert one.weights == other.weights


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(H100, dtypes.BFLOAT16)


def test_decoding_waits_for_weights_and_prefill_for_arithmetic(machine: Machine) -> None:
    first, step = passes(api.model("llama-3-8b").config, dtypes.BFLOAT16, 1, 2048)
    assert machine.pace(first).waits_for == "arithmetic"
    assert machine.pace(step).waits_for == "weights"
    assert machine.pace(step, cache_bytes=10**11).waits_for == "cache"


def test_a_batch_decodes_more_for_the_same_weights(machine: Machine) -> None:
    took = {
        b: machine.pace(passes(api.model("llama-3-8b").config, dtypes.BFLOAT16, b, 64)[1]).seconds for b in (1, 8, 1024)
    }
    assert took[8] < 1.1 * took[1]
    assert took[1024] > 2 * took[1]


def test_quantized_weights_are_read_faster_and_multiplied_alike(machine: Machine) -> None:
    first, step = passes(api.model("llama-3-8b").config, dtypes.BFLOAT16, 1, 2048)
    quarter = machine.pace(step, stored=Weights(0.25, 0.25)).weights
    assert quarter == pytest.approx(machine.pace(step).weights / 4, rel=0.02)
    assert machine.pace(first, stored=Weights(0.25, 0.25)).arithmetic >= machine.pace(first).arithmetic


def test_ranks_share_the_work_and_send_each_other_sums() -> None:
    step = passes(api.model("llama-3-70b").config, dtypes.BFLOAT16, 1, 64)[1]
    alone = Machine(H100, dtypes.BFLOAT16).pace(step)
    eight = Machine(H100, dtypes.BFLOAT16, Efficiency(per_message=5e-6), 8).pace(step)
    assert eight.weights == pytest.approx(alone.weights / 8)
    assert eight.links > 80 * 2 * 7 * 5e-6
    assert alone.links == 0


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "mamba-130m"])
def test_a_batch_is_its_sequences_and_the_weights_once(name: str, machine: Machine) -> None:
    """As a run of the batch says; a router's weights in fp32, which count as its input, once a sequence."""
    config = api.model(name).config
    one, many = (passes(config, dtypes.BFLOAT16, batch, 64)[1] for batch in (1, 24))
    times = one.times(24)
    assert times.flops == many.flops
    assert times.weights == pytest.approx(many.weights, rel=1e-6)
    assert (times.layers, times.hidden, times.tokens) == (many.layers, many.hidden, many.tokens)
    assert machine.pace(times).seconds == pytest.approx(machine.pace(many).seconds, rel=0.01)


@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "gemma-3-27b-text", "gpt-oss-20b", "deepseek-v3", "jamba-v0.1"])
def test_one_block_stands_for_all_that_are_alike(name: str) -> None:
    model = api.model(name)
    recipe = Generation(
        prompt=700, new_tokens=2, dtype=dtypes.BFLOAT16, attention=models.default_attention(model.config)
    )
    every = of_run(generation.run(model.config, recipe, unroll=True), FUSED)
    for one, whole in zip(passes(model.config, dtypes.BFLOAT16, 1, 700), every, strict=True):
        assert (one.flops, one.weights, one.kernels, one.layers) == (
            whole.flops,
            whole.weights,
            whole.kernels,
            whole.layers,
        )
        assert sum(op.other * op.count for op in one.ops) == sum(op.other * op.count for op in whole.ops)
