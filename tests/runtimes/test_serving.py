"""Engines: laws that hold for every job, and what they refuse."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import weigh
from weigh import dtypes
from weigh.errors import UsageError, WeighError
from weigh.hardware import get_device
from weigh.report.serving import ServingReport
from weigh.runtimes import fused, sharding
from weigh.runtimes.engine import Served
from weigh.sources import catalogue

ENGINES = ("vllm", "sglang", "tensorrt-llm")
MODELS = ("llama-3-8b", "gpt-oss-20b", "mixtral-8x7b", "deepseek-v3", "falcon-7b", "qwen3-30b-a3b")


def served(name: str) -> Served:
    return Served(catalogue.find(name), dtypes.BFLOAT16)


@pytest.mark.parametrize("name", MODELS)
def test_ranks_share_all_weights(name: str) -> None:
    """What every rank has is its share, or all of it: together no less than the model and no more than that on each."""
    one = served(name)
    whole = sum(held.num_bytes for held in fused.held(one, sharding.Rank()) if held.of == "weights")
    heads = one.text_config.get("num_attention_heads")
    ranks = 4 if heads and heads % 4 == 0 else 1
    shared = sum(held.num_bytes for held in fused.held(one, sharding.Rank(ranks, ranks)) if held.of == "weights")
    assert whole <= ranks * shared < ranks * whole or ranks == 1
    stages = [fused.held(one, sharding.Rank(stage=stage, stages=3)) for stage in range(3)]
    together = sum(held.num_bytes for stage in stages for held in stage if held.of == "weights")
    tied = one.text_config.get("tie_word_embeddings") is True
    assert together == whole or tied


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_more_needs_more(engine: str, name: str) -> None:
    launch = weigh.serve(name, "b200x8", engine, tensor=1 if name == "falcon-7b" else 8).launch
    needs = [[launch.demand(context, users) for users in (1, 2, 64)] for context in (1, 1024, 2048, 100_000)]
    assert all(row == sorted(row) and len(set(row)) == 3 for row in needs)
    assert all(list(column) == sorted(column) for column in zip(*needs, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_limits_are_where_it_ceases_to_fit(engine: str) -> None:
    launch = weigh.serve("llama-3-8b", "rtx-4090", engine).launch
    users, context = launch.most_users(4096), launch.longest_context(32)
    assert users is not None
    assert context is not None
    assert launch.fits(4096, users)
    assert not launch.fits(4096, users + 1)
    assert launch.fits(context, 32)
    assert not launch.fits(context + 1, 32)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_more_than_the_device(engine: str) -> None:
    report = weigh.serve("llama-3-8b", "h100", engine)
    assert all(share.free is not None and share.free >= 0 for share in report.launch.shares)


def test_an_older_release_sorts_the_logits() -> None:
    peaks = {
        release: weigh.serve("llama-3-8b", "h100", f"vllm@{release}").launch.printed["activation_peak"]
        for release in ("0.12", "0.22")
    }
    assert peaks["0.12"] > 2 * peaks["0.22"]


def test_what_is_printed_as_weights_depends_on_the_allocator_and_the_platform() -> None:
    """Expandable segments leave no ends; AMD's drop of free memory has what the allocator caches."""
    printed = {
        (device, release, conf): weigh.serve("qwen3-4b", device, f"vllm@{release}", alloc_conf=conf).launch.printed[
            "weights"
        ]
        for device, release, conf in (
            ("h100", "0.12", None),
            ("h100", "0.12", "expandable_segments:True"),
            ("mi300x", "0.12", None),
            ("mi300x", "0.25", None),
        )
    }
    plain, expandable, older, newer = printed.values()
    tensors = sum(held.num_bytes for held in fused.held(served("qwen3-4b"), sharding.Rank()))
    assert tensors <= expandable < tensors + 2**18 < plain < older
    assert newer == plain


def test_a_release_that_was_not_read_says_so() -> None:
    assert any("0.30" in a.what for a in weigh.serve("gpt2", runtime="vllm@0.30").assumptions)
    assert not any("0.12" in a.what for a in weigh.serve("gpt2", runtime="vllm@0.12").assumptions)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"tensor": 3}, "cannot share 32 attention heads"),
        ({"context": "1M"}, "more than the model's 8,192"),
        ({"kv_dtype": "q8_0"}, "vLLM has no cache in q8_0"),
        ({"kv_dtype": "fp7"}, "fp7"),
        ({"quantization": "awg"}, "Did you mean awq"),
        ({"gpu_memory_utilization": 1.5}, "at most 1"),
        ({"max_num_seq": 3}, "max_num_seqs"),
        ({"runtime": "vlm"}, "vllm"),
        ({"runtime": "vllm@new"}, "no release"),
        ({"device": "h1000"}, "h100"),
        ({"device": "h100x2", "tensor": 4}, "there are 2"),
        ({"command": "vllm serve llama-3-8b --max-modle-len 1"}, "--max-model-len"),
    ],
)
def test_what_is_wrong_is_said(words: dict[str, object], said: str) -> None:
    with pytest.raises(WeighError) as caught:
        weigh.serve("llama-3-8b", **words)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert caught.value.exit_code in (2, 3)


def test_a_calibrated_checkpoint_keeps_eight_bits() -> None:
    plain = {**catalogue.find("llama-3-8b").config}
    scheme = {"num_bits": 8, "type": "float", "strategy": "channel"}
    compressed = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
    }
    needs = [
        weigh.serve(config, runtime=runtime).launch.demand(1024, 1)
        for config in (plain, {**plain, "quantization_config": compressed})
        for runtime in ("vllm@0.12", "vllm@0.25")
    ]
    assert needs[0] == needs[1] == needs[2] == 2 * needs[3]


def test_files_that_hold_something_else_are_said(tmp_path: Path) -> None:
    import struct

    config = {**catalogue.find("gpt2").config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 50257 * 768 * 4]}})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(8 + len(header) + 50257 * 768 * 4)
    said = [a.what for a in weigh.serve(tmp_path).assumptions]
    assert any("where the files hold 154,389,504" in what for what in said)


def test_what_is_given_beside_a_command_and_overrules_it_is_said() -> None:
    line = "vllm serve gpt2 --max-model-len 1024"
    said = [a.what for a in weigh.serve("llama-3.2-1b", command=line, context=512).assumptions]
    assert "model llama-3.2-1b in place of the command's gpt2; context 512 in place of the command's 1024" in said
    plain, same = (weigh.serve(command=line, **words) for words in ({}, {"context": "1k"}))
    assert same.job == plain.job
    assert not any("in place of the command" in a.what for a in plain.assumptions)


def test_no_model_is_named() -> None:
    with pytest.raises(UsageError, match="no model"):
        weigh.serve()


def test_changes_save_what_they_say() -> None:
    report = weigh.serve("llama-3-8b", "rtx-4090", context="8k", concurrency=16)
    assert report.verdict == "no"
    assert any(not one.short for one in report.remedies)
    for one in report.remedies:
        words = {"context": "8k", "concurrency": 16, **one.change.words}
        device = f"rtx-4090x{words.get('tensor', 1)}"
        again: ServingReport = weigh.serve("llama-3-8b", device, **words)
        assert (again.verdict == "yes") == (one.short == 0), one.change.what


def test_changes_that_are_made_together_have_a_line_each() -> None:
    report = weigh.serve("llama-3.1-70b", "v100-32gb")
    together = next(one.change for one in report.remedies if " + " in one.change.what)
    assert all(f"  {what}" in str(report) for what in together.what.split(" + "))
    assert max(map(len, str(report).splitlines())) <= 110


def test_advice_is_the_most_bits_that_fit() -> None:
    small = weigh.serve("qwen3-8b", "rtx-4090", context="16k", concurrency=2)
    large = weigh.serve("qwen3-8b", "rtx-4090", context="32k", concurrency=3)
    assert "as it is" in small.advice().splitlines()[0]
    assert "in awq" in large.advice().splitlines()[0] or "in nvfp4" in large.advice().splitlines()[0]
    assert "No way" in weigh.serve("llama-2-70b", "rtx-4090").advice()


def test_the_picture_is_well_formed() -> None:
    for device in (None, "h100"):
        report = weigh.serve("llama-3-8b", device)
        root = ElementTree.fromstring(report.svg())
        assert len(root.findall(".//{*}rect")) > len(report.table.contexts) * len(report.table.users)


def test_a_launch_is_the_same_twice() -> None:
    assert json.dumps(weigh.serve("mixtral-8x7b", "h100x2", tensor=2).as_dict()) == json.dumps(
        weigh.serve("mixtral-8x7b", "h100x2", tensor=2).as_dict()
    )


def test_pools_of_the_catalogue() -> None:
    """A device of every maker can be named; what its programs see is what there is."""
    assert weigh.serve("gpt2", "mi300x").launch.shares[0].memory_bytes == get_device("mi300x").memory_bytes
