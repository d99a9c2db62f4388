"""Checkpoints in several files: an index that says which tensor lies where, or names that count ("-00001-of-00004").

An index is written by a stranger: what it names must lie beside it, and must hold what it says.
"""

from __future__ import annotations

import gc
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weigh.errors import InputError
from weigh.sources.checkpoint import Checkpoint
from weigh.sources.opened import damaged
from weigh.sources.strict_json import read_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.opened import Folder, Readable

    Read = Callable[[Readable], Checkpoint]

LARGEST_INDEX = 32 << 20
"""Bytes; that of 91,991 tensors in 163 files has 9 MB."""
MOST_SHARDS = 4096
LARGEST_POINTER = 1024
"""Bytes of a file that git-lfs puts in the place of a large one; they have about 130."""
AT_ONCE = 8
"""Files whose headers are asked for at the same time, where each takes a while to answer."""

_COUNTED = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})(\.\w+)")


def read_index(folder: Folder, name: str, read: Read) -> Checkpoint:
    """The checkpoint that a `*.index.json` in this folder describes.

    Raises:
        InputError: it is no index, names a file outside of its folder, or a tensor that is not where it says.
    """
    file = folder.open(name)
    index = read_object(file, LARGEST_INDEX)
    placed = _placed(index.get("weight_map"), file.where)
    parts = read_all([folder.open(shard) for shard in dict.fromkeys(placed.values())], read)
    found = joined(parts, file.where, placed)
    missing = placed.keys() - found.tensors.keys()
    if missing:
        name = min(missing)
        raise damaged(file.where, f"says that {name!r} is in {placed[name]}, which does not have it")
    return found


def _placed(weight_map: Any, where: str) -> dict[str, str]:
    """The file of every tensor, each a plain name."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(where, "has no weight_map")
    if not all(type(shard) is str for shard in weight_map.values()):
        raise damaged(where, "gives a tensor no file")
    shards = set(weight_map.values())
    for shard in shards:
        if not is_plain(shard):
            raise damaged(where, f"names {shard!r}, which is not a file beside it")
    if len(shards) > MOST_SHARDS:
        raise damaged(where, f"names {len(shards):,} files")
    return weight_map


def is_plain(name: str) -> bool:
    """Whether this is the name of a file and no way to another folder, on any system.

    >>> [is_plain(name) for name in ("model-1.safetensors", "../secret", "a/b", "C:b", ".", "")]
    [True, False, False, False, False, False]
    """
    return name not in ("", ".", "..") and not any(c in "/\\:" or ord(c) < 32 for c in name)


def counted(name: str) -> list[str] | None:
    """All the names of a set of which this is one; None where the name does not count.

    >>> counted("m-00002-of-00003.gguf")
    ['m-00001-of-00003.gguf', 'm-00002-of-00003.gguf', 'm-00003-of-00003.gguf']
    """
    found = _COUNTED.fullmatch(name)
    if found is None or not 0 < int(found[2]) <= int(found[3]) <= MOST_SHARDS:
        return None
    digits = len(found[2])
    return [f"{found[1]}-{i:0{digits}}-of-{found[3]}{found[4]}" for i in range(1, int(found[3]) + 1)]


def read_set(folder: Folder, names: Sequence[str], read: Read) -> Checkpoint:
    """The checkpoint in these files of a folder.

    Raises:
        InputError: one is not there, or two hold the same tensor.
    """
    parts = read_all([folder.open(name) for name in names], read)
    return joined(parts, parts[0].where if len(parts) == 1 else folder.where)


def read_all(files: Sequence[Readable], reader: Read) -> list[Checkpoint]:
    """What every file says, in order; files from elsewhere several at once.

    Raises:
        InputError: one cannot be read, or is only a pointer to what git-lfs did not fetch.
    """

    def read(file: Readable) -> Checkpoint:
        if file.size < LARGEST_POINTER and file.read(0, file.size).startswith(b"version https://git-lfs"):
            hint = "Run `git lfs pull`, or name the model by its id."
            raise InputError("is a pointer of git-lfs, not the file itself", where=file.where, hint=hint)
        return reader(file)

    if len(files) == 1 or not getattr(files[0], "is_slow", False):
        with without_collector():
            return [read(file) for file in files]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(read, file) for file in files]
        try:
            return [one.result() for one in asked]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def without_collector() -> Iterator[None]:
    """The cycle collector stands still: a header is tens of thousands of tuples, and none refers to itself."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def joined(parts: Sequence[Checkpoint], where: str, placed: Mapping[str, str] | None = None) -> Checkpoint:
    """One checkpoint of several; where two hold a tensor, `placed` says whose counts.

    Raises:
        InputError: two hold the same tensor, and nothing says which.
    """
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        twice = tensors.keys() & part.tensors.keys()
        kept = {name: tensors[name] for name in twice}
        tensors.update(part.tensors)
        for name in twice:
            files = (kept[name].file, part.tensors[name].file)
            shard = None if placed is None else placed.get(name)
            if shard not in files:
                raise damaged(where, f"has {name!r} in {files[0]} and in {files[1]}")
            if shard == files[0]:
                tensors[name] = kept[name]
    metadata = {key: value for part in reversed(parts) for key, value in part.metadata.items()}
    return Checkpoint(tensors, parts[0].format, metadata, tuple(f for part in parts for f in part.files), where)


def one_set(names: Sequence[str], where: str, hint: str) -> list[str]:
    """These files as one checkpoint: a single file, or a counted set that is complete.

    Raises:
        InputError: they are several checkpoints, or files of a set are missing.
    """
    wanted = [names[0]] if len(names) == 1 and counted(names[0]) is None else counted(names[0])
    if wanted is None or not set(names) <= set(wanted):
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise InputError(f"holds several checkpoints: {shown}", where=where, hint=hint)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"lacks {missing[0]}, one of {len(wanted)} files", where=where, hint="Get all of them.")
    return wanted
