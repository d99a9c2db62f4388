"""Headers as weigh reads them, beside the libraries that write the files."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

sys.path.insert(0, str(Path(__file__).parent.parent / "sources"))

from making import framed

import weigh
from weigh.errors import InputError
from weigh.sources.checkpoint import Checkpoint
from weigh.sources.gguf_config import ARCHITECTURES
from weigh.sources.opened import LocalFile
from weigh.sources.pytorch import read_pytorch
from weigh.sources.safetensors import read_safetensors

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
tensors = st.dictionaries(st.text(max_size=20), st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=6)


def made(described: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in described.items()}


def same(found: Checkpoint, real: dict[str, torch.Tensor]) -> None:
    assert {n: (t.shape, weigh.dtypes.get(t.dtype), t.num_bytes) for n, t in found.tensors.items()} == {
        n: (tuple(t.shape), weigh.dtypes.get(str(t.dtype)), t.numel() * t.element_size()) for n, t in real.items()
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("files") / "file.bin")


@settings(max_examples=60)
@given(tensors)
def test_safetensors(path: str, described: dict[str, Any]) -> None:
    real = made({name: what for name, what in described.items() if name != "__metadata__"})
    safetensors.torch.save_file(real, path, metadata={"format": "pt"})
    found = read_safetensors(LocalFile(path))
    same(found, real)
    assert found.metadata == {"format": "pt"}


@settings(max_examples=60)
@given(tensors, st.booleans(), st.booleans())
def test_pytorch(path: str, described: dict[str, Any], is_zip: bool, is_module: bool) -> None:
    real = made(described)
    if is_module:
        real = {name: t for name, t in real.items() if t.dtype.is_floating_point and t.element_size() > 1}
        saved: Any = {name: torch.nn.Parameter(t) for name, t in real.items()}
    else:
        saved = real
    if real:
        torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
        same(read_pytorch(LocalFile(path)), real)


def test_views_and_ties(path: str) -> None:
    base = torch.zeros(10, 10)
    torch.save({"rows": base[2:4], "turned": base.t(), "base": base}, path)
    found = read_pytorch(LocalFile(path)).tensors
    assert [(t.shape, t.num_bytes) for t in found.values()] == [((2, 10), 400), ((10, 10), 0), ((10, 10), 0)]


def test_what_pytorch_itself_would_not_load(path: str) -> None:
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)
    with pytest.raises(InputError, match=r"names 'torch.nn.modules.linear.Linear', and nothing was run"):
        read_pytorch(LocalFile(path))


def test_models_as_transformers_saves_them(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=50
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    model.save_pretrained(tmp_path / "one")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    counts = {weigh.params(folder).total for folder in (tmp_path, tmp_path / "one", tmp_path / "sharded")}
    assert counts == {model.num_parameters()}
    for folder in ("sharded", "one"):
        found = weigh.model(tmp_path / folder).checkpoint
        assert found is not None
        same(found, model.state_dict())


BITS = {"F32": 32, "BF16": 16, "F4": 4, "F6_E2M3": 6, "I64": 64, "F8_E4M3": 8, "Q4": 8, "f32": 32}
numbers = st.integers(0, 40) | st.integers() | st.floats() | st.booleans() | st.none()


@st.composite
def headers(draw: Any) -> tuple[dict[str, Any], int]:
    """A header as it should be, and the bytes behind it; half of the time with one number that is another."""
    header: dict[str, Any] = {}
    at = 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3)):
        dtype, shape = draw(st.sampled_from(list(BITS))), draw(st.lists(st.integers(0, 4), max_size=3))
        end = at + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    if header and draw(st.booleans()):
        entry = header[draw(st.sampled_from(sorted(header)))]
        key = draw(st.sampled_from(["shape", "data_offsets"]))
        if entry[key]:
            entry[key][draw(st.integers(0, len(entry[key]) - 1))] = draw(numbers)
    return header, max(0, at + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 8])))


@settings(max_examples=400)
@given(headers())
def test_what_the_library_refuses_is_refused(path: str, made: tuple[dict[str, Any], int]) -> None:
    raw = framed(json.dumps(made[0]).encode(), made[1])
    Path(path).write_bytes(raw)
    try:
        theirs = {name: (tuple(t["shape"]), t["dtype"]) for name, t in safetensors.deserialize(raw)}
    except safetensors.SafetensorError:
        with pytest.raises(InputError):
            read_safetensors(LocalFile(path))
    else:
        ours = read_safetensors(LocalFile(path)).tensors
        assert {name: (t.shape, t.dtype) for name, t in ours.items()} == theirs


def test_ggufs_keys_are_those_that_transformers_reads() -> None:
    """Where both know an architecture, both give its keys the same names."""
    theirs = {name.replace("_", ""): keys for name, keys in GGUF_CONFIG_MAPPING.items()}
    aliases = {"layernormepsilon": "normeps"}
    shared = 0
    for architecture, (_, ours) in ARCHITECTURES.items():
        for key, name in theirs.get(architecture.replace("-", "").replace("_", ""), {}).items():
            known = ours.get(key)
            if known is None or name is None or key in ("rope.dimension_count", "feed_forward_length"):
                continue
            shared += 1
            spelled = {known, aliases.get(known, known)}
            if architecture == "gpt2" and key == "context_length":
                spelled.add("n_ctx")
            if architecture == "falcon" and key == "attention.head_count_kv":
                spelled.add("num_key_value_heads")  # `FalconConfig` says num_kv_heads
            assert name in spelled, (architecture, key)
    assert shared > 60
