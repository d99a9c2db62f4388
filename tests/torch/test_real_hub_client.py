"""The loopback Hub of `tests/sources` is faithful: the real huggingface_hub works with it and agrees with weigh."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "sources"))

from fakehub import FakeHub
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from making import CONFIG, llama_tensors, safetensors, sharded

import weigh
from weigh.errors import InputError

FILES = {"config.json": json.dumps(CONFIG).encode()}
TENSORS = llama_tensors()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        running.add("org/one", {**FILES, "model.safetensors": safetensors(TENSORS)})
        running.add("org/many", {**FILES, **sharded(TENSORS, 3)})
        running.add("org/gated", FILES, gated=True)
        running.add("org/private", FILES, private=True)
        yield running


@pytest.fixture
def download(hub: FakeHub, tmp_path: Path) -> Any:
    def get(repo: str, name: str = "config.json", **how: Any) -> Path:
        options = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "hub", "token": False, **how}
        return Path(hf_hub_download(repo, name, **options))

    return get


def test_files_come_as_they_are(hub: FakeHub, download: Any) -> None:
    for name, data in hub.repositories["org/many"].files.items():
        assert download("org/many", name).read_bytes() == data


def test_what_one_client_downloads_the_other_reads(hub: FakeHub, download: Any, monkeypatch: Any) -> None:
    for name in hub.repositories["org/many"].files:
        path = download("org/many", name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    found = weigh.model("org/many")
    assert found.where == str(path.parent / "config.json")
    assert found.checkpoint is not None
    assert {name: t.shape for name, t in found.checkpoint.tensors.items()} == TENSORS
    assert hub.asked == []
    assert download("org/many", local_files_only=True).read_bytes() == FILES["config.json"]
    with pytest.raises(LocalEntryNotFoundError):
        download("org/one", local_files_only=True)
    with pytest.raises(InputError, match="not in the cache"):
        weigh.model("org/one")


@pytest.mark.parametrize("name", ["org/one", "org/many"])
def test_both_clients_read_the_same_header(hub: FakeHub, name: str) -> None:
    theirs = HfApi(endpoint=hub.endpoint, token=False).get_safetensors_metadata(name)
    ours = weigh.model(name).checkpoint
    assert ours is not None
    assert sum(theirs.parameter_count.values()) == sum(t.num_elements for t in ours.tensors.values())
    described = {n: info for file in theirs.files_metadata.values() for n, info in file.tensors.items()}
    assert {n: (t.shape, t.dtype) for n, t in ours.tensors.items()} == {
        n: (tuple(info.shape), info.dtype) for n, info in described.items()
    }


def test_both_clients_learn_the_same_of_a_repository(hub: FakeHub) -> None:
    info = HfApi(endpoint=hub.endpoint, token=False).model_info("org/many")
    assert info.sha == hub.repositories["org/many"].commit
    assert {sibling.rfilename for sibling in info.siblings} == hub.repositories["org/many"].files.keys()


@pytest.mark.parametrize(
    ("repo", "options", "theirs", "ours"),
    [
        ("org/none", {}, RepositoryNotFoundError, "does not exist"),
        ("org/private", {}, RepositoryNotFoundError, "does not exist"),
        ("org/private", {"token": "hf_wrong"}, RepositoryNotFoundError, "does not exist"),
        ("org/gated", {}, GatedRepoError, "is gated"),
        ("org/gated", {"token": "hf_wrong"}, GatedRepoError, "is gated"),
        ("org/one", {"revision": "v2"}, RevisionNotFoundError, "has no revision"),
    ],
)
def test_both_clients_are_refused_alike(
    hub: FakeHub, download: Any, monkeypatch: Any, repo: str, options: dict[str, str], theirs: Any, ours: str
) -> None:
    with pytest.raises(theirs):
        download(repo, **options)
    if "token" in options:
        monkeypatch.setenv("HF_TOKEN", options["token"])
    with pytest.raises(InputError, match=ours):
        weigh.model(f"{repo}@{options['revision']}" if "revision" in options else repo)
    assert hub.asked


def test_a_token_opens_what_is_closed(hub: FakeHub, download: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    for repo in ("org/gated", "org/private"):
        assert download(repo, token=hub.token).read_bytes() == FILES["config.json"]
        assert weigh.model(repo).config == CONFIG


def test_a_file_that_is_not_there(download: Any) -> None:
    with pytest.raises(EntryNotFoundError):
        download("org/one", "nothing.json")
