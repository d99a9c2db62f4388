"""Reading a pickle without running it: what it would build, and nothing that it would call.

A pickle is a program for a small stack machine (the opcodes: Python's `pickletools`). This machine knows the opcodes
that data needs, and the names that its format allows. A class or function stays a `Named`, a call stays a `Call`:
nothing is imported, nothing is called, and the steps are bounded.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.sources.opened import Cursor

MOST_STEPS = 1 << 22
"""Opcodes of a pickle; a tensor of a state dict takes about 35."""


class Named(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Persistent(NamedTuple):
    """Something that lies outside of the pickle, by its id."""

    id: Any


class Call:
    """A call that is not made."""

    __slots__ = ("args", "function", "items", "state")

    def __init__(self, function: Any, args: Any) -> None:
        self.function = function
        self.args = args
        self.state: Any = None
        """What the object's state would be set to (BUILD)."""
        self.items: dict[Any, Any] | None = None
        """Items that would be put into it, as into an OrderedDict."""


_MARK = object()


class Machine:
    """Reads pickles off a cursor, one after the other. `allows` says which names they may have."""

    def __init__(self, cursor: Cursor, allows: Callable[[Named], bool]) -> None:
        self.cursor = cursor
        self.allows = allows
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:  # noqa: RET503  refuse() does not return
        """The value of the next pickle.

        Raises:
            InputError: it is cut off, malformed, or has an opcode that data does not need.
        """
        self.stack = []
        self.memo = {}
        take = self.cursor.take
        try:
            for _ in range(MOST_STEPS):
                code = take(1)
                if code == b".":
                    (found,) = self.stack
                    return found
                step = _STEPS.get(code)
                if step is None:
                    self.cursor.refuse(f"is no pickle of data: it has the opcode {code!r}")
                step(self)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError):
            self.cursor.refuse("is no well-formed pickle")
        self.cursor.refuse(f"has a pickle of more than {MOST_STEPS:,} steps")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def unpack(self, kind: str) -> Any:
        return struct.unpack(kind, self.cursor.take(struct.calcsize(kind)))[0]

    def line(self) -> str:
        """Up to the next line break."""
        found = bytearray()
        while (byte := self.cursor.take(1)) != b"\n":
            found += byte
            if len(found) > 4096:
                raise ValueError
        return found.decode()

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        found = stack[at + 1 :]
        del stack[at:]
        return found

    def pop(self) -> Any:
        found = self.stack.pop()
        if found is _MARK:
            raise IndexError
        return found

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        found = Named(module, name)
        if not self.allows(found):
            raise InputError(
                f"is a pickle that names {str(found)[:200]!r}, and nothing was run",
                where=self.cursor.file.where,
                hint="Only tensors and plain data are read: save a state_dict, best as safetensors.",
            )
        self.push(found)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        self.push(Call(function, args))

    def build(self) -> None:
        state = self.pop()
        if not isinstance(self.stack[-1], Call):
            raise TypeError
        self.stack[-1].state = state

    def put(self, pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise ValueError
        into = self.stack[-1]
        if isinstance(into, Call) and into.items is None:
            into.items = {}
        items = into.items if isinstance(into, Call) else into
        if not isinstance(items, dict):
            raise TypeError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in _KEYS:  # to hash a tuple of tuples can take for ever
                raise TypeError
            items[key] = value

    def append(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, list):
            into.extend(values)
        elif isinstance(into, set):
            if not all(type(v) in _KEYS for v in values):
                raise TypeError
            into.update(values)
        else:
            raise TypeError

    def dict_of(self) -> None:
        pairs = self.marked()
        self.push({})
        self.put(pairs)

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def remember(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    def long(self, length: int) -> None:
        if length > 1024:
            raise ValueError
        self.push(int.from_bytes(self.cursor.take(length), "little", signed=True))

    def whole(self, text: str) -> None:
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L")))

    def global_name(self) -> None:
        module = self.line()
        self.name(module, self.line())

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def new_object(self) -> None:
        args, cls = self.pop(), self.pop()
        self.push(Call(cls, args))


_KEYS = frozenset({str, int, float, bool, bytes, type(None), Named})

_STEPS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.cursor.take(1),  # PROTO
    b"\x95": lambda m: m.cursor.take(8),  # FRAME
    b"(": lambda m: m.push(_MARK),
    b"0": Machine.pop,
    b"1": lambda m: m.marked(),  # POP_MARK
    b"2": lambda m: m.push(m.stack[-1]),  # DUP
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.whole(m.line()),
    b"L": lambda m: m.whole(m.line()),
    b"J": lambda m: m.push(m.unpack("<i")),
    b"K": lambda m: m.push(m.unpack("<B")),
    b"M": lambda m: m.push(m.unpack("<H")),
    b"\x8a": lambda m: m.long(m.unpack("<B")),
    b"\x8b": lambda m: m.long(m.unpack("<I")),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(m.unpack(">d")),
    b"V": lambda m: m.push(m.line()),  # UNICODE
    b"X": lambda m: m.push(m.cursor.take(m.unpack("<I")).decode("utf-8", "surrogatepass")),
    b"\x8c": lambda m: m.push(m.cursor.take(m.unpack("<B")).decode("utf-8", "surrogatepass")),
    b"\x8d": lambda m: m.push(m.cursor.take(m.unpack("<Q")).decode("utf-8", "surrogatepass")),
    b"T": lambda m: m.push(m.cursor.take(m.unpack("<I")).decode("latin-1")),  # BINSTRING of Python 2
    b"U": lambda m: m.push(m.cursor.take(m.unpack("<B")).decode("latin-1")),
    b"B": lambda m: m.push(m.cursor.take(m.unpack("<I"))),
    b"C": lambda m: m.push(m.cursor.take(m.unpack("<B"))),
    b"\x8e": lambda m: m.push(m.cursor.take(m.unpack("<Q"))),
    b")": lambda m: m.push(()),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b"\x8f": lambda m: m.push(set()),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"l": lambda m: m.push(m.marked()),
    b"d": Machine.dict_of,
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.marked()),
    b"\x90": lambda m: m.append(m.marked()),  # ADDITEMS
    b"\x91": lambda m: m.push(m.marked()),  # FROZENSET, kept as a list
    b"s": lambda m: m.put([m.stack.pop(-2), m.pop()]),
    b"u": lambda m: m.put(m.marked()),
    b"p": lambda m: m.remember(int(m.line())),
    b"q": lambda m: m.remember(m.unpack("<B")),
    b"r": lambda m: m.remember(m.unpack("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),  # MEMOIZE
    b"g": lambda m: m.push(m.memo[int(m.line())]),
    b"h": lambda m: m.push(m.memo[m.unpack("<B")]),
    b"j": lambda m: m.push(m.memo[m.unpack("<I")]),
    b"c": Machine.global_name,
    b"\x93": Machine.stack_name,
    b"R": Machine.call,
    b"\x81": Machine.new_object,
    b"b": Machine.build,
    b"P": lambda m: m.push(Persistent(m.line())),
    b"Q": lambda m: m.push(Persistent(m.pop())),
}
"""What each opcode does."""
