"""From what people write to a model: a path, `ORG/NAME` on the Hub, an address, a bucket, standard input."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from weigh.errors import InputError, UnknownNameError
from weigh.sources.checkpoint import SUFFIXES
from weigh.sources.source import Source

if TYPE_CHECKING:
    from weigh.sources.opened import Folder

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
BUCKETS = ("s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "azure")
"""Schemes that obstore knows."""


def locate(text: str) -> Source | None:
    """What is known of the model that is meant; None where the text can be no path, id or address.

    Raises:
        InputError: it is meant so, and there is nothing, or nothing that can be read.
    """
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return _addressed(text, scheme[1].lower())
    path = os.path.expanduser(text)  # noqa: PTH111  pathlib costs more to import than all of this
    if is_place(text) or _exists(path):
        return _on_disk(path)
    from weigh.sources.hub import open_hub, parse_id

    wanted = parse_id(text)
    if wanted is None:
        return None
    return _folder(open_hub(wanted), wanted.tag)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)  # noqa: PTH110
    except ValueError:  # a null byte
        return False


def is_place(text: str) -> bool:
    """Whether this can only be a path or an address, even if nothing is there, and no name."""
    if text == "-" or "://" in text or text.startswith((".", "/", "~", os.sep)):
        return True
    return text.endswith((".json", ".py", ".txt", *SUFFIXES))


def _on_disk(path: str) -> Source:
    from weigh.sources.files import read_config
    from weigh.sources.folders import INDEX, read_file
    from weigh.sources.opened import LocalFolder

    if path != "-" and os.path.isdir(path):  # noqa: PTH112
        return _folder(LocalFolder(path), local=True)
    if path.endswith((INDEX, *SUFFIXES)) or _is_gguf(path):
        folder, name = os.path.split(path)
        title = name if not name.endswith(INDEX) else ""
        return read_file(LocalFolder(folder or ".", title), name)
    return read_config(path)


def _is_gguf(path: str) -> bool:
    """Whether this is a GGUF file by its first bytes: some programs keep theirs under names without an ending."""
    if not os.path.isfile(path):  # noqa: PTH113
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _addressed(text: str, scheme: str) -> Source:
    if scheme in BUCKETS:
        from weigh.sources.buckets import open_bucket

        return _named_in(*open_bucket(text))
    if scheme in ("http", "https", "hf"):
        from weigh.sources.addresses import open_address

        return _named_in(*open_address(text))
    raise InputError(f"has the scheme {scheme!r}", where=text, hint="Give a path, https://, s3://, gs:// or az://.")


def _named_in(folder: Folder, name: str, tag: str = "") -> Source:
    """A file of a folder that lies elsewhere, or the whole folder."""
    from weigh.sources.files import read_opened
    from weigh.sources.folders import INDEX, read_file

    if not name:
        return _folder(folder, tag)
    if name.endswith((INDEX, *SUFFIXES)):
        return read_file(folder, name)
    return read_opened(folder.open(name), folder.title)


def _folder(folder: Folder, tag: str = "", local: bool = False) -> Source:
    from weigh.sources.folders import read_folder

    return read_folder(folder, tag, _base_on_disk if local else _base)


def _base_on_disk(name: str) -> Source:
    """The model that an adapter on this disk names: a folder here, or what `_base` finds."""
    if os.path.isdir(name):  # noqa: PTH112
        from weigh.sources.folders import read_folder
        from weigh.sources.opened import LocalFolder

        return read_folder(LocalFolder(name))
    return _base(name)


def _base(name: str) -> Source:
    """The model that a stranger's adapter names: bundled, or on the Hub. Never a path: it would be one of this disk."""
    from weigh.sources import catalogue
    from weigh.sources.folders import read_folder
    from weigh.sources.hub import open_hub, parse_id

    try:
        return catalogue.find(name)
    except UnknownNameError:
        wanted = parse_id(name)
        if wanted is None:
            hint = "It is a path of the machine that it was trained on: name the model instead."
            raise InputError("is no name of a model", hint=hint) from None
        return read_folder(open_hub(wanted), wanted.tag)
