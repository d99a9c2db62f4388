"""Predicted tensors against those that the real libraries wrote (tools/record_formats.py)."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weigh import api, dtypes, formats
from weigh.formats.base import Stored
from weigh.formats.prediction import predict
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.source import Source

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "formats.json").read_text(encoding="utf-8")
)["cases"]
FUSED = ("bitsandbytes nf4 mixtral", "fp8 block mixtral")
"""The experts of one are saved each on its own and stay as they are; of the other they were recorded in memory."""


def predicted(name: str) -> tuple[Stored, ...]:
    config = RECORDED[name]["config"]
    found = api.model(config)
    return predict(api.ghost(found), formats.read(config), dtypes.BFLOAT16)


def written(name: str) -> list[StoredTensor]:
    found = []
    for tensor, (dtype, shape) in RECORDED[name]["tensors"].items():
        elements = 1
        for size in shape:
            elements *= size
        num_bytes = dtypes.get(dtype).num_bytes(elements)
        found.append(StoredTensor(tensor, tuple(shape), dtype, num_bytes, "model.safetensors"))
    return found


def is_state(name: str) -> bool:
    return ".quant_state.bitsandbytes__" in name


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in FUSED])
def test_shapes_and_dtypes(name: str) -> None:
    ours: Counter[Any] = Counter()
    for s in predicted(name):
        if not is_state(s.name):
            ours[s.dtype.name, s.shape] += s.count
    theirs = Counter((dtypes.get(t.dtype).name, t.shape) for t in written(name) if not is_state(t.name))
    assert ours == theirs


@pytest.mark.parametrize("name", RECORDED)
def test_bytes_by_dtype(name: str) -> None:
    ours: Counter[str] = Counter()
    for s in predicted(name):
        ours[s.dtype.name] += s.num_bytes * s.count
    theirs: Counter[str] = Counter()
    for t in written(name):
        theirs[dtypes.get(t.dtype).name] += t.num_bytes
    texts = sum(is_state(t.name) for t in written(name)) if "double" in name else 0
    assert 0 <= ours.total() - theirs.total() <= 4 * texts, "only the digits of a mean may be fewer"
    assert {k: v for k, v in ours.items() if k != "uint8"} == {k: v for k, v in theirs.items() if k != "uint8"}


@pytest.mark.parametrize("name", RECORDED)
def test_parameters_are_the_models_whatever_is_stored(name: str) -> None:
    config = RECORDED[name]["config"]
    form = formats.read(config)
    assert form is not None
    total = api.params(config).total
    assert sum(s.parameters * s.count for s in predicted(name)) == total
    if name == "hqq 3 axis 1":
        return  # how many codes fill the last number is a value, not a shape
    found = [form.parameters_in(t) for t in written(name)]
    assert sum(t.num_elements if n is None else n for t, n in zip(written(name), found, strict=True)) == total


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "hqq 3 axis 1"])
def test_the_headers_differ_in_nothing_from_their_configs(name: str) -> None:
    tensors = {t.name: t for t in written(name)}
    source = Source(name, RECORDED[name]["config"], "recorded", checkpoint=Checkpoint(tensors, "safetensors"))
    report = api.params(source)
    assert report.stored is not None
    assert report.stored.differences == ()
    assert report.stored.num_bytes == sum(t.num_bytes for t in tensors.values())
    assert report.stored.parameters == report.total
    unknown = replace(source, config={k: v for k, v in source.config.items() if k != "model_type"})
    assert api.params(unknown).total == report.total
    assert "it has no config" in str(api.params(unknown).assumptions)


def test_what_was_recorded() -> None:
    assert len(RECORDED) >= 30
    assert {name.split()[0] for name in RECORDED} == {"bitsandbytes", "compressed-tensors", "fp8", "hqq", "torchao"}
