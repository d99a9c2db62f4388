"""PyTorch's memory snapshots (`torch.cuda.memory._dump_snapshot`): read without torch, and written from our traces.

A snapshot is a pickle of plain data: lists, dicts, texts and numbers. It is read by an unpickler that knows nothing
else, so that a file which wants to run code is refused at once. What it records (torch/csrc/cuda/memory_snapshot.cpp,
torch/cuda/memory.py): under `device_traces`, for each device, the allocator's events with their addresses and Python
frames; under `segments` the memory at the end. Events are a ring: what was allocated before the first of them is known
only from the blocks that are still there, or from its free.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from weigh.errors import InputError
from weigh.records import dataclass
from weigh.trace.allocator import SMALL_SEGMENT
from weigh.trace.allocator_settings import AllocatorSettings
from weigh.trace.events import LOAD, UNATTRIBUTED, Allocation, Mark, Trace
from weigh.trace.expand import expand
from weigh.trace.replay import placed

RECORDED = "recorded"
"""The phase of a snapshot's events, which know of none."""
LARGEST = 4 << 30
"""Bytes of a file that is still read; half a million events have about a twentieth of it."""
BEFORE = "before the recording"
"""The owner of what was there when the recording began."""


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A request that the device refused."""

    event: int
    """How many events of the trace had happened."""
    num_bytes: int
    device_free: int | None
    """What the driver had left."""
    owner: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One device's part of a snapshot."""

    device: int
    trace: Trace
    """Allocations and frees, with the stack frame that owns each."""
    reserved: int
    """Bytes in segments at the end."""
    max_reserved: int
    """The most bytes in segments at any time of the recording."""
    out_of_memory: tuple[OutOfMemory, ...]


class _PlainData(pickle.Unpickler):
    """Lists, dicts, texts, numbers; nothing that has a class."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Whatever a pickle names is code."""
        raise _NotPlain(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> NoReturn:
        """Storages and the like."""
        raise _NotPlain("a persistent object")


class _NotPlain(Exception):
    """The pickle asks for more than plain data."""


def read_snapshot(path: str) -> tuple[Snapshot, ...]:
    """Every device that a snapshot recorded anything of.

    Raises:
        InputError: the file cannot be read, is no snapshot, or wants to run code.
    """
    data = _load(path)
    traces, segments = data.get("device_traces"), data.get("segments")
    if not isinstance(traces, list) or not isinstance(segments, list):
        raise _no_snapshot(path, "it has no device_traces and segments")
    found = []
    try:
        for device in range(max(len(traces), 1)):
            own = [s for s in segments if int(s["device"]) == device]
            events = traces[device] if device < len(traces) else []
            if own or events:
                found.append(_Reader(device, own, events).snapshot())
            if device < len(traces):
                traces[device] = None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _no_snapshot(path, f"an event or a segment is malformed ({error!r})") from None
    if not found:
        raise _no_snapshot(path, "it recorded nothing")
    return tuple(found)


def _load(path: str) -> dict[str, Any]:
    collecting = gc.isenabled()
    gc.disable()  # half of the time would go into looking for garbage among what is being made
    try:
        with Path(path).open("rb") as file:
            if Path(path).stat().st_size > LARGEST:
                raise _no_snapshot(path, f"it is larger than {LARGEST >> 30} GiB")
            data = _PlainData(file).load()
    except _NotPlain as error:
        raise InputError(
            f"asks for {error}, which a memory snapshot never does; nothing of it was run",
            where=path,
            hint="Give a file that torch.cuda.memory._dump_snapshot wrote.",
        ) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=path) from None
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise _no_snapshot(path, f"it is no pickle ({error})") from None
    except (MemoryError, RecursionError, OverflowError):
        raise _no_snapshot(path, "it claims more than it can hold") from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(data, dict):
        raise _no_snapshot(path, f"it holds a {type(data).__name__}")
    return data


def _no_snapshot(path: str, why: str) -> InputError:
    return InputError(
        f"is no memory snapshot: {why}", where=path, hint="Write one with torch.cuda.memory._dump_snapshot(FILE)."
    )


class _Reader:
    """One device's events, turned into a trace."""

    def __init__(self, device: int, segments: list[Mapping[str, Any]], events: list[Mapping[str, Any]]) -> None:
        self.device = device
        self.events = events
        self.reserved = sum(int(s["total_size"]) for s in segments)
        self.blocks = {
            int(block["address"]): block
            for segment in segments
            for block in segment["blocks"]
            if block["state"] == "active_allocated"
        }
        self.allocations: list[Allocation] = []
        self.history: list[int] = []
        self.live: dict[int, int] = {}
        self.out_of_memory: list[OutOfMemory] = []
        self.owners: dict[int, str] = {}

    def snapshot(self) -> Snapshot:
        """The whole of it."""
        begun = self._from_before()
        grown = most = 0
        for event in self.events:
            action, size = event["action"], int(event["size"])
            if action == "alloc":
                self._born(int(event["addr"]), size, event.get("frames") or ())
            elif action == "free_completed":
                self._died(int(event["addr"]))
            elif action in ("segment_alloc", "segment_map"):
                grown += size
                most = max(most, grown)
            elif action in ("segment_free", "segment_unmap"):
                grown -= size
            elif action == "oom":
                left = event.get("device_free")
                owner = _owner(event.get("frames") or ())
                self.out_of_memory.append(OutOfMemory(len(self.history), size, left, owner))
        marks = [Mark(0, LOAD, 0), Mark(begun, RECORDED, 0)]
        trace = Trace(self.allocations, self.history, marks)
        return Snapshot(self.device, trace, self.reserved, self.reserved - grown + most, tuple(self.out_of_memory))

    def _from_before(self) -> int:
        """What was there when the events begin: freed without having been allocated, or there at the end likewise."""
        born: set[int] = set()
        freed: dict[int, int] = {}
        for event in self.events:
            if event["action"] == "alloc":
                born.add(int(event["addr"]))
            elif event["action"] == "free_completed" and int(event["addr"]) not in born:
                freed.setdefault(int(event["addr"]), int(event["size"]))
        for address, size in freed.items():
            self._born(address, size, ())
        for address, block in self.blocks.items():
            if address not in born and address not in freed:
                self._born(address, int(block["size"]), block.get("frames") or ())
        return len(self.history)

    def _born(self, address: int, size: int, frames: Iterable[Mapping[str, Any]]) -> None:
        self._died(address)  # a free that the recording lost
        owner, op = _owner(frames), _innermost(frames)
        self.allocations.append(Allocation(size, op, owner, UNATTRIBUTED, RECORDED, (size,), "uint8", None))
        self.history.append(len(self.allocations))
        self.live[address] = len(self.allocations)

    def _died(self, address: int) -> None:
        number = self.live.pop(address, None)
        if number is not None:
            self.history.append(-number)


_LIBRARY = ("/torch/", "\\torch\\", "<frozen", "<string>", "??")


def _owner(frames: Iterable[Mapping[str, Any]]) -> str:
    """The innermost frame that is not PyTorch's own: "file.py:12 function"."""
    for frame in frames:
        name = frame["filename"]
        if name and not any(part in name for part in _LIBRARY) and name.endswith(".py"):
            return f"{name.replace(chr(92), '/').rpartition('/')[2]}:{frame['line']} {frame['name']}"
    return next((str(frame["name"]) for frame in frames), BEFORE)


def _innermost(frames: Iterable[Mapping[str, Any]]) -> str:
    return next((str(frame["name"]) for frame in frames), "")


# -- writing
def write_snapshot(trace: Trace, path: str, settings: AllocatorSettings | None = None) -> None:
    """Write a trace so that PyTorch's memory visualizer (https://pytorch.org/memory_viz) opens it.

    Addresses and segments are those of the replayed allocator; a storage's frames are its op, its module and its phase.

    Raises:
        InputError: the file cannot be written.
    """
    written = _Writer(expand(trace), settings or AllocatorSettings())
    events = list(written.events())
    data = {
        "segments": written.segments(),
        "device_traces": [events],
        "allocator_settings": {},
        "external_annotations": [],
    }
    try:
        with Path(path).open("wb") as file:
            pickle.dump(data, file, protocol=4)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=path, hint="Name another file.") from None


class _Writer:
    """A trace's events with addresses, and what stands in memory when they are over."""

    def __init__(self, trace: Trace, settings: AllocatorSettings) -> None:
        self.trace = trace
        self.settings = settings
        self.frames: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.live: dict[int, tuple[int, list[dict[str, Any]]]] = {}
        """Address -> bytes and frames of the blocks in use."""
        self.reserved: dict[int, int] = {}
        """Address -> bytes from the driver."""

    def events(self) -> Iterator[dict[str, Any]]:
        """In the words of `device_traces`."""
        for time, (event, address, size) in enumerate(placed(self.trace, self.settings)):
            common = {"addr": address, "size": abs(size), "stream": 0, "time_us": time}
            if event is None:
                yield {"action": self._grow(address, size), **common, "frames": []}
            elif event > 0:
                frames = self._frames_of(self.trace.allocations[event - 1])
                self.live[address] = size, frames
                yield {"action": "alloc", **common, "frames": frames}
            else:
                _, frames = self.live.pop(address)
                yield {"action": "free_requested", **common, "frames": frames}
                yield {"action": "free_completed", **common, "frames": frames}

    def _grow(self, address: int, size: int) -> str:
        if size > 0:
            self.reserved[address] = size
            return "segment_map" if self.settings.expandable_segments else "segment_alloc"
        for start in [a for a in self.reserved if address <= a < address - size]:
            del self.reserved[start]
        return "segment_unmap" if self.settings.expandable_segments else "segment_free"

    def _frames_of(self, a: Allocation) -> list[dict[str, Any]]:
        key = a.op, a.path, a.phase
        if key not in self.frames:
            self.frames[key] = [{"filename": a.path or "(root)", "line": 0, "name": word} for word in (a.op, a.phase)]
        return self.frames[key]

    def segments(self) -> list[dict[str, Any]]:
        """In the words of `segments`, once the events are over."""
        found = []
        blocks = sorted(self.live.items())
        for address, total in self._pieces():
            inside: list[dict[str, Any]] = []
            at = address
            for start, (size, frames) in [b for b in blocks if address <= b[0] < address + total]:
                if start > at:
                    inside.append(_block(at, start - at, "inactive", []))
                inside.append(_block(start, size, "active_allocated", frames))
                at = start + size
            if at < address + total:
                inside.append(_block(at, address + total - at, "inactive", []))
            used = sum(b["size"] for b in inside if b["state"] == "active_allocated")
            found.append(
                {
                    "device": 0,
                    "address": address,
                    "total_size": total,
                    "stream": 0,
                    "segment_type": "large" if total > SMALL_SEGMENT else "small",
                    "segment_pool_id": (0, 0),
                    "is_expandable": self.settings.expandable_segments,
                    "allocated_size": used,
                    "active_size": used,
                    "requested_size": used,
                    "frames": [],
                    "blocks": inside,
                }
            )
        return found

    def _pieces(self) -> list[tuple[int, int]]:
        """What is reserved; pages of an expandable segment that lie side by side are one."""
        pieces: list[tuple[int, int]] = []
        for address, size in sorted(self.reserved.items()):
            if self.settings.expandable_segments and pieces and sum(pieces[-1]) == address:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + size
            else:
                pieces.append((address, size))
        return pieces


def _block(address: int, size: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {"address": address, "size": size, "requested_size": size, "state": state, "frames": frames}
