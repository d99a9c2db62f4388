"""Files that are read in pieces, wherever they lie: what every header reader takes.

A header is a small part of a checkpoint. `Readable.read` gives exactly the bytes asked for or one `InputError`;
`Cursor` walks over a header whose length nobody knows beforehand, within a limit.
"""

from __future__ import annotations

import os
import stat
from typing import NoReturn, Protocol

from weigh.errors import InputError

LARGEST_HEADER = 128 << 20
"""Bytes of a header; GGUF's are the largest in public use, 10 MB or so with a tokenizer of 260,000 tokens."""


class Readable(Protocol):
    """A file of known size that can be read anywhere."""

    @property
    def name(self) -> str:
        """Its name without folders."""

    @property
    def where(self) -> str:
        """Its path or address, for errors."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on.

        Raises:
            InputError: the file ends before, or cannot be read.
        """


class Folder(Protocol):
    """A place that holds the files of one model: on the disk, on the Hub, in a bucket."""

    @property
    def title(self) -> str:
        """What to call the model that lies there."""

    @property
    def where(self) -> str:
        """Its path or address, for errors."""

    def names(self) -> tuple[str, ...]:
        """The files in it, without those of deeper folders."""

    def open(self, name: str) -> Readable:
        """One of them.

        Raises:
            InputError: it is not there, or cannot be read.
        """


class LocalFile:
    """A file on the disk; opened for every read, so that there is nothing to close."""

    def __init__(self, path: str, hint: str = "Name a file that is there.") -> None:
        self.where = path
        self.name = os.path.basename(path)  # noqa: PTH119  pathlib costs more to import than all of this
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", where=path, hint=hint) from None
        except ValueError as error:  # a null byte in the name
            raise InputError(f"is no file name: {error}", where=repr(path)) from None
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no file", where=path, hint=hint)
        self.size = status.st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `Readable.read`."""
        check_range(self, offset, length)
        try:
            with open(self.where, "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(offset)
                found = file.read(length)
                while len(found) < length and (more := file.read(length - len(found))):
                    found += more
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", where=self.where) from None
        if len(found) < length:
            raise truncated(self, offset + length)
        return found


class LocalFolder:
    """A folder on the disk."""

    def __init__(self, path: str, title: str = "") -> None:
        self.where = path
        self.title = title or os.path.basename(os.path.abspath(path))  # noqa: PTH119, PTH100

    def names(self) -> tuple[str, ...]:
        """See `Folder.names`."""
        try:
            with os.scandir(self.where) as entries:
                return tuple(sorted(entry.name for entry in entries if entry.is_file()))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", where=self.where) from None

    def open(self, name: str) -> LocalFile:
        """See `Folder.open`."""
        return LocalFile(os.path.join(self.where, name))  # noqa: PTH118


class Cursor:
    """Bytes one after the other, fetched in pieces that grow, up to a limit."""

    def __init__(self, file: Readable, first: int = 1 << 18, limit: int = LARGEST_HEADER) -> None:
        self.file = file
        self.data = b""
        self.at = 0
        self._next = first
        self._limit = limit

    def need(self, length: int) -> None:
        """Have so many bytes from here on in `data`.

        Raises:
            InputError: the file ends before, or the header is absurdly long.
        """
        end = self.at + length
        if end <= len(self.data):
            return
        if end > self.file.size:
            raise truncated(self.file, end)
        if end > self._limit:
            self.refuse(f"has a header of more than {self._limit >> 20} MiB")
        wanted = min(max(end, len(self.data) + self._next), self.file.size, self._limit)
        self._next = min(self._next * 2, 1 << 24)
        self.data += self.file.read(len(self.data), wanted - len(self.data))

    def take(self, length: int) -> bytes:
        """So many bytes, and move past them."""
        self.need(length)
        self.at += length
        return self.data[self.at - length : self.at]

    def refuse(self, what: str) -> NoReturn:
        """Raise the `InputError` of a file that is not what it should be."""
        raise damaged(self.file.where, what)


def damaged(where: str, what: str) -> InputError:
    """The error of a file that contradicts itself."""
    return InputError(what, where=where, hint="The file is damaged or was made to look like one: get it again.")


def truncated(file: Readable, needed: int) -> InputError:
    """The error of a file that ends too early."""
    return damaged(file.where, f"is truncated: it has {file.size:,} bytes and needs at least {needed:,}")


def check_range(file: Readable, offset: int, length: int) -> None:
    """Raise `InputError` for a range that does not lie in the file."""
    if offset < 0 or length < 0:
        raise damaged(file.where, f"points at {length:,} bytes from {offset:,} on")
    if offset + length > file.size:
        raise truncated(file, offset + length)


def check_data(file: Readable, start: int, spans: list[tuple[int, int]]) -> None:
    """Whether tensors lie side by side in the file; `spans` are their first bytes and ends, counted from `start`.

    Raises:
        InputError: two overlap, or one ends behind the end of the file.
    """
    end = 0
    for first, last in sorted(spans):
        if first < end and last > first:
            raise damaged(file.where, "has tensors that overlap")
        end = max(end, last)
    if start + end > file.size:
        raise truncated(file, start + end)
