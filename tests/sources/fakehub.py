"""A loopback server that behaves as the Hugging Face Hub does, as far as models are read from it.

Repositories with revisions, `X-Repo-Commit`, ETags, ranges, gated and private ones with `X-Error-Code`, and a second
server (the "CDN") to which large files are redirected. `tricks` makes single paths misbehave. What was asked is
kept in `asked`. `tests/torch/test_real_hub_client.py` drives the real huggingface_hub against it: it is faithful.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LARGE = 1000
"""Bytes from which on a file lies on the CDN."""


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False


@dataclass
class Asked:
    server: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class FakeHub:
    token: str = "hf_rightful"
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    tricks: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    """By path on either server: what is done instead of an answer."""

    def __enter__(self) -> Self:
        self._servers = [self._serve("hub"), self._serve("cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _serve(self, name: str) -> ThreadingHTTPServer:
        self.released = threading.Event()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, name))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def add(self, name: str, files: dict[str, bytes], **how: Any) -> Repository:
        """A repository; its commit follows from its files, as git's does."""
        content = b"".join(k.encode() + v for k, v in sorted(files.items()))
        self.repositories[name] = Repository(files, hashlib.sha1(content).hexdigest(), **how)
        return self.repositories[name]

    def paths(self) -> list[str]:
        """What was asked since this was called last, without methods and servers."""
        found = [asked.path for asked in self.asked]
        self.asked.clear()
        return found


def etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


def _handler(hub: FakeHub, server: str) -> type[BaseHTTPRequestHandler]:  # noqa: C901  a server is its answers
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(Asked(server, self.command, path, {k.lower(): v for k, v in self.headers.items()}))
            if path in hub.tricks:
                hub.tricks[path](self)
            elif server == "cdn":
                self.give(_blobs(hub)[path.removeprefix("/")])
            else:
                self.answer(unquote(path))

        do_HEAD = do_GET  # noqa: N815

        def answer(self, path: str) -> None:
            if path == "/api/agent-harnesses":  # huggingface_hub asks for it once
                return self.give(b"[]", "application/json")
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if not api and not file:
                return self.fail(404, "EntryNotFound")
            name, revision = (api or file)[1], (api or file)[2] or "main"  # type: ignore[index]
            repository = hub.repositories.get(name)
            authorized = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if repository is None or (repository.private and not authorized):
                return self.fail(401 if not self.headers.get("Authorization") else 404, "RepoNotFound")
            if revision not in (*repository.branches, repository.commit):
                return self.fail(404, "RevisionNotFound")
            if api:
                siblings = [{"rfilename": name} for name in repository.files]
                info = {"id": name, "sha": repository.commit, "gated": repository.gated, "siblings": siblings}
                return self.give(json.dumps(info).encode(), "application/json")
            if repository.gated and not authorized:
                return self.fail(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            data = repository.files.get(file[3])  # type: ignore[index]
            if data is None:
                return self.fail(404, "EntryNotFound")
            commit = {"X-Repo-Commit": repository.commit}
            if len(data) < LARGE:
                return self.give(data, headers=commit)
            blob = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": etag(data), **commit}
            return self.redirect(f"{hub.cdn}/{blob}?signature=secret", linked)

        def redirect(self, to: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(302)
            self.send_header("Location", to)
            self.finish_headers(0, headers)

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.finish_headers(0)

        def give(self, data: bytes, kind: str = "application/octet-stream", headers: Any = None) -> None:
            """A file, or the part of it that was asked for, or nothing if the asker has it."""
            if self.headers.get("If-None-Match") == etag(data):
                self.send_response(304)
                self.send_header("ETag", etag(data))
                return self.finish_headers(0, headers)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            part, status = data, 200
            if asked:
                first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
                if first >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    return self.finish_headers(0, headers)
                part, status = data[first : last + 1], 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Type", kind)
            self.send_header("ETag", etag(data))
            self.send_header("Accept-Ranges", "bytes")
            self.finish_headers(len(part), headers)
            if self.command != "HEAD":
                self.wfile.write(part)
            return None

        def finish_headers(self, length: int, headers: dict[str, str] | None = None) -> None:
            self.send_header("Content-Length", str(length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _blobs(hub: FakeHub) -> dict[str, bytes]:
    """What lies on the CDN."""
    files = (data for repository in hub.repositories.values() for data in repository.files.values())
    return {hashlib.sha256(data).hexdigest(): data for data in files}
