"""PyTorch's files, written here opcode by opcode; those that PyTorch writes are read in `tests/torch`."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

import weigh
from weigh.errors import InputError
from weigh.sources.checkpoint import Checkpoint
from weigh.sources.opened import LocalFile
from weigh.sources.pytorch import MAGIC, read_pytorch


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little")


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, count: int, kind: str = "torch\nFloatStorage") -> bytes:
    return b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    args = stored + number(offset) + sizes(shape) + sizes(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + args + b"tR"


def state(**entries: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def zipped(pickled: bytes, records: dict[str, int] | None = None, **how: Any) -> bytes:
    """An archive as PyTorch writes it; `records` are the bytes of the storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **how) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, length in (records or {}).items():
            archive.writestr(f"archive/data/{key}", bytes(length))
    return out.getvalue()


def read(tmp_path: Path, data: bytes) -> Checkpoint:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    return read_pytorch(LocalFile(str(path)))


W = tensor(storage("0", 6), (2, 3), (3, 1))


def test_tensors_and_shared_storages(tmp_path: Path) -> None:
    pickled = state(w=W, tied=W, other=tensor(storage("1", 8, "torch\nBFloat16Storage"), (4,), (2,), 1))
    found = read(tmp_path, zipped(pickled, {"0": 24, "1": 16}))
    assert [(t.name, t.shape, t.dtype, t.num_bytes) for t in found.tensors.values()] == [
        ("w", (2, 3), "float32", 24),
        ("tied", (2, 3), "float32", 0),
        ("other", (4,), "bfloat16", 16),
    ]
    assert found.num_bytes == 40


def test_a_tied_weight_is_weighed_once(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(zipped(state(w=W, tied=W), {"0": 24}))
    assert weigh.params(path).num_bytes == 24


def test_training_checkpoints(tmp_path: Path) -> None:
    inner = state(w=W)[2:-1]
    for key in ("state_dict", "model", "module"):
        pickled = state(**{key: inner, "epoch": number(3), "optimizer": state(m=W)[2:-1]})
        assert list(read(tmp_path, zipped(pickled, {"0": 24})).tensors) == ["w"]
    pickled = state(encoder=inner, decoder=inner)
    assert list(read(tmp_path, zipped(pickled, {"0": 24})).tensors) == ["encoder.w", "decoder.w"]


def test_files_from_before_zip(tmp_path: Path) -> None:
    pickles = MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
    listed = state(w=W) + b"\x80\x02](" + text("0") + b"e."
    data = struct.pack("<Q", 6) + bytes(24)
    assert read(tmp_path, pickles + listed + data).num_bytes == 24
    with pytest.raises(InputError, match="is truncated"):
        read(tmp_path, pickles + listed + data[:-1])


class Runs:
    """Would touch a file when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        function, *args = self.call
        return function, tuple(args)


def hostile(tmp_path: Path) -> dict[str, bytes]:
    mark = str(tmp_path / "executed")
    return {
        "os.system": pickle.dumps({"w": Runs(os.system, f"touch {mark}")}),
        "eval": pickle.dumps({"w": Runs(eval, f"open({mark!r}, 'w')")}, protocol=2),
        "in a tuple": pickle.dumps([(1, Runs(open, mark, "w"))], protocol=4),
        "text protocol": b"cos\nsystem\n(S'touch " + mark.encode() + b"'\ntR.",
        "text protocol, other opcodes": b"cposix\nsystem\n(V'touch " + mark.encode() + b"'\ntR.",
        "INST": b"(S'touch'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nX\x01\x00\x00\x00ao.",
        "EXT": b"\x80\x02\x82\x01.",
        "getattr": b"cbuiltins\ngetattr\n(ctorch\nFloatStorage\nX\x07\x00\x00\x00__new__tR.",
        "torch.load": b"ctorch\nload\n(X\x01\x00\x00\x00atR.",
        "torch.hub.load": b"\x80\x04\x8c\x09torch.hub\x8c\x04load\x93.",
        "a name of a module below": b"ctorch._utils\nos.system\n.",
    }


@pytest.mark.parametrize("name", list(hostile(Path("x"))))
def test_nothing_is_executed(tmp_path: Path, name: str) -> None:
    pickled = hostile(tmp_path)[name]
    legacy = MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickled
    for data in (zipped(pickled), legacy):
        with pytest.raises(InputError, match=r"nothing was run|opcode"):
            read(tmp_path, data)
    assert not (tmp_path / "executed").exists()


BROKEN = {
    "nothing": b"",
    "no pickle": b"hello",
    "no dict": b"\x80\x02K\x01.",
    "nothing in it": b"\x80\x02}.",
    "cut off": b"\x80\x02}(X\x05\x00\x00\x00ab",
    "an empty stack": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "a mark for a value": b"\x80\x02(.",
    "two values": b"\x80\x02NN.",
    "a memo that is not there": b"\x80\x02h\x05.",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xff.",
    "a text of exabytes": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "a number of 4 GB": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a number of many digits": b"I" + b"9" * 5000 + b"\n.",
    "a line without end": b"I" + b" " * 10_000,
    "a key that is a list": b"\x80\x02}]K\x01s.",
    "a key that is a tuple of tuples": b"\x80\x02}" + b")" + b"2\x86" * 64 + b"K\x01s.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "items of a number": b"\x80\x02K\x01(K\x01K\x01u.",
    "appending to a dict": b"\x80\x02}K\x01a.",
    "a state for a dict": b"\x80\x02}}b.",
    "half of a surrogate": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_pickle_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        read(tmp_path, zipped(BROKEN[name]))


TENSORS = {
    "beyond its storage": tensor(storage("0", 6), (2, 4), (4, 1)),
    "an offset beyond it": tensor(storage("0", 6), (2, 3), (3, 1), 1),
    "strides beyond it": tensor(storage("0", 6), (2, 3), (30, 1)),
    "a size below zero": tensor(storage("0", 6), (-2, 3), (3, 1)),
    "a stride below zero": tensor(storage("0", 6), (2, 3), (-3, 1)),
    "an offset below zero": tensor(storage("0", 6), (2, 3), (3, 1), -1),
    "too few strides": tensor(storage("0", 6), (2, 3), (1,)),
    "a record of another size": tensor(storage("0", 60), (2, 3), (3, 1)),
    "no record": tensor(storage("7", 6), (2, 3), (3, 1)),
    "an unknown storage": tensor(storage("0", 6, "torch\nQUInt8Storage"), (2, 3), (3, 1)),
    "no storage": tensor(b"N", (2, 3), (3, 1)),
    "a storage of exabytes": tensor(storage("0", 2**62), (2, 3), (3, 1)),
    "no arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "a parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(NtR",
    "a quantized tensor": b"ctorch._utils\n_rebuild_qtensor\n)R",
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        read(tmp_path, zipped(state(w=TENSORS[name]), {"0": 24}))


def test_two_sizes_of_one_storage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two sizes"):
        read(tmp_path, zipped(state(a=W, b=tensor(storage("0", 7), (2, 3), (3, 1))), {"0": 24}))


def test_dicts_that_hold_each_other(tmp_path: Path) -> None:
    doubled = b"\x80\x02}q\x000" + b"".join(
        b"}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cuq%c0" % (i, i, i + 1) for i in range(60)
    )
    itself = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    for pickled in (itself, doubled + b"h\x3c."):
        with pytest.raises(InputError, match="without end"):
            read(tmp_path, zipped(pickled))


def test_steps_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weigh.sources.pickles.MOST_STEPS", 1000)
    with pytest.raises(InputError, match="more than 1,000 steps"):
        read(tmp_path, zipped(b"N" * 2000 + b"."))


def broken_archives() -> dict[str, bytes]:
    good = zipped(state(w=W), {"0": 24})
    bomb = zipped(bytes(1 << 24), compression=zipfile.ZIP_DEFLATED)
    end = good.rfind(b"PK\x05\x06")
    return {
        "a compressed pickle": bomb,
        "cut off": good[:-30],
        "no directory": good[: good.rfind(b"PK\x01\x02")],
        "a directory beyond the end": good[: end + 16] + struct.pack("<L", 1 << 30) + good[end + 20 :],
        "a directory of gigabytes": good[: end + 12] + struct.pack("<L", 1 << 31) + good[end + 16 :],
        "more entries than there are": good[: end + 10] + struct.pack("<H", 900) + good[end + 12 :],
        "zip64 without its end": good[: end + 16] + b"\xff\xff\xff\xff" + good[end + 20 :],
        "no data.pkl": zipped(b".", {}).replace(b"data.pkl", b"data.bin"),
        "a broken record": good.replace(b"PK\x03\x04", b"PK\x03\x05", 2)[4:],
        "another file": b"MZ" + bytes(1000),
    }


@pytest.mark.parametrize("name", broken_archives())
def test_an_archive_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        read(tmp_path, broken_archives()[name])


def test_an_archive_with_zip64_fields(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            file.write(state(w=W))
        archive.writestr("archive/data/0", bytes(24))
    assert read(tmp_path, out.getvalue()).num_bytes == 24
