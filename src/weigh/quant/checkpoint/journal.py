"""What is finished of a conversion, so that it goes on after whatever stopped it.

Everything is written into `OUT.partial`, which becomes `OUT` by one rename when it is complete. The first line of its
journal says which plan it belongs to; then comes a line for every tensor whose bytes are on the disk (fsync), with
their hashes. A line that was cut off counts as not written. Another process at work on the same folder is noticed.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Self

from weigh.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAME = ".weigh-journal"
Hashes = dict[str, str]
"""SHA-256 of every stored tensor's bytes, by name."""


class Journal:
    """The journal of one folder."""

    def __init__(self, folder: Path, fingerprint: str, about: str) -> None:
        """Open or begin it.

        Raises:
            InputError: it belongs to another plan, or another process is at work on it.
        """
        self.path = folder / NAME
        self.done: dict[str, Hashes] = {}
        """The finished tensors of the source, by name."""
        self._file = self.path.open("a+b")
        try:
            self._begin(folder, fingerprint, about)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, folder: Path, fingerprint: str, about: str) -> None:
        _lock(self._file, folder)
        self._file.seek(0)
        *lines, _ = self._file.read().split(b"\n")
        self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append({"plan": fingerprint, "about": about})
            return
        first, *done = (json.loads(line) for line in lines)
        if first["plan"] != fingerprint:
            hint = f"Finish that one first, remove {folder}, or give another --out."
            what = f"holds another conversion that was begun: {first['about']}"
            raise InputError(what, where=str(folder), hint=hint)
        self.done = {said["tensor"]: said["sha256"] for said in done}

    def add(self, finished: Mapping[str, Hashes]) -> None:
        """Note tensors whose bytes are on the disk."""
        self._append(*({"tensor": name, "sha256": hashes} for name, hashes in finished.items()))
        self.done.update(finished)

    def _append(self, *said: dict[str, Any]) -> None:
        lines = b"".join(json.dumps(line).encode() + b"\n" for line in said)
        guarded(self.path, lambda: self._write(lines))

    def _write(self, lines: bytes) -> None:
        os.write(self._file.fileno(), lines)
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def guarded(path: str | Path, write: Callable[[], Any]) -> Any:
    """Write something; an `InputError` that says what to do where that fails."""
    try:
        return write()
    except OSError as error:
        hint = "Make room and run the same command again: what is finished is kept."
        raise InputError(f"cannot be written: {error.strerror or error}", where=str(path), hint=hint) from None


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError("another process is at work on it", where=str(folder), hint="Wait for it.") from None
