"""Every reader of what strangers write, as a function of bytes that may raise `WeighError` and nothing else.

`test_fuzz.py` runs them in the suite, `tools/fuzz.py` for as long as somebody likes.
"""

import json
import socket
import struct
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple

from making import CONFIG, gguf, safetensors
from test_pytorch import MAGIC, W, state, zipped

import weigh
from weigh.errors import InputError, WeighError
from weigh.sources.files import parse_config
from weigh.sources.gguf import read_gguf
from weigh.sources.gguf_config import config_of
from weigh.sources.http import Client, Patience, RemoteFile, _Bounded
from weigh.sources.hub import parse_id
from weigh.sources.opened import check_range
from weigh.sources.pytorch import read_pytorch
from weigh.sources.safetensors import read_safetensors
from weigh.sources.shards import read_index


class Held:
    """A file in memory."""

    def __init__(self, data: bytes, name: str = "file") -> None:
        self.data = data
        self.name = self.where = name
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        return self.data[offset : offset + length]


class HeldFolder:
    """Two files in memory; any other name would be one outside of the folder."""

    title = where = "folder"

    def __init__(self, index: bytes) -> None:
        self.files = {"index.json": index, "model-1.safetensors": SAFETENSORS}

    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def open(self, name: str) -> Held:
        assert "/" not in name
        assert name != ".."
        if name not in self.files:
            raise InputError("is not there", where=name)
        return Held(self.files[name], name)


SAFETENSORS = safetensors({"model.a": (2, 3), "model.b": (4,)}, metadata={"format": "pt"})
LLAMA = [
    ("general.architecture", 8, "llama"),
    ("general.alignment", 4, 32),
    ("llama.embedding_length", 4, 8),
    ("llama.block_count", 4, 1),
    ("llama.attention.head_count", 4, 2),
    ("llama.feed_forward_length", 9, (4, [8, 8])),
    ("tokenizer.ggml.tokens", 9, (8, ["a"] * 16)),
]
INFOS = [("token_embd.weight", (8, 16), 0, 0), ("blk.0.attn_q.weight", (32, 8), 2, 512)]
LEGACY = MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + state(w=W) + b"\x80\x02](X\x01\x00\x00\x000e."
HTTP = b"HTTP/1.1 206 Partial\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/4\r\nETag: x\r\n\r\nabcd"


def read_gguf_config(data: bytes) -> None:
    found = read_gguf(Held(data))
    weigh.params(config_of(found))


def read_http(data: bytes) -> None:
    """An answer, whatever it is, to a request for the beginning of a file."""
    here, there = socket.socketpair()

    class Answered(Client):
        def _connect(self, parts: Any) -> HTTPConnection:
            connection = HTTPConnection("127.0.0.1")
            connection.sock = _Bounded(here, 0.2)
            return connection

        def _persistent(self, url: str, headers: dict[str, str], largest: int) -> Any:
            try:
                return self._follow(url, headers, largest)
            except (HTTPException, OSError):  # as the client does, which then tries again
                raise InputError("cannot be had") from None

    with here, there:
        there.sendall(data[:60_000])
        there.shutdown(socket.SHUT_WR)
        RemoteFile(Answered(patience=Patience(0.2, 0.4, 0.5)), "http://127.0.0.1/x", "x").read(0, 4)


def read_text(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    parse_id(text)
    weigh.params(parse_config(text))


class Target(NamedTuple):
    run: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]


TARGETS = {
    "safetensors": Target(lambda data: read_safetensors(Held(data)), (SAFETENSORS, safetensors({}))),
    "gguf": Target(
        read_gguf_config,
        tuple(gguf(LLAMA, INFOS, 656, version=v, order=o) for v, o in ((3, "<"), (3, ">"), (2, "<"), (1, "<"))),
    ),
    "pytorch": Target(
        lambda data: read_pytorch(Held(data)),
        (
            zipped(state(w=W, tied=W), {"0": 24}),
            LEGACY + struct.pack("<Q", 6) + bytes(24),
            zipped(state(model=state(w=W)[2:-1])),
        ),
    ),
    "pickle": Target(lambda data: read_pytorch(Held(zipped(data, {"0": 24}))), (state(w=W, tied=W), LEGACY)),
    "index": Target(
        lambda data: read_index(HeldFolder(data), "index.json", read_safetensors),
        (json.dumps({"weight_map": dict.fromkeys(("model.a", "model.b"), "model-1.safetensors")}).encode(),),
    ),
    "config": Target(
        read_text,
        (
            json.dumps(CONFIG).encode(),
            b'{"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 32, "multiple_of": 16, "norm_eps": 1e-5}',
            b"--num-layers 2 --hidden-size 64 --num-attention-heads 4 --max-position-embeddings 8 --vocab-size 99",
            b'{"emb_dim": 8, "n_heads": 2, "n_layers": 1, "vocab_size": 9, "context_length": 4}',
        ),
    ),
    "http": Target(
        read_http, (HTTP, HTTP.replace(b"206 Partial", b"200 OK"), b"HTTP/1.1 302 X\r\nLocation: /y\r\n\r\n")
    ),
}


def run(name: str, data: bytes) -> bool:
    """Whether the reader takes these bytes; anything but a clear error is raised."""
    try:
        TARGETS[name].run(data)
    except WeighError as error:
        complaint = str(error)
    else:
        return True
    assert len(complaint) < 4000
    return False
