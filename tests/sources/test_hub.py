import json
import time
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub, etag
from making import CONFIG, gguf, llama_tensors, safetensors, sharded

import weigh
from weigh.errors import InputError
from weigh.sources.http import Client, Patience, RemoteFile
from weigh.sources.hub import HubId, parse_id

TENSORS = llama_tensors()
TOTAL = sum(weigh.params(CONFIG).by_component().values())


def config(**more: Any) -> bytes:
    return json.dumps({**CONFIG, **more}).encode()


@pytest.fixture
def tiny(hub: FakeHub) -> FakeHub:
    hub.add("org/tiny", {"README.md": b"#", "config.json": config(), **sharded(TENSORS, 3)}, branches=("main", "v1/a"))
    return hub


def test_ids() -> None:
    assert parse_id("Qwen/Qwen3-8B") == HubId("Qwen/Qwen3-8B")
    assert parse_id("o/n@refs/pr/1:Q4_K_M") == HubId("o/n", "refs/pr/1", "Q4_K_M")
    for wrong in ("gpt2", "a/b/c", "../b", "a/..", "a/b@", "a/b@..", "a/b@x/../y", "a/b@/x", "a b/c", "a/b\n", "a//b"):
        assert parse_id(wrong) is None, wrong


def test_a_sharded_model_by_its_id(tiny: FakeHub) -> None:
    found = weigh.model("org/tiny")
    commit = tiny.repositories["org/tiny"].commit
    assert found.name == "org/tiny"
    assert commit in found.origin
    assert found.checkpoint is not None
    assert {name: t.shape for name, t in found.checkpoint.tensors.items()} == TENSORS
    assert found.checkpoint.num_bytes == 2 * TOTAL
    assert weigh.params("org/tiny").total == TOTAL


def test_what_cannot_change_is_asked_for_once(tiny: FakeHub) -> None:
    weigh.model("org/tiny")
    first = tiny.paths()
    assert len(first) == len(set(first)) == 1 + 1 + 2 + 3 * 2  # commit, config; index and shards, each with where it is
    weigh.model("org/tiny")
    assert [(asked.path, "if-none-match" in asked.headers) for asked in tiny.asked] == [
        ("/api/models/org/tiny/revision/main", True)
    ]


def test_a_new_commit_is_noticed(tiny: FakeHub) -> None:
    assert weigh.params("org/tiny").total == TOTAL
    smaller = {**CONFIG, "num_hidden_layers": 1}
    tiny.add("org/tiny", {"config.json": json.dumps(smaller).encode(), **sharded(llama_tensors(smaller), 2)})
    assert weigh.params("org/tiny").total < TOTAL


def test_revisions(tiny: FakeHub) -> None:
    commit = tiny.repositories["org/tiny"].commit
    assert weigh.model("org/tiny@v1/a").config == weigh.model(f"org/tiny@{commit}").config
    with pytest.raises(InputError, match="has no revision 'v9'"):
        weigh.model("org/tiny@v9")


def test_offline_takes_what_was_read_online(tiny: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = weigh.model("org/tiny")
    tiny.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = weigh.model("org/tiny")
    assert offline.checkpoint is not None
    assert online.checkpoint is not None
    assert offline.checkpoint.tensors == online.checkpoint.tensors
    with pytest.raises(InputError, match=r"not in the cache.*Leave out --offline"):
        weigh.model("org/other")
    assert tiny.asked == []


def test_a_damaged_cache_is_asked_again(tiny: FakeHub, cache: Path) -> None:
    weigh.model("org/tiny")
    kept = list((cache / "weigh" / "http").iterdir())
    assert len(kept) == 6
    for path in kept:
        path.write_bytes(path.read_bytes()[:-3])
    tiny.asked.clear()
    assert weigh.params("org/tiny").total == TOTAL
    assert len(tiny.asked) == 10


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    (cache / "weigh").write_text("a file where the folder should be")
    assert weigh.params("org/tiny").total == TOTAL


@pytest.mark.usefixtures("tiny")
def test_nothing_is_written_outside_of_the_cache(tmp_path: Path, cache: Path) -> None:
    weigh.model("org/tiny")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert all(path.parent == cache / "weigh" / "http" for path in written)


def test_the_hubs_own_cache(tiny: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tiny.repositories["org/tiny"]
    folder = cache / "huggingface" / "hub" / "models--org--tiny"
    snapshot = folder / "snapshots" / repository.commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(repository.commit)
    for name, data in repository.files.items():
        (snapshot / name).write_bytes(data)
    assert weigh.params("org/tiny").total == TOTAL
    assert tiny.paths() == ["/api/models/org/tiny/revision/main"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    found = weigh.model("org/tiny")
    assert found.where == str(snapshot / "config.json")
    assert found.name == "org/tiny"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "elsewhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "elsewhere"))
    with pytest.raises(InputError, match="not in the cache"):
        weigh.model("org/tiny")


def test_gated_private_and_missing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", {"config.json": config()}, gated=True)
    hub.add("org/private", {"config.json": config()}, private=True)
    with pytest.raises(InputError, match=r"is gated\. Accept its terms at .*/org/gated and set HF_TOKEN"):
        weigh.model("org/gated")
    for name in ("org/private", "org/none"):
        with pytest.raises(InputError, match=r"does not exist, or not without a token.*set HF_TOKEN"):
            weigh.model(name)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="is gated"):
        weigh.model("org/gated")
    with pytest.raises(InputError, match="not with the token that was given"):
        weigh.model("org/private")
    monkeypatch.setenv("HF_TOKEN", f" {hub.token}\n")
    assert weigh.params("org/gated").total == weigh.params("org/private").total == TOTAL


def test_where_the_token_is_found(hub: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/private", {"config.json": config()}, private=True)
    file = cache / "huggingface" / "token"
    file.parent.mkdir()
    file.write_text(hub.token)
    weigh.model("org/private")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with pytest.raises(InputError, match="without a token"):
        weigh.model("org/private")
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="without a token"):
        weigh.model("org/private")


def test_the_token_goes_to_the_hub_and_nowhere_else(tiny: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", tiny.token)
    weigh.model("org/tiny")
    by_server = {(asked.server, "authorization" in asked.headers) for asked in tiny.asked}
    assert by_server == {("hub", True), ("cdn", False)}
    tiny.asked.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    weigh.model(f"{tiny.endpoint}/org/tiny/blob/main/config.json")
    assert {asked.server for asked in tiny.asked if "authorization" in asked.headers} == {"hub"}


REDIRECTS = {
    "file:///etc/passwd": "only http and https are asked",
    "ftp://127.0.0.1/x": "only http and https are asked",
    "http://user:password@127.0.0.1/": "no address that can be asked",
    "http://127.0.0.1:99999/": "is no address",
    "http://[::1/": "no address",
    "": "is redirected more than 5 times",
}


@pytest.mark.parametrize("target", REDIRECTS)
def test_a_redirect_that_leads_astray(tiny: FakeHub, target: str) -> None:
    commit = tiny.repositories["org/tiny"].commit
    path = f"/org/tiny/resolve/{commit}/config.json"
    tiny.tricks[path] = lambda handler: handler.redirect(target)
    with pytest.raises(InputError, match=REDIRECTS[target]):
        weigh.model("org/tiny")


def test_a_renamed_repository(tiny: FakeHub) -> None:
    tiny.tricks["/api/models/old/tiny/revision/main"] = lambda handler: handler.redirect(
        "/api/models/org/tiny/revision/main"
    )
    commit = tiny.repositories["org/tiny"].commit
    for name in tiny.repositories["org/tiny"].files:
        path = f"resolve/{commit}/{name}"
        tiny.tricks[f"/old/tiny/{path}"] = lambda handler, path=path: handler.redirect(f"/org/tiny/{path}")
    assert weigh.params("old/tiny").total == TOTAL


def test_one_file_without_shards(hub: FakeHub) -> None:
    hub.add("org/one", {"config.json": config(), "model.safetensors": safetensors(TENSORS)})
    found = weigh.model("org/one").checkpoint
    assert found is not None
    assert found.files == (("model.safetensors", len(safetensors(TENSORS))),)


def test_one_of_several_gguf_files(hub: FakeHub) -> None:
    small, large = (
        gguf(
            [
                ("general.architecture", 8, "mamba"),
                ("mamba.embedding_length", 4, 8),
                ("mamba.block_count", 4, 1),
                ("mamba.ssm.state_size", 4, 4),
            ],
            [("token_embd.weight", (8, rows), 1, 0)],
            8 * rows * 2,
        )
        for rows in (16, 32)
    )
    hub.add("org/q", {"m-Q4_K_M.gguf": small, "m-Q8_0.gguf": large, "mmproj-f16.gguf": b""})
    with pytest.raises(InputError, match=r"several checkpoints: m-Q4_K_M.gguf, m-Q8_0.gguf. Name one"):
        weigh.model("org/q")
    assert weigh.model("org/q:q4_k_m").config["vocab_size"] == 16
    assert weigh.model("org/q:Q8_0").config["vocab_size"] == 32
    with pytest.raises(InputError, match="no GGUF file with 'Q2' in its name"):
        weigh.model("org/q:Q2")
    assert weigh.model(f"{hub.endpoint}/org/q/blob/main/m-Q8_0.gguf").config["vocab_size"] == 32


def test_pages_of_the_hub(tiny: FakeHub) -> None:
    for address in (
        "org/tiny",
        "org/tiny/",
        "org/tiny/tree/main",
        "org/tiny?library=x",
        "org/tiny/blob/main/config.json",
    ):
        assert weigh.params(f"{tiny.endpoint}/{address}").total == TOTAL
    assert weigh.params("hf://org/tiny").total == TOTAL
    for address in ("org", "org/tiny/blob/main/a/b", "org/tiny/blob/main/..%2fx"):
        with pytest.raises(InputError, match="is no page of a model"):
            weigh.params(f"{tiny.endpoint}/{address}")


def test_a_file_on_any_server(tiny: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", tiny.token)
    commit = tiny.repositories["org/tiny"].commit
    base = f"{tiny.endpoint}/org/tiny/resolve/{commit}"
    assert weigh.params(f"{base}/config.json").total == TOTAL
    found = weigh.model(f"{base}/model.safetensors.index.json?download=true")
    assert found.checkpoint is not None
    assert len(found.checkpoint.tensors) == len(TENSORS)
    assert found.config["model_type"] == "llama"
    assert not any("authorization" in asked.headers for asked in tiny.asked)


def test_mirrors_do_not_see_a_hub_that_is_none(hub: FakeHub) -> None:
    hub.tricks["/api/models/org/x/revision/main"] = lambda handler: handler.give(b'{"hello": 1}')
    with pytest.raises(InputError, match=r"this is no Hub\. Check HF_ENDPOINT"):
        weigh.model("org/x")


def patient(hub: FakeHub, path: str) -> RemoteFile:
    return RemoteFile(Client(patience=Patience(silence=0.2, whole=0.5, all=2)), f"{hub.endpoint}{path}", "x")


def trickle(handler: Any) -> None:
    """A byte now and then, never silent for long."""
    handler.send_response(200)
    handler.finish_headers(1 << 20)
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def trickle_headers(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(100):
        handler.wfile.write(b"X-%d: 1\r\n" % i)
        time.sleep(0.05)


def say_nothing(_: Any) -> None:
    time.sleep(1)


def hang_up(handler: Any) -> None:
    handler.close_connection = True


def cut_off(handler: Any) -> None:
    handler.send_response(200)
    handler.finish_headers(1000)
    handler.wfile.write(b"{}")
    handler.close_connection = True


def raw(data: bytes) -> Any:
    def send(handler: Any) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return send


@pytest.mark.parametrize("trick", [trickle, trickle_headers, say_nothing])
def test_a_server_that_takes_for_ever(hub: FakeHub, trick: Any) -> None:
    hub.tricks["/x"] = trick
    started = time.monotonic()
    with pytest.raises(InputError, match="no answer in time"):
        patient(hub, "/x").read(0, 8)
    assert time.monotonic() - started < 2


UNTRUE = {
    "hangs up": hang_up,
    "cut off": cut_off,
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "a range that was not asked for": raw(
        b"HTTP/1.1 206 OK\r\nContent-Length: 4\r\nContent-Range: bytes 5-8/100\r\n\r\nabcd"
    ),
    "a range without a size": raw(b"HTTP/1.1 206 OK\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/*\r\n\r\nabcd"),
    "a size of many digits": raw(
        b"HTTP/1.1 206 OK\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/" + b"9" * 5000 + b"\r\n\r\nabcd"
    ),
    "no length": raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdefgh"),
    "compressed": raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
    "an endless header": raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"),
    "too many headers": raw(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(1000)) + b"\r\n"),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_a_server_that_is_wrong(hub: FakeHub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weigh.sources.http.TRIES", 1)
    hub.tricks["/x"] = UNTRUE[name]
    with pytest.raises(InputError):
        patient(hub, "/x").read(0, 8)


def test_no_more_is_read_than_was_asked_for(hub: FakeHub) -> None:
    sent = []

    def pour(handler: Any) -> None:
        handler.send_response(200)
        handler.finish_headers(1 << 40)
        try:
            while True:
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)
        except OSError:
            handler.close_connection = True

    hub.tricks["/x"] = pour
    file = patient(hub, "/x")
    assert file.read(0, 8) == bytes(8)
    assert file.size == 1 << 40
    with pytest.raises(InputError, match="knows no ranges"):
        file.read(1 << 30, 8)
    time.sleep(0.05)
    assert len(sent) < 64


def test_a_server_without_ranges_gives_the_beginning(hub: FakeHub) -> None:
    data = safetensors(TENSORS)

    def whole(handler: Any) -> None:
        handler.send_response(200)
        handler.finish_headers(len(data))
        handler.wfile.write(data)

    hub.tricks["/x"] = whole
    file = patient(hub, "/x")
    assert file.read(0, 100) == data[:100]
    assert file.size == len(data)


def test_a_file_that_changes_while_it_is_read(hub: FakeHub) -> None:
    versions = [bytes(200_000), b"\1" * 200_000]
    hub.tricks["/x"] = lambda handler: handler.give(versions.pop(0))
    file = patient(hub, "/x")
    assert file.read(0, 8) == bytes(8)
    with pytest.raises(InputError, match="changed while it was read"):
        file.read(150_000, 8)


def test_etags_save_a_journey(hub: FakeHub) -> None:
    data = bytes(5000)
    hub.tricks["/x"] = lambda handler: handler.give(data)
    assert patient(hub, "/x").read(0, 8) == bytes(8)
    assert patient(hub, "/x").read(0, 8) == bytes(8)
    assert [asked.headers.get("if-none-match") for asked in hub.asked] == [None, etag(data)]


def test_a_busy_server_is_asked_again(hub: FakeHub) -> None:
    answers = [503, 429]

    def busy(handler: Any) -> None:
        if answers:
            handler.send_response(answers.pop())
            handler.finish_headers(0)
        else:
            handler.give(b"data")

    hub.tricks["/x"] = busy
    assert patient(hub, "/x").read(0, 4) == b"data"
    assert len(hub.asked) == 3


def test_an_empty_file(hub: FakeHub) -> None:
    hub.tricks["/x"] = lambda handler: handler.give(b"")
    file = patient(hub, "/x")
    assert file.size == 0
    with pytest.raises(InputError, match="is truncated"):
        file.read(0, 8)


def test_no_server_at_all(cache: Path) -> None:
    assert cache
    with pytest.raises(InputError, match=r"cannot be|cannot be reached"):
        weigh.model("org/tiny")


def test_an_index_of_the_hub_cannot_name_other_places(hub: FakeHub) -> None:
    index = json.dumps({"weight_map": {"a": "../../../secret.safetensors"}}).encode()
    hub.add("org/bad", {"config.json": config(), "model.safetensors.index.json": index})
    with pytest.raises(InputError, match="not a file beside it"):
        weigh.model("org/bad")


def test_headers_longer_than_what_is_asked_for_at_first(hub: FakeHub) -> None:
    tokens = ("tokenizer.ggml.tokens", 9, (8, [f"token number {i}" for i in range(20_000)]))
    pairs = [("general.architecture", 8, "llama"), ("llama.embedding_length", 4, 8), tokens]
    many = {f"model.layers.{i}.mlp.experts.gate_proj.weight": (2, 3) for i in range(3000)}
    hub.add("org/gguf", {"m.gguf": gguf(pairs, [("token_embd.weight", (8, 16), 0, 0)], 512)})
    hub.add("org/many", {"config.json": config(), "model.safetensors": safetensors(many)})
    assert weigh.api.unchecked("org/gguf").config["vocab_size"] == 16
    found = weigh.api.unchecked("org/many").checkpoint
    assert found is not None
    assert len(found.tensors) == 3000
    ranges = [asked.headers["range"] for asked in hub.asked if asked.server == "cdn"]
    assert len(ranges) == len(set(ranges)) + 1  # both begin alike
    assert "bytes=0-99999" in ranges
    hub.asked.clear()
    assert weigh.api.unchecked("org/gguf").config["vocab_size"] == 16
    assert [asked.path for asked in hub.asked] == ["/api/models/org/gguf/revision/main"]


def test_an_archive_is_read_from_its_end(hub: FakeHub) -> None:
    from test_pytorch import state, storage, tensor, zipped

    large = tensor(storage("0", 100_000), (100, 1000), (1000, 1))
    hub.add("org/bin", {"config.json": config(), "pytorch_model.bin": zipped(state(w=large), {"0": 400_000})})
    found = weigh.api.unchecked("org/bin").checkpoint
    assert found is not None
    assert found.tensors["w"].num_bytes == 400_000
    asked = [asked.headers["range"] for asked in hub.asked if asked.server == "cdn"]
    assert asked[0] == "bytes=0-99999"
    assert len(asked) <= 3
