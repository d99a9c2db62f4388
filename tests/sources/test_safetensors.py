import json
from pathlib import Path
from typing import Any

import pytest
from making import CONFIG, framed, llama_tensors, safetensors, sharded

import weigh
from weigh import dtypes
from weigh.errors import InputError
from weigh.sources.checkpoint import Checkpoint
from weigh.sources.opened import LocalFile, LocalFolder
from weigh.sources.safetensors import BITS, read_safetensors
from weigh.sources.shards import counted, read_index

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def read(tmp_path: Path, data: bytes) -> Checkpoint:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    return read_safetensors(LocalFile(str(path)))


def header(entries: Any, data: int = 24) -> bytes:
    return framed(json.dumps(entries).encode(), data)


def test_names_shapes_dtypes_bytes(tmp_path: Path) -> None:
    entries = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        "a": F32,
        "none": {"dtype": "I64", "shape": [0, 5], "data_offsets": [26, 26]},
        "half": {"dtype": "F4", "shape": [4], "data_offsets": [26, 28]},
    }
    found = read(tmp_path, header(entries, 28))
    assert [(t.name, t.shape, t.dtype, t.num_bytes) for t in found.tensors.values()] == [
        ("b", (), "BF16", 2),
        ("a", (2, 3), "F32", 24),
        ("none", (0, 5), "I64", 0),
        ("half", (4,), "F4", 2),
    ]
    assert found.metadata == {"format": "pt"}
    assert found.num_bytes == 28
    assert found.files == (("model.safetensors", (tmp_path / "model.safetensors").stat().st_size),)


def test_every_dtype_of_the_format_is_known() -> None:
    assert all(dtypes.get(name).bits_per_element == bits for name, bits in BITS.items())


HOSTILE = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "a header beyond the end": framed(b"{}", 0, length=3),
    "a header of exabytes": framed(b"{}", 0, length=2**63),
    "a header of all ones": framed(b"{}", 0, length=2**64 - 1),
    "not JSON": framed(b"{nonsense", 0),
    "not UTF-8": framed(b'{"\xff": 1}', 0),
    "a list": framed(b"[]", 0),
    "lists in lists": framed(b"[" * 1_000_000, 0),
    "objects in objects": framed(b'{"a":' * 300_000, 0),
    "a million lists": framed(b'{"a": [' + b"[]," * (1 << 20) + b"0]}", 0),
    "a number without end": framed(b'{"a": ' + b"9" * 100_000 + b"}", 0),
    "NaN": framed(b'{"a": NaN}', 0),
    "a name twice": framed(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), 24),
    "a key twice": framed(b'{"a": {"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}', 24),
    "no dtype": header({"a": {"shape": [2, 3], "data_offsets": [0, 24]}}),
    "no shape": header({"a": {"dtype": "F32", "data_offsets": [0, 24]}}),
    "more keys": header({"a": {**F32, "strides": [3, 1]}}),
    "no object": header({"a": 5}),
    "an unknown dtype": header({"a": {**F32, "dtype": "F33"}}),
    "a dtype that is a list": header({"a": {**F32, "dtype": ["F32"]}}),
    "a block format": header({"a": {"dtype": "Q4_0", "shape": [32], "data_offsets": [0, 18]}}, 18),
    "a size below zero": header({"a": {**F32, "shape": [-2, -3]}}),
    "a size in words": header({"a": {**F32, "shape": ["a" * 1000, 10**9]}}),
    "a size that is a fraction": header({"a": {**F32, "shape": [2.0, 3]}}),
    "a size that is true": header({"a": {**F32, "shape": [True, 6]}}),
    "a shape that is a number": header({"a": {**F32, "shape": 6}}),
    "sizes beyond all bounds": header({"a": {**F32, "shape": [2**62] * 5000}}),
    "sizes of many digits": framed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,24]}}', 24),
    "offsets that go back": header({"a": {**F32, "data_offsets": [24, 0]}}),
    "offsets below zero": header({"a": {**F32, "data_offsets": [-24, 0]}}),
    "three offsets": header({"a": {**F32, "data_offsets": [0, 24, 24]}}),
    "offsets in words": header({"a": {**F32, "data_offsets": ["0", "24"]}}),
    "fewer bytes than the shape": header({"a": {**F32, "data_offsets": [0, 20]}}, 20),
    "half a byte": header({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1),
    "overlapping": header({"a": F32, "b": {**F32, "data_offsets": [12, 36]}}, 36),
    "the same bytes": header({"a": F32, "b": F32}),
    "a gap": header({"a": {**F32, "data_offsets": [8, 32]}}, 32),
    "cut off": header({"a": F32}, 23),
    "bytes of nobody": header({"a": F32}, 25),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "a": F32}),
    "metadata in words": header({"__metadata__": "a", "a": F32}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, HOSTILE[name])
    assert "model.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 34)  # sparse: it takes no room
    with pytest.raises(InputError, match="header has 8,589,934,592 bytes"):
        read_safetensors(LocalFile(str(path)))


TENSORS = llama_tensors()


def folder(tmp_path: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return str(tmp_path)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), **sharded(TENSORS, 3)}
    found = weigh.model(folder(tmp_path, files)).checkpoint
    assert found is not None
    assert {name: t.shape for name, t in found.tensors.items()} == TENSORS
    assert {t.file for t in found.tensors.values()} == set(files) - {"config.json", "model.safetensors.index.json"}
    by_index = weigh.model(str(tmp_path / "model.safetensors.index.json"))
    assert by_index.checkpoint is not None
    assert by_index.checkpoint.tensors == found.tensors
    assert by_index.config == CONFIG


def test_shards_without_an_index(tmp_path: Path) -> None:
    files = sharded(TENSORS, 3)
    files.pop("model.safetensors.index.json")
    found = weigh.params(folder(tmp_path, files))
    assert found.total == weigh.params(CONFIG).total
    assert weigh.params(str(tmp_path / "model-00002-of-00003.safetensors")).total == found.total
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-00003-of-00003.safetensors, one of 3 files"):
        weigh.params(str(tmp_path))


def test_names_that_count() -> None:
    assert counted("model.safetensors") is None
    assert counted("m-00005-of-00004.gguf") is None
    assert counted("m-00000-of-00004.gguf") is None
    assert counted("m-00001-of-99999.gguf") is None


def test_several_checkpoints_in_one_folder(tmp_path: Path) -> None:
    folder(tmp_path, {"a.safetensors": safetensors(TENSORS), "b.safetensors": safetensors(TENSORS)})
    with pytest.raises(InputError, match=r"several checkpoints: a.safetensors, b.safetensors. Name one"):
        weigh.params(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(safetensors(TENSORS))
    assert weigh.params(str(tmp_path)).total == weigh.params(CONFIG).total


INDICES: dict[str, tuple[Any, str]] = {
    "no map": ({}, "has no weight_map"),
    "an empty map": ({"weight_map": {}}, "has no weight_map"),
    "a list": ({"weight_map": ["a"]}, "has no weight_map"),
    "a number": ({"weight_map": {"a": 1}}, "no file"),
    "the folder above": ({"weight_map": {"a": "../model.safetensors"}}, "not a file beside it"),
    "the root": ({"weight_map": {"a": "/etc/passwd"}}, "not a file beside it"),
    "a folder below": ({"weight_map": {"a": "x/model.safetensors"}}, "not a file beside it"),
    "a drive": ({"weight_map": {"a": "C:model.safetensors"}}, "not a file beside it"),
    "a backslash": ({"weight_map": {"a": "..\\model.safetensors"}}, "not a file beside it"),
    "a null byte": ({"weight_map": {"a": "model\0.safetensors"}}, "not a file beside it"),
    "nothing there": ({"weight_map": {"a": "model-2.safetensors"}}, "cannot be read: No such file"),
    "the folder itself": ({"weight_map": {"a": ".."}}, "not a file beside it"),
    "another tensor": ({"weight_map": {"zz": "model-1.safetensors"}}, "'zz' is in model-1.safetensors, which does not"),
    "no end": ({"weight_map": {str(i): f"m-{i}" for i in range(5000)}}, "names 5,000 files"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_leads_astray(tmp_path: Path, name: str) -> None:
    index, message = INDICES[name]
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "model.safetensors").write_bytes(header({"a": F32}))
    (inside / "model-1.safetensors").write_bytes(header({"a": F32}))
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        read_index(LocalFolder(str(inside)), "model.safetensors.index.json", read_safetensors)


def test_the_index_says_whose_tensor_counts(tmp_path: Path) -> None:
    one, other = {"a": (2,), "b": (2,)}, {"a": (3,), "c": (3,)}
    files = {"m-1.safetensors": safetensors(one), "m-2.safetensors": safetensors(other)}
    placed = {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}
    for placing in (placed, dict(reversed(placed.items()))):
        files["model.safetensors.index.json"] = json.dumps({"weight_map": placing}).encode()
        folder(tmp_path, files)
        found = read_index(LocalFolder(str(tmp_path)), "model.safetensors.index.json", read_safetensors)
        assert {name: t.shape for name, t in found.tensors.items()} == {"a": (3,), "b": (2,), "c": (3,)}


def test_a_checkpoint_without_a_config_is_counted_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(TENSORS))
    report = weigh.params(path)
    assert report.total == weigh.params(CONFIG).total
    assert report.dtype.name == "bf16"
    with pytest.raises(InputError, match="has no config beside it"):
        weigh.train(path)


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for name in ("model.safetensors", "model.gguf", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(InputError, match=r"is a pointer of git-lfs.*git lfs pull"):
            weigh.params(str(tmp_path / name))


def test_no_file_is_opened_that_is_none(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is no file"):
        weigh.params(str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match="null byte"):
        weigh.params("a\0.safetensors")
