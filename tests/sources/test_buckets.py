"""Buckets: through obstore where it is installed, on its store in memory and on its store over a folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from making import CONFIG, llama_tensors, sharded

import weigh
from weigh.errors import InputError


def test_without_obstore(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache
    monkeypatch.setitem(sys.modules, "obstore", None)
    for address in ("s3://bucket/model", "gs://bucket/model", "az://bucket/model/config.json"):
        with pytest.raises(InputError, match=r"needs obstore, which is not installed. pip install 'weigh\[buckets\]'"):
            weigh.model(address)


def test_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="not asked for offline"):
        weigh.model("s3://bucket/model")


@pytest.fixture
def store(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    assert cache
    obstore = pytest.importorskip("obstore")
    from obstore.store import MemoryStore

    held = MemoryStore()
    monkeypatch.setattr("obstore.store.from_url", lambda _: held)
    files = {"config.json": json.dumps(CONFIG).encode(), **sharded(llama_tensors(), 2)}
    for name, data in files.items():
        obstore.put(held, name, data)
    return held


@pytest.mark.usefixtures("store")
def test_a_model_in_a_bucket() -> None:
    total = weigh.params(CONFIG).total
    for address in ("s3://bucket/model", "s3://bucket/model/", "s3://bucket/model/model.safetensors.index.json"):
        found = weigh.model(address)
        assert found.checkpoint is not None
        assert sum(t.num_elements for t in found.checkpoint.tensors.values()) == total
    assert weigh.model("gs://bucket/model/config.json").config == CONFIG
    with pytest.raises(InputError, match=r"has no x\.safetensors"):
        weigh.model("s3://bucket/model/x.safetensors")
