"""Ranges of files over HTTP, with the patience, the suspicion and the memory that strangers' servers ask for.

Requests are GETs of a bounded number of bytes within a bounded time. A redirect is followed to another host, but the
token goes to the origin that it was given for and nowhere else, and never from https to http or to anything that is not
HTTP. Answers are kept in a cache with their ETags (`weigh.sources.http_cache`): what cannot change is not asked for
again, what can is asked for with `If-None-Match`, and offline the cache is all there is.
"""

from __future__ import annotations

import io
import os
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import local
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from weigh import __version__
from weigh.errors import InputError
from weigh.sources.http_cache import Kept, keep, kept
from weigh.sources.opened import check_range, damaged

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from urllib.parse import SplitResult

AHEAD = 100_000
"""Bytes of a file that are asked for at first: the header of most shards in one request (huggingface_hub's number)."""
LARGEST_ANSWER = 64 << 20
MOST_REDIRECTS = 5
TRIES = 3
"""How often a request is made that fails in a way that passes: a connection lost, a server that is busy."""
_PASSES = frozenset({429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})


class Patience(NamedTuple):
    """How long a server may take."""

    silence: float = 10.0
    """Seconds without a byte (huggingface_hub's HF_HUB_DOWNLOAD_TIMEOUT)."""
    whole: float = 60.0
    """Seconds for one answer, however it trickles."""
    all: float = 600.0
    """Seconds for everything that one client asks."""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes


class Client:
    """Talks to servers for one command; connections are kept and used again, one per thread and host."""

    def __init__(
        self, token: str | None = None, origin: str = "", offline: bool = False, patience: Patience | None = None
    ) -> None:
        self.token = token
        self.origin = _origin(urlsplit(origin)) if origin else None
        """The scheme, host and port that may see the token."""
        self.offline = offline
        self.patience = patience or Patience()
        self._until = time.monotonic() + self.patience.all
        self._keeps = True
        self._open = local()

    def stream(self) -> None:
        """From here on values are read, not headers: there is no end to what is asked, and nothing is kept."""
        self._until = float("inf")
        self._keeps = False

    def get(
        self, url: str, first: int = 0, length: int | None = None, *, fixed: bool = False, largest: int = LARGEST_ANSWER
    ) -> Answer:
        """An answer to GET, whole (up to `largest` bytes) or `length` bytes from `first` on; a 2xx, 4xx or 5xx.

        `fixed` says that the address can never give anything else.

        Raises:
            InputError: no server, no answer in time, too long an answer, a redirect that leads astray; or, offline,
                it is not in the cache.
        """
        asked = f"{first}-{'' if length is None else first + length - 1}"
        known = kept(url, asked)
        if known is not None and (fixed or self.offline):
            return Answer(known.status, known.headers, known.body)
        if self.offline:
            raise InputError(
                "is not in the cache, and the network is not to be used",
                where=url,
                hint="Leave out --offline (and HF_HUB_OFFLINE), or run it online once.",
            )
        headers = {"range": f"bytes={asked}"} if length is not None else {}
        if known is not None and (etag := known.headers.get("etag")):
            headers["if-none-match"] = etag
        answer = self._persistent(url, headers, largest + 1 if length is None else length)
        if length is None and answer.status == 200:
            _check_whole(answer, largest, url)
        if answer.status == 304 and known is not None:
            return Answer(known.status, known.headers, known.body)
        if self._keeps and answer.status in (200, 206) and (fixed or answer.headers.get("etag")):
            keep(url, asked, Kept(answer.status, answer.headers, answer.body))
        return answer

    def _persistent(self, url: str, headers: dict[str, str], largest: int) -> Answer:
        """Try again where trying again helps."""
        for again in range(TRIES - 1, -1, -1):
            try:
                answer = self._follow(url, headers, largest)
            except (HTTPException, ConnectionError) as error:
                if not again:
                    what = str(error) or type(error).__name__
                    raise InputError(f"cannot be had: {what}", where=url, hint="Try again later.") from None
            except TimeoutError:
                hint = "The server may be down: try again later, or with --offline."
                raise InputError("gave no answer in time", where=url, hint=hint) from None
            except OSError as error:
                what = error.strerror or str(error)
                hint = "Is there a network? --offline takes what is in the cache."
                raise InputError(f"cannot be reached: {what}", where=url, hint=hint) from None
            else:
                if answer.status not in _PASSES or not again:
                    return answer
            time.sleep(0.25 * 2 ** (TRIES - 1 - again))
        raise AssertionError

    def _follow(self, url: str, headers: dict[str, str], largest: int) -> Answer:
        address = url
        for _ in range(MOST_REDIRECTS + 1):
            parts = _parts(address, url)
            answer = self._once(parts, headers, largest)
            if answer.status not in _MOVED:
                return answer
            target = _joined(address, answer.headers.get("location", ""), url)
            if parts.scheme == "https" and not target.lower().startswith("https:"):
                raise InputError(f"is redirected to {_shown(target)}, which is not https", where=url)
            address = target
        raise InputError(f"is redirected more than {MOST_REDIRECTS} times", where=url)

    def _once(self, parts: SplitResult, headers: dict[str, str], largest: int) -> Answer:
        origin = _origin(parts)
        sent = {"user-agent": f"weigh/{__version__}", "accept-encoding": "identity", **headers}
        if self.token is not None and origin == self.origin:
            sent["authorization"] = f"Bearer {self.token}"
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/%?:@!$&'()*+,;=~")
        connections: dict[Any, HTTPConnection] = self._open.__dict__
        connection = connections.pop(repr(origin), None) or self._connect(parts)
        sock: Any = connection.sock
        sock.deadline = min(time.monotonic() + self.patience.whole, self._until)
        try:
            connection.request("GET", path, headers=sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.headers.items()}
            body = _body(response, found, largest, _shown(parts.geturl()))
        except BaseException:
            connection.close()
            raise
        if response.will_close or not response.isclosed():
            connection.close()
        else:
            connections[repr(origin)] = connection
        return Answer(response.status, found, body)

    def _connect(self, parts: SplitResult) -> HTTPConnection:
        connection = _connection(parts, self.patience.silence)
        connection.connect()
        connection.sock = _Bounded(connection.sock, self.patience.silence)
        return connection


class RemoteFile:
    """A file at an address, read by ranges."""

    is_slow = True
    """Every read is a journey: several files are read at once."""

    def __init__(
        self,
        client: Client,
        url: str,
        name: str,
        fixed: bool = False,
        explain: Callable[[Answer], InputError] | None = None,
    ) -> None:
        self.client = client
        self.where = url
        self.name = name
        self.fixed = fixed
        self.explain = explain
        """Makes the error of a server that refuses."""
        self._size: int | None = None
        self._etag: str | None = None
        self._start = b""

    @property
    def size(self) -> int:
        """See `Readable.size`; asks for the beginning of the file the first time."""
        if self._size is None:
            self._start = self._range(0, AHEAD)
        assert self._size is not None
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """See `Readable.read`."""
        check_range(self, offset, length)
        if offset + length <= len(self._start):
            return self._start[offset : offset + length]
        if length == 0:
            return b""
        return self._range(offset, length)

    def _range(self, offset: int, length: int) -> bytes:
        answer = self.client.get(self.where, offset, length, fixed=self.fixed)
        if answer.status == 416 and offset == 0:  # an empty file has no range
            self._size = 0
            return b""
        if answer.status not in (200, 206):
            raise Refused(self.where, answer) if self.explain is None else self.explain(answer)
        size, etag = _whole_size(answer, offset, self.where), answer.headers.get("etag")
        if self._size is None:
            self._size, self._etag = size, etag
        elif (size, etag) != (self._size, self._etag):
            raise InputError("changed while it was read", where=self.where, hint="Try again.")
        wanted = min(length, size - offset)
        if len(answer.body) < wanted:
            raise damaged(self.where, f"came as {len(answer.body):,} bytes instead of {wanted:,}")
        return answer.body[:wanted]


def _check_whole(answer: Answer, largest: int, where: str) -> None:
    """Raise `InputError` for an answer that is too large, or shorter than its server says."""
    if len(answer.body) > largest:
        raise InputError(f"has more than {largest >> 20} MiB", where=where)
    said = _number(answer.headers.get("content-length", ""))
    if said is not None and len(answer.body) < said:
        raise damaged(where, f"came as {len(answer.body):,} bytes instead of {said:,}")


class Refused(InputError):
    """A server that did not give what was asked for."""

    answer: Answer
    """What it said instead."""

    def __init__(self, url: str, answer: Answer) -> None:
        reasons = {
            401: "wants to know who asks: the server answers 401",
            403: "is not for you: the server answers 403",
            404: "does not exist: the server answers 404",
            429: "is asked for too often: the server answers 429",
        }
        super().__init__(reasons.get(answer.status, f"cannot be had: the server answers {answer.status}"), where=url)
        self.answer = answer


def _whole_size(answer: Answer, offset: int, where: str) -> int:
    """Bytes of the file of which this is a part."""
    if answer.status == 200:
        length = _number(answer.headers.get("content-length", ""))
        if offset:
            raise InputError("cannot be read in parts: its server knows no ranges", where=where)
        if length is None:
            raise InputError("has no length", where=where)
        return length
    unit, _, said = answer.headers.get("content-range", "").partition(" ")
    span, _, whole = said.partition("/")
    size = _number(whole)
    if unit != "bytes" or _number(span.partition("-")[0]) != offset or size is None:
        raise damaged(where, f"came with the range {said[:80]!r} instead of one from {offset:,} on")
    return size


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _body(response: Any, headers: Mapping[str, str], largest: int, where: str) -> bytes:
    """The body, of at most so many bytes."""
    if headers.get("content-encoding", "identity") != "identity":
        raise InputError(f"comes as {headers['content-encoding']!r}, which was not asked for", where=where)
    found: bytes = response.read(1 << 16 if response.status >= 300 else largest)
    return found


class _Bounded:
    """A socket of which no answer takes longer than its deadline, even if it trickles."""

    def __init__(self, sock: socket.socket, silence: float) -> None:
        self.sock = sock
        self.silence = silence
        self.deadline = time.monotonic() + silence

    def wait(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(min(self.silence, left))

    def sendall(self, data: Any) -> None:
        self.wait()
        self.sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Raw(self, self.sock.makefile("rb", buffering=0)))

    def close(self) -> None:
        self.sock.close()

    def __del__(self) -> None:  # a connection lives as long as its client
        self.close()


class _Raw(io.RawIOBase):
    """The reading side of a `_Bounded`."""

    def __init__(self, bounded: _Bounded, raw: socket.SocketIO) -> None:
        self.bounded = bounded
        self.raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.bounded.wait()
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


def _joined(address: str, location: str, asked: str) -> str:
    """Where a redirect leads."""
    try:
        return urljoin(address, location)
    except ValueError:
        raise InputError("is redirected to what is no address", where=asked) from None


def _parts(address: str, asked: str) -> SplitResult:
    """An address taken apart, if it is one that may be asked."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  raises where it is no number
    except ValueError:
        raise InputError("is no address", where=asked) from None
    if parts.scheme not in ("http", "https"):
        raise InputError(f"leads to {_shown(address)}, and only http and https are asked", where=asked)
    if not parts.hostname or "@" in parts.netloc or any(ord(c) <= 32 or ord(c) == 127 for c in address):
        raise InputError("is no address that can be asked", where=asked)
    return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _shown(address: str) -> str:
    """An address without its query, which can hold a signature."""
    return address.partition("?")[0][:200]


def _connection(parts: SplitResult, silence: float) -> HTTPConnection:
    """A connection that is not made yet, through the proxy that the environment names."""
    host, port = parts.hostname or "", parts.port
    proxy = _proxy(parts.scheme, host)
    if proxy is None:
        return (HTTPSConnection if parts.scheme == "https" else HTTPConnection)(host, port, timeout=silence)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(proxy.hostname or "", proxy.port or 80, timeout=silence)
    connection.set_tunnel(host, port or (443 if parts.scheme == "https" else 80))
    return connection


def _proxy(scheme: str, host: str) -> SplitResult | None:
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    if not any(os.environ.get(name) for name in names):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    proxies = getproxies_environment()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or proxy_bypass(host):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")
