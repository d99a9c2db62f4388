"""What is trained on, byte by byte, and what the loss is measured on: text that no training sees."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from pathlib import Path

from weigh.errors import InputError
from weigh.records import dataclass

STANDARD_LIBRARY = "the Python standard library"
SHARE = 10
"""One part in so many is held out: of a file its end, of the library every tenth module."""
SEQUENCES = 32
"""So many sequences both parts must have at least."""


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes to train on, and bytes held out."""

    name: str
    """Where they come from."""
    training: bytes
    held_out: bytes

    @property
    def digest(self) -> str:
        """Tells two texts apart."""
        return hashlib.sha256(self.training + b"\0" + self.held_out).hexdigest()[:16]

    def as_dict(self) -> dict[str, object]:
        """For JSON: not the text itself."""
        return {
            "name": self.name,
            "training_bytes": len(self.training),
            "held_out_bytes": len(self.held_out),
            "sha256": self.digest,
        }


def read(path: str | None, sequence: int) -> Text:
    """The text of a file, else of the standard library's modules, for sequences of so many bytes.

    Raises:
        InputError: the file cannot be read, is empty, too short, or not text.
    """
    text = _library() if path is None else _file(Path(path))
    needed = SEQUENCES * (sequence + 1)
    if min(len(text.training), len(text.held_out)) < needed:
        found = len(text.training) + len(text.held_out)
        hint = f"{needed * SHARE:,} bytes are enough for sequences of {sequence}."
        raise InputError(f"has only {found:,} bytes", where=text.name, hint=hint)
    return text


def _library() -> Text:
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for number, module in enumerate(modules):
        parts[number % SHARE == SHARE - 1].append(module.read_bytes())
    release = ".".join(map(str, sys.version_info[:3]))
    return Text(f"{STANDARD_LIBRARY} {release}", b"".join(parts[0]), b"".join(parts[1]))


def _file(path: Path) -> Text:
    hint = "Name a file of text in UTF-8, or leave --text out."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), hint=hint) from None
    if not content.strip():
        raise InputError("is empty", where=str(path), hint=hint)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        what = f"is not text: byte {error.start:,} ({content[error.start]:#04x}) begins no character of UTF-8"
        raise InputError(what, where=str(path), hint=hint) from None
    if b"\0" in content:
        raise InputError(f"is not text: byte {content.index(0):,} is zero", where=str(path), hint=hint)
    until = len(content) - len(content) // SHARE
    return Text(path.name, content[:until], content[until:])
