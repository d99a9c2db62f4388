"""`weigh trace`, `weigh measure` and `weigh compare` of traces, as users run them, with what can go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from weigh.errors import InputError, WeighError
from weigh.measure import requirements, witness
from weigh.measure.job import Answer
from weigh.measure.process import Process, death
from weigh.trace.file import load
from weigh.validate import validate

pytestmark = pytest.mark.torch

HERE = Path(__file__).parent
SCHEMAS = HERE.parents[1] / "docs" / "schema"
TINY = json.dumps({
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 131,
})  # fmt: skip


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are looked for in the current folder."""
    monkeypatch.chdir(HERE)


def weigh(*words: str | Path, folder: Path = HERE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weigh", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=dict(os.environ))


def answer(*words: str | Path) -> dict[str, Any]:
    result = weigh(*words, "--json")
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    schema = json.loads((SCHEMAS / f"{found['schema'].split('/')[1]}.json").read_text())
    jsonschema.validate(found, schema)
    return found


def test_a_trace_is_saved_and_compared(tmp_path: Path) -> None:
    here, there = tmp_path / "here.trace", tmp_path / "there.trace.gz"
    words = (TINY, "--batch", "4", "--sequence", "128", "--dtype", "bf16")
    traced = weigh("trace", *words, "-o", here, "--svg", tmp_path / "both.svg")
    assert traced.returncode == 0, traced.stderr
    assert "traced on fake CUDA tensors" in traced.stdout
    assert "After loading the two traces do the same, event by event." in traced.stdout
    assert (tmp_path / "both.svg").read_text().startswith("<svg")
    assert load(str(here))[1]["job"]["recipe"]["batch"] == 4

    found = answer("trace", TINY, "--batch", "4", "--sequence", "64", "--dtype", "bf16", "-o", there)
    assert found["comparison"]["parting"] is None
    assert found["comparison"]["peak"]["difference"] == 0
    assert {row["name"] for row in found["comparison"]["by_component"]} > {"attention", "mlp", "norm"}

    side_by_side = answer("compare", here, there)
    assert side_by_side["schema"] == "weigh/traces/1"
    assert side_by_side["peak"]["difference"] < 0
    assert side_by_side["parting"]["phase"] == "forward 0"
    assert "They part at event" in weigh("compare", here, there).stdout


def test_a_generation_is_traced() -> None:
    found = answer("trace", TINY, "--task", "generate", "--batch", "2", "--prompt", "64", "--new-tokens", "4")
    assert found["comparison"]["parting"] is None
    assert [row["phase"] for row in found["phases"]] == ["prefill", *["decode"] * 4]
    assert all(row["predicted_bytes"] == row["traced_bytes"] for row in found["phases"])


def test_ranks_that_do_not_exist() -> None:
    with Process(timeout=120) as process:

        def asked(**mesh: Any) -> Answer:
            return process.ask(witness._job(TINY, "train", {"sequence": 64, "implementation": "forloop", **mesh})[0])

        assert asked().collectives == {}
        assert asked(shard="fsdp2", gpus_per_node=64).collectives["c10d::_allgather_base_"] > 0
        assert asked(tensor=2, gpus_per_node=2).collectives["_c10d_functional::all_reduce"] > 0


def test_a_measured_run_is_a_case(tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    found = answer("measure", TINY, "--batch", "4", "--sequence", "128", "--kernels", "cpu", "--case", cases)
    assert found["how"] == "measured on the CPU"
    for row in found["phases"]:
        assert row["measured_bytes"] == pytest.approx(row["traced_bytes"], rel=1e-3)
        assert row["predicted_bytes"] == pytest.approx(row["measured_bytes"], rel=1e-3)
    (case,) = map(json.loads, cases.read_text().splitlines())
    assert case["measured"]["max_allocated"] == found["peak"]["bytes"]
    lines = validate(str(cases)).lines
    assert [line.metric for line in lines] == ["max_allocated", "allocated_after_step"]
    assert all(abs(line.relative_error or 0) <= 1e-3 and line.predicted is not None for line in lines)


def test_a_case_has_words_for_every_setting(tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    words = ("--batch", "1", "--sequence", "8", "--kernels", "cpu", "--freeze", "embeddings", "--case", cases)
    result = weigh("measure", TINY, *words)
    assert result.returncode == 2
    assert "a case cannot say 'embeddings'" in result.stderr
    assert not cases.exists()


def test_a_function_of_ones_own() -> None:
    found = witness.trace("support.models:plain", kernels="cpu")
    assert found.answers[0].parameters == 64 * 256 + 256 + 256 * 64 + 64
    paths = {a.path for a in found.run.trace.allocations}
    assert {"up", "down", "up.weight", "down.bias"} <= paths
    assert isinstance(found.prediction, WeighError)
    assert "No prediction" in found.text()


@pytest.mark.parametrize("name", ["choosing", "sieve"])
def test_what_depends_on_values_is_measured_instead(name: str) -> None:
    with pytest.raises(InputError, match="values") as found:
        witness.trace(f"support.models:{name}", kernels="cpu")
    assert "weigh measure" in str(found.value)
    assert witness.measure(f"support.models:{name}", kernels="cpu").measured_peak > 0


WRONG = {
    ("trace", "support.models:aborting"): (3, "ended by SIGABRT; it was ended inside PyTorch's C++"),
    ("trace", "support.models:hanging", "--timeout", "8"): (3, "the run took more than 8 seconds"),
    ("trace", "support.models:plain", "--batch", "3"): (2, "batch: is the function's to decide"),
    ("trace", TINY, "--task", "dream"): (2, "there is no task 'dream'"),
    ("trace", TINY, "--timeout", "soon"): (2, "'soon' is no whole number"),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_goes_wrong_says_so(words: tuple[str, ...]) -> None:
    code, says = WRONG[words]
    result = weigh(*words)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr.partition("Its last words")[0]


UNKNOWN = {"shard": "fsdp1", "gpus_per_node": 2}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    r"Return \(model, batch, loss\)": ("support.models:wrong", {}),
    "a real run with shard fsdp1": (TINY, UNKNOWN),
    "a real run with loss native": (TINY, {"loss": "native"}),
    "cannot be found": ("support.models:nothing", {}),
    "transformers knows no nonsense": ('{"model_type": "nonsense"}', {}),
    "a real run of pipeline parallelism": (TINY, {"pipeline": 2, "gpus_per_node": 2}),
    "FSDP2 over tensor parallelism": (TINY, {"shard": "fsdp2", "tensor": 2, "gpus_per_node": 4}),
    "DDP on fake tensors": (TINY, {"gpus_per_node": 2}),
    "attention was chosen by a build without CUDA": ("support.models:bare_attention", {"implementation": "forloop"}),
    "Name layers that the model has": (TINY, {"lora": "4:wings"}),
}


def test_what_is_refused_says_so() -> None:
    with Process(timeout=120) as process:
        for says, (source, settings) in REFUSED.items():
            with pytest.raises(WeighError, match=says):
                process.ask(witness._job(source, "train", settings)[0])


def test_beams_want_values() -> None:
    with pytest.raises(InputError, match="a real run with beams 4"):
        witness.trace(TINY, "generate", beams=4)


def test_no_gpu() -> None:
    with pytest.raises(WeighError, match="PyTorch sees no GPU"):
        witness.measure(TINY, kernels="cuda")


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"torch is not installed. `pip install 'weigh\[torch\]'` adds it"):
        witness.trace(TINY)


def test_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_version", lambda name: {"torch": "2.12.1"}.get(name, "9.0"))
    with pytest.raises(InputError, match=r"reach into PyTorch 2\.13, and this is 2\.12\.1"):
        witness.trace(TINY)
    requirements.check(fake_cuda=False)
    monkeypatch.setattr(requirements, "_version", lambda _: "2.3")
    with pytest.raises(InputError, match=r"torch 2\.3 is too old"):
        requirements.check()


def test_deaths_in_words() -> None:
    assert "SIGKILL; the machine may have run out of memory" in str(death(-9, ""))
    assert "with exit code 7" in str(death(7, "a\nb"))
    assert str(death(7, "a\nb")).endswith("a\n  b")


def test_a_worker_serves_again_after_a_death() -> None:
    tiny = json.loads(TINY)
    with Process(timeout=120) as process:
        job = witness._job(tiny, "train", {"batch": 1, "sequence": 8, "kernels": "cpu"})[0]
        bad = witness._job("support.models:aborting", "train", {"kernels": "cpu"})[0]
        with pytest.raises(InputError, match="SIGABRT"):
            process.ask(bad)
        assert process.ask(job).parameters > 0


def test_heads_that_are_broadcast_rule_out_fused_kernels() -> None:
    one_key_value_head = {
        "model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 131,
        "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "bias": False, "alibi": False,
    }  # fmt: skip
    traced = weigh("trace", json.dumps(one_key_value_head), "--sequence", "32", "--dtype", "bf16")
    assert "math attention" in traced.stdout, traced.stderr
    assert "After loading the two traces do the same, event by event." in traced.stdout


def test_autocast_casts_what_attention_takes_in_the_order_of_the_real_call() -> None:
    traced = weigh("trace", TINY, "--sequence", "32", "--autocast", "bf16")
    assert "After loading the two traces do the same, event by event." in traced.stdout, traced.stderr
