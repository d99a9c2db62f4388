"""ZeRO stage 3: what every rank holds, and what a step of the real DeepSpeed held."""

from typing import Any

import pytest

from weigh import api
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError, UsageError
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import GRADIENT, OPTIMIZER_STATE, STEP, UNSHARDED, WEIGHT, Trace
from weigh.trace.peak import phase_peaks

CONFIG = {"model_type": "gpt2", "n_layer": 5, "n_embd": 64, "n_head": 2, "vocab_size": 900, "n_positions": 64}
NUMEL = 311_744
SMALL = {"zero_reduce_bucket_size": 30_000, "zero_prefetch_bucket_size": 50_000}


PLAIN: dict[str, Any] = {"sequence": 16, "dtype": BFLOAT16, "shard": "zero3", "optimizer": "adamw_apex", **SMALL}


def trained(**words: Any) -> Trace:
    return run(CONFIG, Training(**(PLAIN | words))).trace


def held(trace: Trace, purpose: str) -> int:
    """Before the last step."""
    stop = [mark.event for mark in trace.marks if mark.phase == STEP][-1]
    made = [(trace.allocations[abs(event) - 1], event > 0) for event in trace.events[:stop]]
    return sum(int(a.num_bytes) * (1 if born else -1) for a, born in made if a.purpose == purpose)  # type: ignore[call-overload]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_everything_is_divided(world: int) -> None:
    """16 bytes of each parameter, among all (Rajbhandari et al. 2020); a partition is padded to whole elements."""
    trace = trained(gpus_per_node=world, zero_param_persistence_threshold=0)
    share = NUMEL / world
    padding = 66  # parameters, each of which is cut by itself
    assert 0 <= held(trace, WEIGHT) - 2 * share <= 2 * padding
    assert 0 <= held(trace, GRADIENT) - 2 * share <= 2 * padding
    assert 0 <= held(trace, OPTIMIZER_STATE) - 12 * share <= 12 * padding + 4
    assert held(trace, UNSHARDED) == 0


def test_small_parameters_stay() -> None:
    stays = held(trained(gpus_per_node=2, zero_param_persistence_threshold=5_000), UNSHARDED)
    small = 5 * (4 * 64 + 3 * 64 + 64 + 4 * 64 + 64 + 64 * 64) + 2 * 64 + 64 * 64
    assert stays == 2 * small


def test_a_short_prefetch_holds_less() -> None:
    words = {"gpus_per_node": 2, "zero_param_persistence_threshold": 0, "zero_max_reuse_distance": 0}
    short, long = (trained(**words, zero_prefetch_bucket_size=n) for n in (0, 200_000))
    assert phase_peaks(short)[-3].peak < phase_peaks(long)[-3].peak


@pytest.mark.parametrize(
    ("words", "levels", "peaks"),
    [
        ({}, [2_558_317, 3_611_069, 2_558_317], [3_697_469, 3_726_141, 4_424_709]),
        (
            {"zero_max_live_parameters": 30_000, "zero_max_reuse_distance": 40_000},
            [2_558_317, 3_106_877, 2_558_317],
            [3_193_277, 3_221_949, 4_424_709],
        ),
        (
            {"zero_sub_group_size": 20_000, "zero_reduce_bucket_size": 60_000},
            [2_618_341, 3_671_093, 2_618_341],
            [3_757_493, 3_786_165, 2_959_917],
        ),
        (
            {"checkpointing": "full", "zero_max_reuse_distance": 20_000},
            [2_558_317, 3_252_029, 2_558_317],
            [3_381_613, 3_420_157, 4_424_709],
        ),
    ],
    ids=["defaults", "few_live", "sub_groups", "checkpoints"],
)
def test_as_deepspeed_itself(words: dict[str, Any], levels: list[int], peaks: list[int]) -> None:
    """DeepSpeed 0.19.6 on two CPU processes, PyTorch 2.13, every storage recorded (docs/log.md).

    Forward, backward and step, once in steady state. What is missing are scalars of the loss and of AdamW.
    """
    cpu = {"device": "cpu", "optimizer": "adamw", "implementation": "forloop", "steps": 3, "gpus_per_node": 2}
    trace = trained(**(cpu | {"zero_param_persistence_threshold": 100} | words))
    found = phase_peaks(trace)[-3:]
    assert all(0 <= real - int(p.before) <= 100 for p, real in zip(found, levels, strict=True))  # type: ignore[arg-type]
    assert all(0 <= real - int(p.peak) <= 100 for p, real in zip(found, peaks, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_is_offloaded_is_on_the_host(world: int) -> None:
    """Its 18 bytes of each parameter: a gradient in 16 bits beside the published 16; and 2 more of the parameters."""
    words = {"gpus_per_node": world, "offload_optimizer": True, "zero_param_persistence_threshold": 0}
    share = NUMEL / world
    for parameters in (False, True):
        recipe = {**PLAIN, **words, "offload_parameters": parameters}
        made = run(CONFIG, Training(**recipe))
        states, *partitions = (made.elsewhere[what] for what in sorted(made.elsewhere, key=lambda w: "fp32" not in w))
        assert 0 <= states - 18 * share <= 18 * 66 + 8 * share  # type: ignore[operator]  # a gradient for the optimizer to begin with
        assert held(made.trace, OPTIMIZER_STATE) <= 4 * 66 + 8
        assert held(made.trace, GRADIENT) <= 66 * 8
        if parameters:
            assert held(made.trace, WEIGHT) == 0
            assert 0 <= partitions[0] - 2 * share <= 2 * share + 2 * 66  # type: ignore[operator]  # once more as they are flattened


def test_a_job_is_weighed() -> None:
    report = api.train("gpt2", runtime="deepspeed", shard="zero3", dtype="bf16", sequence=64, gpus_per_node=4)
    assert "ZeRO" in str(report) or "zero3" in str(report)


def test_what_is_not_run_is_refused() -> None:
    with pytest.raises(NotModelledError, match="lion on the host"):
        trained(offload_optimizer=True, optimizer="lion")
    with pytest.raises(UsageError, match="is an optimizer"):
        trained(optimizer=None)
    with pytest.raises(NotModelledError, match="quantized layers"):
        trained(quantization="nf4")
