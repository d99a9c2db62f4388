"""Models on the Hugging Face Hub, or on a server that speaks its language, and in the Hub's cache on this disk.

The settings are huggingface_hub's: `HF_ENDPOINT`, `HF_TOKEN` or its file (`HF_TOKEN_PATH`, `HF_HOME/token`),
`HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_DOWNLOAD_TIMEOUT`. One
request says which commit a revision is and which files it has; everything else is addressed by that commit and cannot
change, so a file that the Hub's own cache has is read there, and an answer is never asked for twice.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from weigh.errors import InputError
from weigh.sources.http import Answer, Client, Patience, RemoteFile
from weigh.sources.opened import LocalFile, LocalFolder
from weigh.sources.shards import is_plain
from weigh.sources.strict_json import parse_object

if TYPE_CHECKING:
    from weigh.sources.opened import Folder, Readable

ENDPOINT = "https://huggingface.co"
LARGEST_INFO = 8 << 20
"""Bytes of what the Hub says of a repository."""
_ON = frozenset({"1", "on", "yes", "true"})
_ID = re.compile(
    r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,128}?))??(?::(?P<tag>[\w.-]{1,96}))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubId(NamedTuple):
    """What people write to name a model on the Hub."""

    repo: str
    """`ORG/NAME`."""
    revision: str = "main"
    """A branch, a tag or a commit."""
    tag: str = ""
    """Which of several GGUF files, by a part of its name ("Q4_K_M")."""


def parse_id(text: str) -> HubId | None:
    """The id in `ORG/NAME`, `ORG/NAME@REVISION`, `ORG/NAME:Q4_K_M`; None where it is none.

    >>> parse_id("Qwen/Qwen3-8B@main")
    HubId(repo='Qwen/Qwen3-8B', revision='main', tag='')
    """
    found = _ID.fullmatch(text)
    if found is None or any(part.strip(".") != part or ".." in part for part in found["repo"].split("/")):
        return None
    revision = found["revision"] or "main"
    if any(part in ("", ".", "..") for part in revision.split("/")):
        return None
    return HubId(found["repo"], revision, found["tag"] or "")


class Settings(NamedTuple):
    """What the environment says about the Hub."""

    endpoint: str
    token: str | None
    offline: bool
    cache: str
    """The Hub's own cache: models that were downloaded."""
    silence: float
    """Seconds without a byte."""

    @classmethod
    def read(cls, offline: bool = False) -> Settings:
        """From the environment."""
        e = os.environ
        base = e.get("XDG_CACHE_HOME") or _join(os.path.expanduser("~"), ".cache")  # noqa: PTH111
        home = os.path.expanduser(e.get("HF_HOME") or _join(base, "huggingface"))  # noqa: PTH111
        cache = e.get("HF_HUB_CACHE") or e.get("HUGGINGFACE_HUB_CACHE") or _join(home, "hub")
        off = offline or any(e.get(name, "").lower() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
        endpoint = (e.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        try:
            silence = float(e.get("HF_HUB_DOWNLOAD_TIMEOUT") or 10)
        except ValueError:
            silence = 10.0
        return cls(endpoint, _token(home), off, os.path.expanduser(cache), silence)  # noqa: PTH111


def _token(home: str) -> str | None:
    """The token, as huggingface_hub finds it."""
    e = os.environ
    found = e.get("HF_TOKEN") or e.get("HUGGING_FACE_HUB_TOKEN")
    if not found and e.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in _ON:
        return None
    if not found:
        path = e.get("HF_TOKEN_PATH") or _join(home, "token")
        try:
            with open(os.path.expanduser(path), "rb") as file:  # noqa: PTH111, PTH123
                found = file.read(4096).decode()
        except (OSError, UnicodeDecodeError):
            return None
    found = "".join(found.split())
    return found if found and found.isascii() and found.isprintable() else None


def open_hub(wanted: HubId, offline: bool = False) -> Folder:
    """The files of a repository at a revision.

    Raises:
        InputError: there is no such repository or revision, it is private or gated, or the Hub cannot be reached; or,
            offline, neither cache has it.
    """
    settings = Settings.read(offline)
    if settings.offline:
        commit = _cached_commit(settings, wanted)
        if commit is not None:
            return LocalFolder(_snapshot(settings, wanted, commit), wanted.repo)
    client = Client(settings.token, settings.endpoint, settings.offline, Patience(silence=settings.silence))
    return HubFolder(settings, client, wanted)


class HubFolder:
    """A repository at one commit."""

    def __init__(self, settings: Settings, client: Client, wanted: HubId) -> None:
        self.title = wanted.repo
        self.settings = settings
        self.client = client
        self.wanted = wanted
        url = f"{settings.endpoint}/api/models/{wanted.repo}/revision/{quote(wanted.revision, safe='')}"
        fixed = _COMMIT.fullmatch(wanted.revision) is not None
        answer = client.get(url, fixed=fixed, largest=LARGEST_INFO)
        if answer.status != 200:
            raise _refused(wanted, settings, answer)
        info = parse_object(answer.body, url)
        commit, files = info.get("sha"), info.get("siblings")
        if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None or not isinstance(files, list):
            raise InputError("gives no commit and no files: this is no Hub", where=url, hint="Check HF_ENDPOINT.")
        self.commit = commit
        self.where = f"{settings.endpoint}/{wanted.repo}/resolve/{commit}"
        found = (file.get("rfilename") for file in files if isinstance(file, dict))
        self._names = tuple(name for name in found if isinstance(name, str) and is_plain(name))

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens it itself, at the same commit and with its own token."""
        return open_hub, (self.wanted._replace(revision=self.commit),)

    def names(self) -> tuple[str, ...]:
        """See `Folder.names`."""
        return self._names

    def open(self, name: str) -> Readable:
        """See `Folder.open`."""
        if name not in self._names:
            raise InputError(f"has no {name}", where=f"{self.title} on the Hub")
        local = _join(_snapshot(self.settings, self.wanted, self.commit), name)
        if os.path.isfile(local):  # noqa: PTH113
            return LocalFile(local)
        url = f"{self.where}/{quote(name)}"
        return RemoteFile(self.client, url, name, True, lambda answer: _refused(self.wanted, self.settings, answer))


def _cached_commit(settings: Settings, wanted: HubId) -> str | None:
    """The commit of a revision that the Hub's cache has; None where it has none."""
    commit = wanted.revision
    if _COMMIT.fullmatch(commit) is None:
        ref = _join(_repository(settings, wanted), "refs", *wanted.revision.split("/"))
        try:
            with open(ref, "rb") as file:  # noqa: PTH123
                commit = file.read(64).decode().strip()
        except (OSError, UnicodeDecodeError):
            return None
    if _COMMIT.fullmatch(commit) is None or not os.path.isdir(_snapshot(settings, wanted, commit)):  # noqa: PTH112
        return None
    return commit


def _repository(settings: Settings, wanted: HubId) -> str:
    return _join(settings.cache, f"models--{wanted.repo.replace('/', '--')}")


def _snapshot(settings: Settings, wanted: HubId, commit: str) -> str:
    return _join(_repository(settings, wanted), "snapshots", commit)


def _refused(wanted: HubId, settings: Settings, answer: Answer) -> InputError:
    """Why the Hub does not say what a repository has, by its `X-Error-Code`."""
    code = answer.headers.get("x-error-code", "")
    where = f"{wanted.repo} on {settings.endpoint}"
    if code == "GatedRepo" or answer.status == 403:
        return _gated(wanted, settings)
    if code == "RevisionNotFound":
        return InputError(f"has no revision {wanted.revision!r}", where=where, hint="Name a branch, tag or commit.")
    if code == "EntryNotFound":
        return InputError("has lost a file that it lists", where=where, hint="Try again later.")
    if code == "RepoNotFound" or answer.status in (401, 404):
        asked = "with the token that was given" if settings.token else "without a token"
        hint = "Check the name; for a private model set HF_TOKEN."
        return InputError(f"does not exist, or not {asked}", where=where, hint=hint)
    return InputError(f"cannot be had: the server answers {answer.status}", where=where, hint="Try again later.")


def _gated(wanted: HubId, settings: Settings) -> InputError:
    hint = f"Accept its terms at {settings.endpoint}/{wanted.repo} and set HF_TOKEN."
    return InputError("is gated", where=f"{wanted.repo} on {settings.endpoint}", hint=hint)


def _join(*parts: str) -> str:
    return os.path.join(*parts)  # noqa: PTH118
