"""Loading, evaluating and saving: what the report says of each, and which program's were read."""

from dataclasses import replace
from typing import Any

import pytest

from weigh import api
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError, UsageError
from weigh.recipes.training import Training
from weigh.runtimes import RUNTIMES
from weigh.runtimes.evaluation import on_host
from weigh.runtimes.phases import PHASES, Whole, in_order
from weigh.runtimes.trainer_phases import FILE, _files

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "dtype": "bfloat16",
}


def phases(runtime: str = "transformers", **settings: Any) -> dict[str, Any]:
    report = api.train(LLAMA, runtime=runtime, sequence=64, **settings)
    return {phase.name: phase for phase in report.job_phases}


def test_every_phase_is_weighed_or_says_why_not() -> None:
    wanted = {
        "deepspeed": {"shard": "zero2", "gpus_per_node": 2},
        "fsdp_qlora": {"shard": "fsdp1", "gpus_per_node": 2},
        "litgpt": {"lora": 4},
    }
    for runtime in RUNTIMES.keys() - {"llms_from_scratch"}:
        for name, phase in phases(runtime, **wanted.get(runtime, {})).items():
            assert phase.device is not None or phase.what.startswith("not weighed: "), (runtime, name)
    assert all(phases("transformers@4.48")[name].what.startswith("not weighed: ") for name in PHASES)


def test_four_bits_are_made_of_one_whole_weight_at_a_time() -> None:
    settings = {"dtype": "bf16", "lora": {"rank": 4, "targets": ["q_proj"]}}
    found = phases(quantization="nf4", **settings)["load"]
    whole = phases(**settings)["load"]
    largest = 704 * 256 * 2
    after = api.train(LLAMA, runtime="transformers", quantization="nf4", **settings).memory.phases[0].after
    assert after < found.device < after + largest < whole.device
    assert (found.host, found.mapped) == (0, 2 * api.params(LLAMA).total)


@pytest.mark.parametrize("keeps", ["logits", "argmax"])
def test_an_evaluation_that_keeps_predictions_wants_their_number(keeps: str) -> None:
    with pytest.raises(UsageError, match="grows with every batch"):
        phases(eval_keeps=keeps)


def test_kept_logits_grow_with_the_evaluation_until_they_go_to_the_host() -> None:
    few, many = (phases(eval_keeps="logits", eval_batches=n)["evaluate"] for n in (500, 1500))
    logits, labels = 8 * 64 * 1000 * 2, 8 * 64 * 8
    growth = 1000 * (2 * logits + labels)  # the logits that were there, and those with the last batch's
    assert many.device - few.device == pytest.approx(growth, rel=1e-4)  # and losses
    assert phases(eval_keeps="logits", eval_batches=1500, eval_accumulation=500)["evaluate"].device == few.device
    assert phases(eval_keeps="argmax", eval_batches=1500)["evaluate"].device < few.device
    assert phases(eval_batches=1000)["evaluate"].device == phases()["evaluate"].device


def test_numpy_joins_what_it_has_to_what_comes() -> None:
    """Of bf16 logits fp32 copies; of n batches in turns n are joined to n."""
    r = Training(sequence=10, eval_batch=2, eval_batches=6, eval_keeps="logits")
    logits, labels = 2 * 10 * 100 * 4, 2 * 10 * 8
    assert on_host(r, 100, BFLOAT16) == 6 * logits * 3 // 2
    in_turns = on_host(replace(r, eval_accumulation=2), 100, BFLOAT16)
    assert in_turns == max(12 * logits + 4 * labels, 6 * logits + 12 * labels)


def test_every_process_has_its_copy_but_under_fsdp() -> None:
    alone = phases(dtype="fp32", gpus_per_node=4)["load"]
    shared = phases(dtype="fp32", gpus_per_node=4, shard="fsdp2")["load"]
    assert alone.node == 4 * alone.host == 4 * shared.node == 4 * 4 * api.params(LLAMA).total


def test_files_end_before_fifty_gigabytes() -> None:
    tensors = [Whole(f"layers.{n}.weight", (FILE // 20,), BFLOAT16, linear=False) for n in range(25)]
    assert list(_files(tensors)) == [FILE, FILE, FILE // 2]
    assert [t.name for t in in_order(reversed(tensors))] == [t.name for t in tensors]


def test_what_is_offloaded_is_not_weighed_as_if_it_were_not() -> None:
    found = phases(shard="fsdp1", gpus_per_node=2, offload_parameters=True)
    assert found["steps"].node == 2 * found["steps"].host > 0
    assert all(found[name].what.startswith("not weighed") for name in PHASES if name != "evaluate")


def test_an_encoders_states_would_be_gathered_too() -> None:
    report = api.train("t5-small", runtime="transformers", sequence=64, eval_keeps="logits", eval_batches=3)
    with pytest.raises(NotModelledError, match="encoder's states"):
        report.text()


def test_the_host_of_stacked_experts_is_left_open() -> None:
    text = api.train("mixtral-8x7b", runtime="transformers", sequence=64).text()
    assert "the host is not weighed: experts are stacked" in " ".join(text.split())


def test_the_worst_phase_is_named() -> None:
    text = api.train(LLAMA, runtime="transformers", sequence=64, eval_keeps="logits", eval_batches=100).text()
    assert "Most on the device: evaluate" in " ".join(text.split())
    assert "save the optimizer" in text
