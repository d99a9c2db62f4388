"""Memory snapshots: read as data, never executed; written so that they read back as what was weighed."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh.errors import InputError
from weigh.trace.allocator_settings import AllocatorSettings
from weigh.trace.events import Trace
from weigh.trace.peak import phase_peaks
from weigh.trace.replay import replay
from weigh.trace.snapshot import BEFORE, read_snapshot, write_snapshot

TINY = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 2}
LIBRARY = {"filename": "/x/site-packages/torch/nn/modules/linear.py", "line": 7, "name": "forward"}
MINE = {"filename": "/home/me/train.py", "line": 12, "name": "step"}


def event(action: str, address: int, size: int, *frames: dict[str, Any]) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 0, "frames": list(frames)}


def block(address: int, size: int, state: str = "active_allocated") -> dict[str, Any]:
    return {"address": address, "size": size, "requested_size": size, "state": state, "frames": [LIBRARY, MINE]}


def save(path: Path, segments: list[Any], events: list[Any]) -> str:
    path.write_bytes(pickle.dumps({"segments": segments, "device_traces": [events], "allocator_settings": {}}))
    return str(path)


def test_events_become_allocations_with_the_frame_that_owns_them(tmp_path: Path) -> None:
    events = [
        event("segment_alloc", 0, 4096),
        event("alloc", 0, 1024, LIBRARY, MINE),
        event("alloc", 1024, 512, MINE),
        event("free_requested", 0, 1024, MINE),
        event("free_completed", 0, 1024, MINE),
        event("oom", 0, 1 << 40, LIBRARY, MINE) | {"device_free": 99},
    ]
    segments = [
        {"device": 0, "address": 0, "total_size": 4096, "blocks": [block(1024, 512), block(0, 1024, "inactive")]}
    ]
    (found,) = read_snapshot(save(tmp_path / "x.pickle", segments, events))
    assert [(a.num_bytes, a.path, a.op) for a in found.trace.allocations] == [
        (1024, "train.py:12 step", "forward"),
        (512, "train.py:12 step", "step"),
    ]
    assert found.trace.events == [1, 2, -1]
    assert (found.reserved, found.max_reserved) == (4096, 4096)
    (refused,) = found.out_of_memory
    assert (refused.num_bytes, refused.device_free, refused.owner) == (1 << 40, 99, "train.py:12 step")


def test_what_was_there_before_the_recording_is_found_in_frees_and_blocks(tmp_path: Path) -> None:
    events = [event("alloc", 0, 1024, MINE), event("free_completed", 4096, 512)]
    segments = [{"device": 0, "address": 0, "total_size": 8192, "blocks": [block(0, 1024), block(2048, 2048)]}]
    (found,) = read_snapshot(save(tmp_path / "x.pickle", segments, events))
    load, recorded = phase_peaks(found.trace)
    assert load.after == 512 + 2048
    assert (recorded.peak, recorded.after) == (512 + 2048 + 1024, 2048 + 1024)
    assert found.trace.allocations[0].path == BEFORE
    assert found.max_reserved == 8192


@pytest.mark.parametrize("conf", ["", "expandable_segments:True", "roundup_power2_divisions:4"])
def test_a_written_snapshot_reads_back_as_the_replayed_run(tmp_path: Path, conf: str) -> None:
    trace, conf_ = weigh.train(TINY, batch=3, checkpointing="full").run.trace, AllocatorSettings.parse(conf)
    write_snapshot(trace, str(tmp_path / "x.pickle"), conf_)
    (found,) = read_snapshot(str(tmp_path / "x.pickle"))
    replayed = replay(trace, conf_)
    assert max(p.peak for p in phase_peaks(found.trace)) == replayed.allocated  # type: ignore[type-var]
    assert (found.max_reserved, found.reserved) == (replayed.reserved, replayed.end_reserved)


class Harmful:
    """Would run a command if anybody unpickled it."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_snapshot(str(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    data = pickle.dumps({"segments": [Harmful()], "device_traces": []})
    assert "exec" in refused(tmp_path / "x", data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"segments": []}),
        pickle.dumps({"segments": [], "device_traces": []}),
        pickle.dumps({"segments": [1], "device_traces": [[]]}),
        pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc"}]]}),
        pickle.dumps({"segments": [], "device_traces": [[event("alloc", 0, 1)]]})[:-7],
        b"\x80\x04X\xff\xff\xff\xffabc.",
        b"\x80\x04" + b"]" * 5000 + b".",
        b"\x80\x02P1\n.",
    ],
)
def test_what_is_no_snapshot_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path / "x", data)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_snapshot(str(tmp_path / "missing"))


GOOD = pickle.dumps({"segments": [], "device_traces": [[event("alloc", 0, 1, MINE), event("free_completed", 0, 1)]]})


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_damaged_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])
    try:
        found = read_snapshot(str(path))
    except InputError:
        return
    assert all(isinstance(s.trace, Trace) for s in found)


def test_our_snapshots_hold_plain_data_only(tmp_path: Path) -> None:
    write_snapshot(weigh.train(TINY).run.trace, str(tmp_path / "x"))
    names = {op.name for op, _, _ in pickletools.genops(io.BytesIO((tmp_path / "x").read_bytes()))}
    assert not names & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "PERSID", "BINPERSID"}
