"""Models in S3, Google Cloud Storage and Azure, through the extra `weigh[buckets]` (obstore, imported only here).

Credentials and endpoints come from the environment, as obstore documents it (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ...).
"""

from __future__ import annotations

from typing import Any

from weigh.errors import InputError
from weigh.sources.hub import Settings
from weigh.sources.opened import check_range, damaged
from weigh.sources.shards import is_plain

MOST_FILES = 10_000


def open_bucket(address: str) -> tuple[BucketFolder, str]:
    """The folder at an address like `s3://bucket/path`, and the file in it that is meant ("" for the whole).

    Raises:
        InputError: obstore is not installed, or refuses the address.
    """
    if Settings.read().offline:
        raise InputError("is not asked for offline", where=address, hint="Leave out --offline.")
    try:
        import obstore.store
    except ImportError:
        hint = "pip install 'weigh[buckets]'"
        raise InputError("needs obstore, which is not installed", where=address, hint=hint) from None
    base, _, name = address.rpartition("/")
    is_file = "." in name and base.count("/") > 2
    root = base if is_file else address.rstrip("/")
    try:
        store = obstore.store.from_url(root)
    except Exception as error:
        raise InputError(f"cannot be opened: {_first_line(error)}", where=address) from None
    return BucketFolder(store, root), name if is_file else ""


class BucketFolder:
    """What lies under a prefix."""

    def __init__(self, store: Any, where: str) -> None:
        self.store = store
        self.where = where
        self.title = where.rpartition("/")[2]
        self._sizes: dict[str, int] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens it itself, with its own credentials."""
        return _reopened, (self.where,)

    def names(self) -> tuple[str, ...]:
        """See `Folder.names`."""
        return tuple(sorted(self._listed()))

    def open(self, name: str) -> BucketFile:
        """See `Folder.open`."""
        if not is_plain(name) or name not in self._listed():
            raise InputError(f"has no {name}", where=self.where)
        return BucketFile(self, name, self._listed()[name])

    def _listed(self) -> dict[str, int]:
        if self._sizes is None:
            try:
                found = self.store.list_with_delimiter()["objects"]
            except Exception as error:
                raise InputError(f"cannot be listed: {_first_line(error)}", where=self.where) from None
            if len(found) > MOST_FILES:
                raise InputError(f"has {len(found):,} files", where=self.where, hint="Name one of them.")
            self._sizes = {entry["path"].rpartition("/")[2]: entry["size"] for entry in found}
        return self._sizes


class BucketFile:
    """An object, read by ranges."""

    is_slow = True

    def __init__(self, folder: BucketFolder, name: str, size: int) -> None:
        self.folder = folder
        self.name = name
        self.where = f"{folder.where}/{name}"
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """See `Readable.read`."""
        check_range(self, offset, length)
        if length == 0:
            return b""
        try:
            found = bytes(self.folder.store.get_range(self.name, start=offset, length=length))
        except Exception as error:
            raise InputError(f"cannot be read: {_first_line(error)}", where=self.where) from None
        if len(found) != length:
            raise damaged(self.where, f"came as {len(found):,} bytes instead of {length:,}")
        return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _reopened(address: str) -> BucketFolder:
    return open_bucket(f"{address}/")[0]
