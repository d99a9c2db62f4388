"""Models at an address: a page of the Hub as a browser shows it, or a file on any server.

`https://huggingface.co/Qwen/Qwen3-8B` and `hf://Qwen/Qwen3-8B` are the repository,
`https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json` is a file of it (`resolve` and `tree` too);
`https://example.org/models/tiny/model.safetensors` is a file with the config.json beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from weigh.errors import InputError
from weigh.sources.http import Client, Patience, Refused, RemoteFile
from weigh.sources.hub import ENDPOINT, Settings, open_hub, parse_id
from weigh.sources.shards import is_plain

if TYPE_CHECKING:
    from weigh.sources.opened import Folder

_ASIDE = ("config.json", "params.json")


def open_address(text: str) -> tuple[Folder, str, str]:
    """The folder at an address, the file in it that is meant ("" for the whole), and the tag of an id.

    Raises:
        InputError: it is no address of a model.
    """
    settings = Settings.read()
    rest = _on_hub(text, settings)
    if rest is not None:
        return _hub_page(text, rest)
    parts = urlsplit(text)
    path, _, name = parts.path.rpartition("/")
    if not is_plain(unquote(name)):
        raise InputError("names no file", where=text, hint="Name a config.json, a .safetensors, an index or a .gguf.")
    base = f"{parts.scheme}://{parts.netloc}{path}"
    client = Client(None, "", settings.offline, Patience(silence=settings.silence))
    return WebFolder(client, base, unquote(name), parts.query), unquote(name), ""


def _on_hub(text: str, settings: Settings) -> str | None:
    """What follows the Hub's own address; None where this is another server's."""
    for start in ("hf://", f"{settings.endpoint}/", f"{ENDPOINT}/", "https://hf.co/"):
        if text.startswith(start):
            return text.removeprefix(start).partition("?")[0].partition("#")[0].strip("/")
    return None


def _hub_page(text: str, rest: str) -> tuple[Folder, str, str]:
    words = rest.split("/")
    repo, words = "/".join(words[:2]), words[2:]
    revision = ""
    if words and words[0] in ("blob", "resolve", "tree") and len(words) > 1:
        revision, words = f"@{words[1]}", words[2:]
    wanted = parse_id(repo + revision)
    name = unquote(words[0]) if words else ""
    if wanted is None or len(words) > 1 or (name and not is_plain(name)):
        raise InputError("is no page of a model", where=text, hint="Give .../ORG/NAME or a file in its first folder.")
    return open_hub(wanted), name, wanted.tag


class WebFolder:
    """The files beside one whose address is known; a server does not list them, so a config is asked for by name."""

    def __init__(self, client: Client, base: str, name: str, query: str) -> None:
        self.client = client
        self.where = base
        self.title = name
        self._query = query
        self._opened: dict[str, RemoteFile] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens it itself."""
        return _reopened, (f"{self.where}/{quote(self.title)}{f'?{self._query}' if self._query else ''}",)

    def names(self) -> tuple[str, ...]:
        """The configs that are there, by asking for them."""
        return tuple(name for name in _ASIDE if self._there(name))

    def _there(self, name: str) -> bool:
        try:
            return self.open(name).size >= 0
        except Refused:
            return False

    def open(self, name: str) -> RemoteFile:
        """See `Folder.open`."""
        if name not in self._opened:
            query = f"?{self._query}" if self._query and name == self.title else ""
            self._opened[name] = RemoteFile(self.client, f"{self.where}/{quote(name)}{query}", name)
        return self._opened[name]


def _reopened(address: str) -> Folder:
    return open_address(address)[0]
