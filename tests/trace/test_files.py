import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh.dims import Axes
from weigh.errors import InputError, UsageError
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace import file
from weigh.trace.events import Trace
from weigh.trace.file import load, save
from weigh.trace.peak import phase_peaks

GPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 16, "n_head": 2, "vocab_size": 30, "n_positions": 16}
TRACE = run(GPT2, Training(batch=2, sequence=8, clip=True)).trace


def everything(trace: Trace) -> tuple[Any, ...]:
    allocations = [[getattr(a, name) for name in a.__slots__] for a in trace.allocations]
    calls = [[getattr(c, name) for name in c.__slots__] for c in trace.calls]
    return allocations, calls, trace.events, trace.marks, trace.spans, trace.repeats


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
@pytest.mark.parametrize("trace", [TRACE, run(GPT2, Training(2, 8), unroll=True).trace, Trace([], [], [])])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, name: str, trace: Trace) -> None:
    metadata = {"model": "gpt2", "config": GPT2, "note": "ä\n\u2028"}
    save(trace, str(tmp_path / name), metadata)
    loaded, said = load(str(tmp_path / name))
    assert everything(loaded) == everything(trace)
    assert said == metadata
    assert phase_peaks(loaded) == phase_peaks(trace)
    first = (tmp_path / name).read_bytes()
    save(loaded, str(tmp_path / f"again-{name}"), said)
    if not name.endswith(".gz"):
        assert (tmp_path / f"again-{name}").read_bytes() == first


def test_long_traces_have_short_lines(tmp_path: Path) -> None:
    trace = Trace(TRACE.allocations[:1], [1, -1] * 5000, TRACE.marks[:1])
    save(trace, str(tmp_path / "x.jsonl"))
    assert max(map(len, (tmp_path / "x.jsonl").read_text().splitlines())) < file.LONGEST_LINE / 8
    assert load(str(tmp_path / "x.jsonl"))[0].events == trace.events


def lines(tmp_path: Path) -> list[str]:
    save(TRACE, str(tmp_path / "good.jsonl"))
    return (tmp_path / "good.jsonl").read_text().splitlines(keepends=True)


def refused(tmp_path: Path, text: str, what: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text)
    with pytest.raises(InputError, match=what) as caught:
        load(str(bad))
    assert str(caught.value.where).startswith(str(bad))
    assert caught.value.hint


def test_files_that_are_no_traces_are_refused(tmp_path: Path) -> None:
    header, *rest = lines(tmp_path)
    refused(tmp_path, "{}\n", "no trace")
    refused(tmp_path, "hello\n", "no trace")
    refused(tmp_path, "", "too early")
    refused(tmp_path, header.replace('"version":1', '"version":2') + "".join(rest), "version 2")
    refused(tmp_path, "".join([header, *rest[:-1]]), "too early")
    refused(tmp_path, "".join([header, *rest])[:-1], "too early")
    refused(tmp_path, "".join([header, *rest, rest[-1]]), "more lines")
    refused(tmp_path, header.replace('"events":', '"events":9999999') + "".join(rest), "counts that cannot be")
    refused(tmp_path, header + '["s",' + '"x' * file.LONGEST_LINE, "too long")
    with pytest.raises(InputError, match="cannot be read"):
        load(str(tmp_path / "missing.jsonl"))


def test_cut_and_broken_compressed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    save(TRACE, str(path))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:40] + b"\0" * 20 + whole[60:], b"plain", b""):
        path.write_bytes(broken)
        with pytest.raises(InputError):
            load(str(path))


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MOST_CHARACTERS", 1 << 20)
    header, *_ = lines(tmp_path)
    counts = json.loads(header)
    counts["counts"]["strings"] = 10**7
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.write(json.dumps(counts) + "\n")
        for _ in range(20):
            out.write(json.dumps(["s", "x" * 100_000]) + "\n")
    with pytest.raises(InputError, match="too large"):
        load(str(path))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_no_damage_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = lines(folder)
    number = data.draw(st.integers(0, len(text) - 1))
    place = data.draw(st.integers(0, len(text[number]) - 1))
    text[number] = text[number][:place] + data.draw(st.sampled_from(['"', "-", "9", "null", "[", "x", ","])) + (
        text[number][place + data.draw(st.integers(0, 3)) :]
    )  # fmt: skip
    (folder / "bad.jsonl").write_text("".join(text))
    try:
        loaded, _ = load(str(folder / "bad.jsonl"))
    except InputError:
        return
    save(loaded, str(folder / "still-a-trace.jsonl"))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="written"):
        save(TRACE, str(tmp_path / "no" / "folder.jsonl"))
    swept = run(GPT2, Training(Axes().new(np.array([2, 3])), 8)).trace
    with pytest.raises(UsageError, match="sweep"):
        save(swept, str(tmp_path / "x.jsonl"))
