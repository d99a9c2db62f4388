"""Answers of servers, kept between runs: headers of checkpoints, configs, indices.

One file an answer, in `weigh/http` of the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), named by the hash of
address and range, so that nothing that a server says decides where anything is written. A first line of JSON has
the status and the headers that matter, the rest is the body. What cannot be written is not kept, and that is no error.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADERS = ("content-length", "content-range", "etag", "x-repo-commit", "x-linked-size")
"""What is kept of the headers."""
LARGEST = 32 << 20
"""Bytes of an answer that is kept."""


class Kept(NamedTuple):
    """An answer in the cache."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def folder() -> str:
    """Where answers are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    return os.path.join(base, "weigh", "http")  # noqa: PTH118


def kept(url: str, asked: str) -> Kept | None:
    """What was kept of this range of an address; None where nothing was, or nothing readable."""
    try:
        with open(_path(url, asked), "rb") as file:  # noqa: PTH123
            line = file.readline(1 << 16)
            body = file.read()
        said = json.loads(line)
        if said["url"] != url or said["asked"] != asked or said["length"] != len(body):
            return None
        return Kept(said["status"], said["headers"], body)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(url: str, asked: str, answer: Kept) -> None:
    """Keep an answer; whole or not at all, whoever else writes."""
    if len(answer.body) > LARGEST:
        return
    headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
    said = {"url": url, "asked": asked, "status": answer.status, "headers": headers, "length": len(answer.body)}
    path = _path(url, asked)
    part = f"{path}.{os.getpid()}"
    try:
        os.makedirs(folder(), mode=0o700, exist_ok=True)  # noqa: PTH103
        with open(part, "wb") as file:  # noqa: PTH123
            file.write(json.dumps(said).encode() + b"\n" + answer.body)
        os.replace(part, path)  # noqa: PTH105
    except OSError:
        return


def _path(url: str, asked: str) -> str:
    from hashlib import sha256

    return os.path.join(folder(), sha256(f"{url} {asked}".encode()).hexdigest())  # noqa: PTH118
