"""The tensors of a PyTorch `.bin`, `.pt` or `.pth`, without PyTorch and without running anything in it.

Since 1.6 such a file is a zip archive whose records are stored as they are: `data.pkl` is a pickle in which every
tensor is a call of `torch._utils._rebuild_tensor_v2` on a storage, and the storages are records of their own. Before,
it was five pickles and then the storages one after the other (`torch/serialization.py`, `_legacy_save`).
Not read: quantized and sparse tensors, whole modules, TorchScript, the tar archives from before 2017.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import InputError, UnknownNameError
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.opened import Cursor, check_range, damaged, truncated
from weigh.sources.pickles import Call, Machine, Named, Persistent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.sources.opened import Readable

LARGEST_DIRECTORY = 32 << 20
"""Bytes of an archive's directory; a storage takes about 100."""
MOST_ENTRIES = 1 << 18
"""Entries of a state dict and of the dicts in it."""
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file from before 1.6 (`MAGIC_NUMBER`)."""

STORAGES = dict(
    pair.split(":")
    for pair in (
        "FloatStorage:float32 DoubleStorage:float64 HalfStorage:float16 BFloat16Storage:bfloat16 LongStorage:int64 "
        "IntStorage:int32 ShortStorage:int16 CharStorage:int8 ByteStorage:uint8 BoolStorage:bool UntypedStorage:uint8 "
        "ComplexFloatStorage:complex64 ComplexDoubleStorage:complex128"
    ).split()
)
"""The dtype of every class of storage."""
REBUILDS = frozenset(
    {
        *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"),
        *("_rebuild_parameter", "_rebuild_parameter_with_state"),
    }
)
PLAIN = frozenset(
    {
        *("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "torch.Size", "torch.device"),
        *(
            "builtins.dict",
            "builtins.set",
            "builtins.bytearray",
            "builtins.complex",
            "__builtin__.set",
            "_codecs.encode",
        ),
        *("torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor._rebuild_from_type_v2", "argparse.Namespace"),
        *("torch.serialization._get_layout", "pathlib.PosixPath"),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.dtype", "numpy.ndarray"),
    }
)
"""What data beside the tensors may name; none of it is called."""
WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "weights")
"""Where a training checkpoint keeps the model's tensors, best first."""


def read_pytorch(file: Readable) -> Checkpoint:
    """The tensors of one file.

    Raises:
        InputError: it is no such file, contradicts itself, or names what tensors do not need.
    """
    start = file.read(0, min(file.size, len(MAGIC)))
    if start == MAGIC:
        tensors = _read_legacy(file)
    elif start[:4] == b"PK\x03\x04":
        tensors = _read_zip(file)
    else:
        raise damaged(file.where, "is no PyTorch checkpoint")
    return Checkpoint(tensors, "pytorch", {}, ((file.name, file.size),), file.where)


def _allows(found: Named) -> bool:
    if found.module == "torch._utils":
        return found.name in REBUILDS
    if found.module in ("torch", "torch.storage"):
        return found.name in STORAGES or str(found) in PLAIN or _dtype(found) is not None
    return str(found) in PLAIN


def _dtype(found: Any) -> str | None:
    """A dtype's name, where this names one of PyTorch's."""
    if isinstance(found, Named) and found.module == "torch":
        try:
            dtypes.get(found.name)
        except UnknownNameError:
            return None
        return found.name
    return None


class _Storages:
    """What the tensors lie in: bytes by key."""

    def __init__(self, file: Readable) -> None:
        self.file = file
        self.sizes: dict[str, int] = {}
        self.counted: set[str] = set()

    def add(self, found: Any) -> tuple[str, str]:
        """Key and dtype of a storage.

        Raises:
            ValueError: this is none.
        """
        if not isinstance(found, Persistent) or not isinstance(found.id, tuple) or len(found.id) not in (5, 6):
            raise ValueError
        tag, cls, key, _, count = found.id[:5]
        if tag != "storage" or not isinstance(cls, Named) or cls.name not in STORAGES or not isinstance(key, str):
            raise ValueError
        dtype = STORAGES[cls.name]
        if type(count) is not int or not 0 <= count < 1 << 60:
            raise ValueError
        num_bytes = count * dtypes.get(dtype).itemsize
        if self.sizes.setdefault(key, num_bytes) != num_bytes:
            raise damaged(self.file.where, f"gives the storage {key[:80]!r} two sizes")
        return key, dtype

    def adds(self, key: str) -> int:
        """Bytes that a tensor adds to the file: its storage's, and none if another one lies there already."""
        if key in self.counted:
            return 0
        self.counted.add(key)
        return self.sizes[key]


def _tensors(file: Readable, value: Any, storages: _Storages) -> dict[str, StoredTensor]:
    """Every tensor in a value that was pickled, by its keys joined with points."""
    found: dict[str, StoredTensor] = {}
    for name, call in _calls(file, _weights(value)):
        if name in found:
            raise damaged(file.where, f"has the tensor {name[:80]!r} twice")
        try:
            found[name] = _tensor(name, call, storages, file.name)
        except (ValueError, TypeError, IndexError):
            raise damaged(file.where, f"describes the tensor {name[:80]!r} in a way that PyTorch does not") from None
    if not found:
        raise InputError("holds no tensors", where=file.where, hint="Name a file with a state_dict.")
    return found


def _weights(value: Any) -> Any:
    """The model's part of a training checkpoint; else the value as it is."""
    items = _items(value)
    if items is None or any(_is_tensor(v) for v in items.values()):
        return value
    return next((items[key] for key in WEIGHTS if _items(items.get(key))), value)


def _items(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, Call) and isinstance(value.function, Named) and value.function.name in ("OrderedDict", "dict"):
        return value.items or {}
    return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Call) and isinstance(value.function, Named) and value.function.name in _TENSORS


_TENSORS = REBUILDS | {"_rebuild_from_type_v2"}


def _calls(file: Readable, value: Any) -> Iterator[tuple[str, Call]]:
    """Every tensor below a value with its name; bounded, for dicts can hold each other."""
    waiting: list[tuple[str, Any]] = [("", value)]
    seen = 0
    while waiting:
        name, value = waiting.pop()
        seen += 1
        if seen > MOST_ENTRIES or len(name) > 4096:
            raise damaged(file.where, "has dicts in dicts without end")
        items = _items(value)
        if items is not None:
            below = ((f"{name}.{key}" if name else str(key), v) for key, v in items.items())
            waiting += reversed([(n, v) for n, v in below if _is_tensor(v) or _items(v) is not None])
        elif _is_tensor(value):
            yield name, value


def _tensor(name: str, call: Call, storages: _Storages, file: str) -> StoredTensor:
    for _ in range(4):  # a parameter around a tensor, a subclass around a parameter
        function, args = call.function.name, call.args
        if function in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            call = args[0]
        elif function == "_rebuild_from_type_v2":
            call = Call(args[0], args[2])
        else:
            break
        if not _is_tensor(call):
            raise ValueError
    if function not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        raise ValueError
    key, dtype = storages.add(args[0])
    offset, shape, strides = args[1], _sizes(args[2]), _sizes(args[3])
    if function == "_rebuild_tensor_v3":
        spelled = _dtype(args[6])
        if spelled is None:
            raise ValueError
        dtype = spelled
    if type(offset) is not int or offset < 0 or len(strides) != len(shape):
        raise ValueError
    if 0 not in shape:
        end = offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if end * dtypes.get(dtype).itemsize > storages.sizes[key]:
            raise damaged(storages.file.where, f"has the tensor {name[:80]!r} beyond the end of its storage")
    return StoredTensor(name, shape, dtype, storages.adds(key), file)


def _sizes(found: Any) -> tuple[int, ...]:
    if isinstance(found, Call) and isinstance(found.function, Named) and found.function.name == "Size":
        (found,) = found.args
    if not isinstance(found, tuple | list) or len(found) > 64:
        raise ValueError
    if not all(type(size) is int and 0 <= size < 1 << 60 for size in found):
        raise ValueError
    return tuple(found)


def _read_legacy(file: Readable) -> dict[str, StoredTensor]:
    cursor = Cursor(file)
    machine = Machine(cursor, _allows)
    _magic, _protocol, _system, value = (machine.load() for _ in range(4))
    storages = _Storages(file)
    tensors = _tensors(file, value, storages)
    keys = machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise damaged(file.where, "has no list of storages")
    end = cursor.at + sum(8 + storages.sizes.get(key, 0) for key in keys)
    if end > file.size:
        raise truncated(file, end)
    return tensors


def _read_zip(file: Readable) -> dict[str, StoredTensor]:
    records = _directory(file)
    root = next((name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")), None)
    if root is None:
        raise damaged(file.where, "is a zip archive without a data.pkl, no PyTorch checkpoint")
    offset, size = records[f"{root}data.pkl"]
    storages = _Storages(file)
    tensors = _tensors(file, Machine(Cursor(_Record(file, offset, size)), _allows).load(), storages)
    for key, num_bytes in storages.sizes.items():
        record = records.get(f"{root}data/{key}")
        if record is None or record[1] != num_bytes:
            has = "no such record" if record is None else f"a record of {record[1]:,}"
            raise damaged(file.where, f"needs {num_bytes:,} bytes for the storage {key[:80]!r} and has {has}")
    return tensors


class _Record:
    """A record of an archive as a file; its place is read off the record's own header, once."""

    def __init__(self, file: Readable, offset: int, size: int) -> None:
        local = file.read(offset, 30)
        if local[:4] != b"PK\x03\x04":
            raise damaged(file.where, "has a directory that points at no record")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        self.start = offset + 30 + name_length + extra_length
        self.file = file
        self.size = size
        self.name = file.name
        self.where = file.where
        check_range(file, self.start, size)

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        return self.file.read(self.start + offset, length)


def _directory(file: Readable) -> dict[str, tuple[int, int]]:
    """Offset and size of every record of a zip archive (APPNOTE.TXT 4.3.12 and 4.3.16, with Zip64)."""
    tail_length = min(file.size, 22 + 0xFFFF)
    tail = file.read(file.size - tail_length, tail_length)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise truncated(file, file.size + 1)
    count, size, offset = struct.unpack("<HLL", tail[at + 10 : at + 20])
    if count == 0xFFFF or 0xFFFFFFFF in (size, offset):
        count, size, offset = _zip64_end(file, tail, at)
    if size > LARGEST_DIRECTORY:
        raise damaged(file.where, f"says that its directory has {size:,} bytes")
    directory = file.read(offset, size)
    records: dict[str, tuple[int, int]] = {}
    at = 0
    try:
        for _ in range(count):
            name, record, at = _entry(directory, at)
            if name in records:
                raise damaged(file.where, f"has the record {name[:80]!r} twice")
            if record is None and name.endswith("/data.pkl"):
                raise damaged(file.where, "has a data.pkl that is compressed, as PyTorch's are not")
            if record is not None:
                records[name] = record
    except (struct.error, UnicodeDecodeError):
        raise damaged(file.where, "has a broken directory") from None
    return records


def _zip64_end(file: Readable, tail: bytes, at: int) -> tuple[int, int, int]:
    locator = tail[max(at - 20, 0) : at]
    if locator[:4] != b"PK\x06\x07" or len(locator) < 20:
        raise damaged(file.where, "has a broken directory")
    end = file.read(struct.unpack("<Q", locator[8:16])[0], 56)
    if end[:4] != b"PK\x06\x06":
        raise damaged(file.where, "has a broken directory")
    count, size, offset = struct.unpack("<QQQ", end[32:56])
    return count, size, offset


def _entry(directory: bytes, at: int) -> tuple[str, tuple[int, int] | None, int]:
    """Name, place (None where it is compressed) and end of a directory's entry."""
    signature, method, packed, size, name_length, extra_length, note_length = struct.unpack_from(
        "<4s6xH8xLLHHH", directory, at
    )
    if signature != b"PK\x01\x02":
        raise struct.error
    (offset,) = struct.unpack_from("<L", directory, at + 42)
    at += 46
    if at + name_length + extra_length + note_length > len(directory):
        raise struct.error
    name = directory[at : at + name_length].decode()
    extra = directory[at + name_length : at + name_length + extra_length]
    wide = [value for value in (size, packed, offset) if value == 0xFFFFFFFF]
    if wide:
        values = iter(_zip64_extra(extra, len(wide)))
        size, packed, offset = (next(values) if v == 0xFFFFFFFF else v for v in (size, packed, offset))
    stored = method == 0 and packed == size
    return name, (offset, size) if stored else None, at + name_length + extra_length + note_length


def _zip64_extra(extra: bytes, count: int) -> tuple[int, ...]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            return struct.unpack_from(f"<{count}Q", extra, at + 4)
        at += 4 + length
    raise struct.error
