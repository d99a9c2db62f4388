"""Checkpoints are rewritten to the byte as planned, whatever stops it, and nothing that will not work is begun."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh.cli import main
from weigh.errors import InputError
from weigh.quant.checkpoint import running
from weigh.quant.checkpoint.executors import Cluster, Here, Processes
from weigh.quant.checkpoint.plan import Plan, make_plan
from weigh.quant.checkpoint.rules import Rules
from weigh.quant.checkpoint.targets import GGUF, NAMES, find

BF16 = ml_dtypes.bfloat16
SPELLED = {np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype(BF16): "BF16", np.dtype("i8"): "I64"}
TARGETS = [*NAMES, "q8_0", "q4_k", "f16"]


def save(path: Path, tensors: dict[str, Any]) -> None:
    header, at = {}, 0
    for name, array in tensors.items():
        end = at + array.nbytes
        header[name] = {"dtype": SPELLED[array.dtype], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(a.tobytes() for a in tensors.values()))


def tensors(dtype: Any = BF16) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def made(*shape: int) -> Any:
        return rng.normal(0, 0.02, shape).astype(dtype)

    return {
        "model.embed.weight": made(40, 256),
        "model.layers.0.mixer.weird_proj.weight": made(300, 512),
        "model.layers.0.mixer.A_log": made(7),
        "model.layers.0.mlp.gate.weight": made(4, 256),
        "model.layers.0.norm.weight": made(256),
        "model.layers.0.conv.weight": made(4, 3, 2),
        "model.layers.1.mixer.weird_proj.weight": made(130, 256),
        "model.steps": np.arange(3),
        "model.empty.weight": made(0, 256),
        "lm_head.weight": made(40, 256),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three shards of a model that nobody has described."""
    folder = tmp_path / "source"
    folder.mkdir()
    every = tensors()
    names = list(every)
    placed = {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save(folder / file, {name: every[name] for name in names[i::3]})
        placed |= dict.fromkeys(names[i::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (folder / "config.json").write_text('{"model_type": "of nobody", "dtype": "bfloat16"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "big.bin.index.json").write_text("{}")
    return folder


def quiet(*_: object) -> None:
    """No progress."""


def carry_out(plan: Plan, out: Path, executor: Any = None) -> dict[str, bytes]:
    running.quantize(plan, out, executor or Here(), quiet)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_written_is_what_was_planned(source: Path, tmp_path: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in source.iterdir()}
    plan = make_plan(str(source), find(name))
    found = carry_out(plan, tmp_path / "out")
    assert {f.name: f.size for f in plan.files} == {n: len(d) for n, d in found.items() if n.startswith("model.")}
    again = make_plan(str(tmp_path / "out"), find("f16")) if name not in GGUF else None
    listed = {d.tensor.name: d.tensor.shape for d in again.decisions} if again else {}
    assert not again or listed == {d.tensor.name: d.tensor.shape for d in plan.decisions}
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    assert "tokenizer.json" in found
    assert "big.bin.index.json" not in found
    kept = {d.tensor.name: d.kept for d in plan.decisions}
    assert {n for n, why in kept.items() if why is None} == {n for n in kept if "weird" in n}


@pytest.mark.parametrize("name", ["nf4", "w4a16", "nvfp4", "fp8-block", "q8_0", "int8"])
def test_slabs_and_processes_change_no_byte(source: Path, tmp_path: Path, name: str) -> None:
    """A tensor in one piece, or in small ones; one process, or two."""
    settings = {"double_quantization": True} if name == "nf4" else {}
    plans = [make_plan(str(source), find(name, **settings), memory=size, workers=1) for size in (97 << 20, 2 << 30)]
    assert len({d.slab for d in plans[0].decisions} | {d.slab for d in plans[1].decisions}) > 2
    assert plans[0].fingerprint == plans[1].fingerprint
    first, second = (carry_out(plan, tmp_path / f"out{i}") for i, plan in enumerate(plans))
    assert first == second
    if name in ("nf4", "q8_0"):
        assert carry_out(plans[1], tmp_path / "out2", Processes(2)) == first


class Stopped(Exception):
    """Stands for what stops a run."""


def stopping(at: int) -> Callable[[int, int], None]:
    def progress(handled: int, _: int) -> None:
        if handled > at:
            raise Stopped

    return progress


@settings(max_examples=10, deadline=None)
@given(moments=st.lists(st.integers(0, 420_000), max_size=5), torn=st.booleans())
def test_whatever_stops_it_the_result_is_the_same(tmp_path_factory: Any, moments: list[int], torn: bool) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    save(folder / "model.safetensors", tensors())
    plan = make_plan(str(folder), find("nf4", double_quantization=True), workers=1)
    expected = carry_out(plan, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "TASK", 1 << 16)
        for moment in moments:
            if not (folder / "out").exists():
                try:
                    running.quantize(plan, folder / "out", Here(), stopping(moment))
                except Stopped:
                    assert not (folder / "out").exists()
                    if torn:  # a line that was cut off, bytes that never reached the disk
                        with (folder / "out.partial/.weigh-journal").open("ab") as journal:
                            journal.write(b'{"tensor": "model.em')
                        with (folder / "out.partial/model.safetensors").open("r+b") as file:
                            file.seek(3000)
                            file.write(b"\x00" * 64)
    if not (folder / "out").exists():
        running.quantize(plan, folder / "out", Here(), quiet)
    assert {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())} == expected
    shutil.rmtree(folder)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate"])
@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: Any, call: str, allowed: int) -> None:
    plan = make_plan(str(source), find("nf4"), shard=60_000)
    expected = carry_out(plan, tmp_path / "whole")
    real, calls = getattr(os, call), 0

    def full(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise OSError(28, "No space left on device")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(InputError, match="No space left on device"):
            running.quantize(plan, tmp_path / "out", Here(), quiet)
    assert not (tmp_path / "out").exists()
    assert carry_out(plan, tmp_path / "out") == expected


def test_too_little_room_is_seen_before(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"has 10 B left, and .* are needed"):
        running.quantize(make_plan(str(source), find("nf4")), tmp_path / "out", Here(), quiet)
    assert not list(tmp_path.glob("out*"))


def test_killed_and_within_the_budget(tmp_path: Path) -> None:
    """The small version of tools/large_checkpoint.py: processes killed by SIGKILL, memory as the system counts it."""
    words = "--size 24MB --largest 8MiB --memory 128MiB --workers 1 --kills 2".split()
    tool = str(Path(__file__).parents[2] / "tools/large_checkpoint.py")
    done = subprocess.run(
        [sys.executable, tool, "--folder", str(tmp_path / "x"), *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical  True" in done.stdout


def rewritten_index(source: Path, **placed: str) -> None:
    index = source / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"] |= {name.replace("_", "."): file for name, file in placed.items()}
    index.write_text(json.dumps(said))


def with_matrix(source: Path, change: Callable[[Any], Any]) -> None:
    every = tensors(np.float32)
    name = "model.layers.0.mixer.weird_proj.weight"
    every[name] = change(every[name])
    for path in source.glob("model*"):
        path.unlink()
    save(source / "model.safetensors", every)


def with_value(source: Path, value: float) -> None:
    def change(matrix: Any) -> Any:
        matrix[7, 7] = value
        return matrix

    with_matrix(source, change)


SHARD = "model-00002-of-00003.safetensors"
BREAK: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda s: (s / SHARD).write_bytes((s / SHARD).read_bytes()[:-100]),
    "corrupt": lambda s: (s / SHARD).write_bytes(b"\x10" + (s / SHARD).read_bytes()[1:]),
    "missing shard": lambda s: (s / SHARD).unlink(),
    "elsewhere": lambda s: rewritten_index(s, lm_head="../secret"),
    "no shard holds": lambda s: rewritten_index(s, nowhere_weight=SHARD),
    "integers": lambda s: with_matrix(s, lambda matrix: matrix.astype(np.int64)),
    "NaN": lambda s: with_value(s, np.nan),
    "infinite": lambda s: with_value(s, np.inf),
    "gpt2": lambda s: (s / "config.json").write_text('{"model_type": "gpt2"}'),
}
WORDS = {
    "rows": "--to w4a16 --group 100",
    "memory": "--to nf4 --memory 60MiB",
    "pattern": "--to nf4 --keep *.nothing",
    "all kept": "--to nf4 --keep *",
    "format": "--to nf5",
    "setting": "--to int8 --double-quantization",
}
ERRORS = {
    "truncated": "is truncated",
    "corrupt": "header",
    "missing shard": "cannot be read",
    "elsewhere": "is not a file beside it",
    "no shard holds": "does not have it",
    "integers": r"is stored in I64. Leave it as it is: --keep",
    "NaN": "NaN or infinite",
    "infinite": "NaN or infinite",
    "rows": "no whole groups of 100",
    "memory": "is too little: .* Give at least",
    "pattern": "no module is called",
    "all kept": "nothing is to be quantized",
    "format": "Did you mean nf4",
    "setting": "has no such setting",
    "gpt2": "Conv1D",
}


@pytest.mark.parametrize("how", ERRORS)
def test_bad_input(source: Path, tmp_path: Path, how: str, capsys: Any) -> None:
    """A sentence, an exit code, and nothing written; of values that spoil a tensor nothing but what can be resumed."""
    BREAK.get(how, lambda _: None)(source)
    words = WORDS.get(how, "--to nf4").split()
    code = main(["quantize", str(source), "--out", str(tmp_path / "out"), "--workers", "1", *words])
    said = capsys.readouterr().err
    assert code in (2, 3)
    assert re.search(ERRORS[how], said), said
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists() == (how in ("NaN", "infinite"))


def test_what_is_there_is_not_overwritten(source: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    command = ["quantize", str(source), "--to", "nf4", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "out/mine").unlink()
    assert main(command) == 0
    assert main(["quantize", str(source), "--to", "nf4", "--out", str(source)]) == 2


def test_another_plan_is_not_mixed_in(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        running.quantize(make_plan(str(source), find("nf4")), tmp_path / "out", Here(), stopping(10))
    with pytest.raises(InputError, match="another conversion"):
        running.quantize(make_plan(str(source), find("fp4")), tmp_path / "out", Here(), quiet)


def test_two_at_work_on_one_folder(source: Path, tmp_path: Path) -> None:
    from weigh.quant.checkpoint.journal import Journal

    plan = make_plan(str(source), find("nf4"))
    (tmp_path / "out.partial").mkdir()
    with Journal(tmp_path / "out.partial", plan.fingerprint, ""), pytest.raises(InputError, match="at work"):
        running.quantize(plan, tmp_path / "out", Here(), quiet)


def test_types_are_mixed(source: Path, tmp_path: Path, capsys: Any) -> None:
    words = "--to q4_0 --also lm_head --mix *.1.*=q8_0 --mix lm_head=q6_k".split()
    command = ["quantize", str(source), *words, "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    kinds = {t["name"]: t["stored"] for t in json.loads(capsys.readouterr().out.partition("\n")[2])["tensors"]}
    proj = "model.layers.{}.mixer.weird_proj.weight"
    assert [kinds[n] for n in ("lm_head.weight", proj.format(0), proj.format(1))] == ["Q6_K", "Q4_0", "Q8_0"]
    for wrong in ("lm_head", "nothing=q8_0", "lm_head=q9"):
        assert main([*command, "--mix", wrong]) == 2


def test_rules_say_why() -> None:
    from weigh.sources.checkpoint import StoredTensor

    def why(name: str, *shape: int, **rules: tuple[str, ...]) -> str | None:
        return Rules(**rules).kept(StoredTensor(name, shape or (8, 8), "BF16", 128, "f"))

    assert why("model.embed_tokens.weight") == "embedding"
    assert why("transformer.wte.weight") == "embedding"
    assert why("blk.0.ffn_gate_inp.weight") == "router"
    assert why("output.weight") == "output layer"
    assert why("bert.encoder.layer.0.output.dense.weight") is None
    assert why("model.layers.0.mlp.shared_experts.up_proj.weight") is None
    assert why("model.layers.0.mlp.experts.3.down_proj.weight") is None
    assert why("lm_head.weight", also=("lm_head",)) is None
    assert why("model.layers.0.mlp.up_proj.weight", keep=("*.0.*",)) == "--keep"
    assert why("model.layers.0.mlp.experts.gate_up_proj", 8, 8, 8) == "3 dimensions"


@pytest.mark.parametrize("place", ["hub", "web"])
def test_from_elsewhere(source: Path, tmp_path: Path, monkeypatch: Any, place: str) -> None:
    """The bytes of a model on the Hub or on a server are those of the same model here, and no weights are cached."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "sources"))
    from fakehub import FakeHub

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    here = carry_out(make_plan(str(source), find("nvfp4")), tmp_path / "here")
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint if place == "hub" else "http://127.0.0.1:9")
        commit = hub.add("org/tiny", {path.name: path.read_bytes() for path in source.iterdir()}).commit
        web = f"{hub.endpoint}/org/tiny/resolve/{commit}/model.safetensors.index.json"
        plan = make_plan("org/tiny" if place == "hub" else web, find("nvfp4"), workers=2)
        there = carry_out(plan, tmp_path / "there", Processes(2))
    same = [name for name in there if name != "weigh-manifest.json"]
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert len(same) == (3 if place == "hub" else 2)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept < 400_000 < sum(d.tensor.num_bytes for d in plan.decisions) * 2


def test_on_a_cluster(source: Path, tmp_path: Path) -> None:
    """The same plan on Dask's workers."""
    distributed = pytest.importorskip("distributed")
    expected = carry_out(make_plan(str(source), find("nf4")), tmp_path / "here")
    with (
        warnings.catch_warnings(action="ignore"),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
    ):
        out = str(tmp_path / "there")
        assert main(["quantize", str(source), "--to", "nf4", "--out", out, "--cluster", cluster.scheduler_address]) == 0
    assert {path.name: path.read_bytes() for path in sorted((tmp_path / "there").iterdir())} == expected
    with pytest.raises(InputError, match="cannot be reached"):
        Cluster("tcp://127.0.0.1:9", seconds=1)


SCHEMAS = Path(__file__).parents[2] / "docs/schema"


def test_answers(source: Path, tmp_path: Path, capsys: Any) -> None:
    """Plans, results, inspections and comparisons say what they say by their schemas."""
    out, plain = str(tmp_path / "out"), str(tmp_path / "plain")

    def answer(schema: str, *words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        found = json.loads(capsys.readouterr().out)
        jsonschema.validate(found, json.loads((SCHEMAS / f"{schema}.json").read_text()))
        return found

    planned = answer("quantize", "quantize", str(source), "--to", "nf4", "--dry-run")
    done = answer("quantize", "quantize", str(source), "--to", "nf4", "--out", out)
    assert done == {**planned, "seconds": done["seconds"], "out": out}
    answer("quantize", "dequantize", out, "--out", plain, "--dtype", "fp32")
    found = answer("inspect", "inspect", out, "--verify")
    assert found["damaged"] == []
    assert found["kinds"]["NF4, blocks of 64"] == {"tensors": 2, "elements": 186880, "bytes": 105120}
    values = answer("values", "compare", str(source), plain, "--values")
    changed = {name for name, errors in values["tensors"].items() if errors["sqnr_db"] is not None}
    assert changed == {name for name in values["tensors"] if "weird" in name}
    assert all(0.05 < values["tensors"][name]["relative_rmse"] < 0.12 for name in changed)
    with (tmp_path / "out/model.safetensors").open("r+b") as file:
        file.seek(-40_000, 2)
        file.write(b"?")
    assert len(answer("inspect", "inspect", out, "--verify", code=1)["damaged"]) == 1


def test_text(source: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["quantize", str(source), "--to", "int8", "--dry-run", "--tensors"]) == 0
    assert "model.layers.0.mixer.weird_proj.weight" in capsys.readouterr().out
    assert main(["quantize", str(source), "--to", "int8", "--out", str(tmp_path / "out")]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "int8 (LLM.int8())" in capsys.readouterr().out
    assert main(["compare", str(source), str(tmp_path / "out"), "--values"]) == 0
    assert "2 differ" in capsys.readouterr().out


def test_planning_and_inspecting_need_no_numpy(source: Path, tmp_path: Path) -> None:
    assert main(["quantize", str(source), "--to", "q8_0", "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    code = "import sys; sys.modules['numpy'] = None; from weigh.cli import main; sys.exit(main(sys.argv[1:]))"

    def without(*words: str) -> Any:
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    for words in (["quantize", str(source), "--to", "nf4", "--dry-run"], ["inspect", str(tmp_path / "out")]):
        done = without(*words)
        assert done.returncode == 0, done.stderr
    refused = without("quantize", str(source), "--to", "nf4", "--out", str(tmp_path / "no"))
    assert (refused.returncode, "weigh[lab]" in refused.stderr) == (3, True)


@pytest.mark.parametrize("name", ["nf4", "int8", "w4a16", "nvfp4", "fp8-block"])
@pytest.mark.parametrize("rows", [-1, 1])
def test_parts_that_do_not_fit(source: Path, tmp_path: Path, name: str, rows: int, capsys: Any) -> None:
    """Scales, or codes, of another size than the matrix has: an error, and no neighbour's bytes for values."""
    carry_out(make_plan(str(source), find(name)), tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    ends = ("weight_scale", "weight_scale_inv", "SCB", "absmax")
    part = next(n for n in header if n.endswith(ends) and "0.mixer" in n)
    first, last = header[part]["data_offsets"]
    width = (last - first) // header[part]["shape"][0] * rows
    header[part]["shape"][0] += rows
    for other, entry in header.items():
        if other != "__metadata__":
            start, end = entry["data_offsets"]
            entry["data_offsets"] = [start + width * (start >= last), end + width * (end >= last)]
    raw = json.dumps(header).encode()
    body = body[:last] + bytes(width) + body[last:] if rows > 0 else body[: last + width] + body[last:]
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    assert main(["dequantize", str(tmp_path / "out"), "--out", str(tmp_path / "plain"), "--workers", "1"]) == 3
    assert "damaged" in capsys.readouterr().err
