"""The weights themselves: the folder and the header of a checkpoint, for those who read values and need no config.

`weigh.sources.locate` answers what model is meant and refuses what no config describes; here any checkpoint will do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from weigh.errors import InputError, UsageError
from weigh.sources.checkpoint import SUFFIXES
from weigh.sources.folders import INDEX, checkpoint_file, find_weights
from weigh.sources.locate import BUCKETS
from weigh.sources.opened import LocalFolder, damaged

if TYPE_CHECKING:
    from weigh.sources.checkpoint import Checkpoint, StoredTensor
    from weigh.sources.opened import Folder


class Weights(NamedTuple):
    """A checkpoint that can be read."""

    folder: Folder
    """Where its files lie."""
    checkpoint: Checkpoint
    """What they hold."""

    def read(self, tensor: StoredTensor, offset: int, length: int) -> bytes:
        """`length` bytes of a tensor from its `offset` on.

        Raises:
            InputError: its bytes do not lie in one piece, or the file cannot be read.
        """
        if tensor.start is None:
            hint = "Save it as safetensors first."
            raise InputError("is an archive, whose values weigh does not read", where=tensor.file, hint=hint)
        if offset + length > tensor.num_bytes:
            raise damaged(tensor.name, f"has {tensor.num_bytes:,} bytes, and {offset + length:,} are needed")
        return self.folder.open(tensor.file).read(tensor.start + offset, length)


def open_weights(text: str) -> Weights:
    """The checkpoint that is meant: a folder, a file or an index, here, at an address, in a bucket or on the Hub.

    Raises:
        InputError: there is none, several, or one that contradicts itself.
        UsageError: a text that can mean no checkpoint.
    """
    folder, name, tag = _place(text)
    if not name or (name.endswith(".json") and not name.endswith(INDEX)):
        checkpoint = find_weights(folder, folder.names(), tag)
        if checkpoint is None:
            raise InputError("holds no weights", where=folder.where, hint=f"Known endings: {', '.join(SUFFIXES)}.")
    else:
        checkpoint = checkpoint_file(folder, name)
    return Weights(folder, checkpoint)


def _place(text: str) -> tuple[Folder, str, str]:
    """A folder, the file in it that is meant ("" for the whole), and the tag of an id."""
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in BUCKETS:
        from weigh.sources.buckets import open_bucket

        return *open_bucket(text), ""
    if scheme:
        from weigh.sources.addresses import open_address

        return open_address(text)
    path = os.path.expanduser(text)  # noqa: PTH111
    if os.path.isdir(path):  # noqa: PTH112
        return LocalFolder(path), "", ""
    if os.path.exists(path) or text.endswith((INDEX, *SUFFIXES)) or text.startswith((".", "/", "~")):  # noqa: PTH110
        folder, name = os.path.split(path)
        return LocalFolder(folder or "."), name, ""
    from weigh.sources.hub import open_hub, parse_id

    wanted = parse_id(text)
    if wanted is None:
        raise UsageError("names no checkpoint", where=text, hint="Give a folder, a file, an address or ORG/NAME.")
    return open_hub(wanted), "", wanted.tag
