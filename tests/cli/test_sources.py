"""Checkpoints on the command line: answered, or one line of complaint and exit code 3."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest


class Runs:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")


def framed(header: bytes, data: int) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(data)


HOSTILE = {
    "model.safetensors": framed(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}', 8),
    "cut.safetensors": framed(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 7),
    "model.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    "pytorch_model.bin": b"PK\x03\x04" + bytes(100),
    "model.safetensors.index.json": b'{"weight_map": {"a": "../../etc/passwd"}}',
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["params", "kv"])
def test_a_file_that_is_none(weigh, tmp_path: Path, command: str, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(HOSTILE[name])
    result = weigh(command, tmp_path / name)
    assert result.returncode == 3, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert name in result.stderr


def test_a_pickle_that_would_run_code(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    mark = tmp_path / "executed"
    data = magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickle.dumps({"w": Runs(str(mark))})
    (tmp_path / "model.pt").write_bytes(data)
    result = weigh("params", tmp_path / "model.pt")
    assert result.returncode == 3
    assert "nothing was run" in result.stderr
    assert not mark.exists()


def test_a_checkpoint_alone(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    header = {"wte.weight": {"dtype": "BF16", "shape": [10, 4], "data_offsets": [0, 80]}}
    (tmp_path / "model.safetensors").write_bytes(framed(json.dumps(header).encode(), 80))
    answer = json.loads(weigh("params", tmp_path / "model.safetensors", "--json").stdout)
    assert answer["parameters"]["total"] == 40
    assert answer["stored"]["bytes"] == 80


def test_offline_asks_nobody(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = weigh(
        "params", "org/model", "--offline", XDG_CACHE_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=""
    )
    assert result.returncode == 3
    assert "not in the cache" in result.stderr
    assert list(tmp_path.iterdir()) == []
