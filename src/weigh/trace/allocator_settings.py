"""What PYTORCH_CUDA_ALLOC_CONF says, as a frozen dataclass: read strictly, with the limits that PyTorch sets.

Source: c10/core/AllocatorConfig.cpp (`parseArgs` and the functions beside it) and c10/cuda/CUDAAllocatorConfig.h of
PyTorch 2.13. Stricter than it in one thing: where it reads "-30" as a huge number and "20.5" as 20, this refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.records import dataclass, fields

MIB = 1 << 20
INTERVALS = 16
"""Sizes below 2 MiB, then one interval for every power of two up to 32 GiB and beyond (kRoundUpPowerOfTwoIntervals)."""

VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
WITHOUT_EFFECT = frozenset(
    """graph_capture_record_stream_reuse pinned_free_catch_all pinned_max_cached_size pinned_max_round_threshold
    pinned_num_register_threads pinned_reserve_segment_size_mb pinned_use_background_threads
    pinned_use_cuda_host_register pinned_use_hip_host_register release_lock_on_cudamalloc release_lock_on_hipmalloc
    throw_on_cudamalloc_oom""".split()
)
"""Options about host memory, locks, graphs and messages: no block of the device lies elsewhere for them."""


@dataclass(frozen=True, slots=True)
class AllocatorSettings:
    """How the CUDA caching allocator is set; the names are those of the variable's options.

    >>> AllocatorSettings.parse("expandable_segments:True,max_split_size_mb:128").max_split_size_mb
    128
    """

    expandable_segments: bool = False
    """One growing segment for each pool and stream, instead of one for each request that no segment can serve."""
    max_split_size_mb: int | None = None
    """Blocks of this many MiB or more are not split, and serve no smaller request; None: all may be."""
    max_non_split_rounding_mb: int | None = None
    """How many MiB more than asked for such a block may have; None: `large_segment_size_mb`."""
    large_segment_size_mb: int = 20
    """The segment that requests between 1 and 10 MiB share, and the page of an expandable segment, in MiB."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    """For each of 16 intervals of sizes: sizes are rounded up to this many steps from one power of two to the next."""
    garbage_collection_threshold: float = 0.0
    """Old free segments are given back when this share of the allowed memory is reserved; 0: never.

    PyTorch looks at it only where `per_process_memory_fraction` is below 1.
    """
    per_process_memory_fraction: float = 1.0
    """The share of the device that the process may reserve."""

    def __post_init__(self) -> None:
        for name in ("max_split_size_mb", "max_non_split_rounding_mb"):
            value = getattr(self, name)
            if value is not None and value < self.large_segment_size_mb:
                raise _problem(name, f"{value} is less than a large segment's {self.large_segment_size_mb} MiB")
        if self.large_segment_size_mb <= 10:
            raise _problem("large_segment_size_mb", f"{self.large_segment_size_mb} is not more than 10 MiB")
        if not 0 <= self.garbage_collection_threshold < 1:
            raise _problem("garbage_collection_threshold", "is not between 0 and 1")
        if not 0 <= self.per_process_memory_fraction <= 1:
            raise _problem("per_process_memory_fraction", "is not from 0 to 1")
        if len(self.roundup_power2_divisions) != INTERVALS or not all(
            d == 0 or _is_power_of_two(d) for d in self.roundup_power2_divisions
        ):
            raise _problem("roundup_power2_divisions", "are not 16 numbers, each 0 or a power of two")

    def __str__(self) -> str:
        """As the variable would say it; "default" where nothing differs.

        >>> str(AllocatorSettings(expandable_segments=True))
        'expandable_segments:True'
        """
        plain = AllocatorSettings()
        pairs = ((f.name, getattr(self, f.name), getattr(plain, f.name)) for f in fields(self))
        said = [f"{name}:{_word(value)}" for name, value, usual in pairs if value != usual]
        return ",".join(said) or "default"

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """The settings in a text such as "expandable_segments:True,max_split_size_mb:128"; white space is ignored.

        Raises:
            UsageError: the text cannot be read, or a value is out of bounds.
            UnknownNameError: there is no such option.
            NotModelledError: another allocator is asked for.
        """
        text = "".join(text.split())
        values: dict[str, Any] = {}
        at = 0
        while at < len(text):
            item = _ITEM.match(text, at)
            if item is None:
                raise UsageError(f"{text[at:]!r} is not NAME:VALUE", where=VARIABLE, hint=_HINT)
            at = item.end()
            name, value = item.groups()
            if name in _READERS:
                values[name] = _READERS[name](name, value)
            elif name == "backend":
                _check_backend(value)
            elif name not in WITHOUT_EFFECT:
                raise UnknownNameError("allocator option", name, [*_READERS, "backend"], where=VARIABLE)
        return cls(**values)


_ITEM = re.compile(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$)")
_HINT = "Write options like expandable_segments:True,max_split_size_mb:128."


def _problem(name: str, what: str, hint: str | None = None) -> UsageError:
    return UsageError(what, where=f"{VARIABLE}: {name}", hint=hint)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _flag(name: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise _problem(name, f"{value!r} is neither True nor False", "Write it with a capital letter.")
    return value == "True"


def _whole(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise _problem(name, f"{value!r} is not a whole number")
    return int(value)


def _share(name: str, value: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+|\d+\.", value, re.ASCII):
        raise _problem(name, f"{value!r} is not a number")
    return float(value)


def _threshold(name: str, value: str) -> float:
    if _share(name, value) == 0:
        raise _problem(name, "is not between 0 and 1", "Leave it out to collect nothing.")
    return float(value)


def _divisions(name: str, value: str) -> tuple[int, ...]:
    """One number for all sizes, or a list such as [64:8,256:4,>:1], by MiB.

    The first entry holds for smaller sizes too, ">" for all above the entry before it. Sizes between two entries are
    not rounded. Source: parseRoundUpPower2Divisions.
    """
    if not value.startswith("["):
        return (_power_of_two(name, value),) * INTERVALS
    result = [0] * INTERVALS
    last, first = 0, True
    for entry in value[1:-1].removesuffix(",").split(",") if value != "[]" else []:
        boundary, colon, text = entry.partition(":")
        if not colon:
            raise _problem(name, f"{entry!r} is not MIB:DIVISIONS")
        number = 0 if text == "0" else _power_of_two(name, text)
        if boundary == ">":
            result[last + 1 :] = [number] * (INTERVALS - last - 1)
            continue
        last = min(_power_of_two(name, boundary).bit_length() - 1, INTERVALS - 1)
        if first:
            result[:last] = [number] * last
        result[last], first = number, False
    return tuple(result)


def _power_of_two(name: str, value: str) -> int:
    if not _is_power_of_two(_whole(name, value)):
        raise _problem(name, f"{value} is not a power of two")
    return int(value)


def _check_backend(value: str) -> None:
    if value == "cudaMallocAsync":
        raise NotModelledError("the allocator cudaMallocAsync", where=VARIABLE)
    if value != "native":
        raise UnknownNameError("allocator backend", value, ["native"], where=VARIABLE)


_READERS: dict[str, Callable[[str, str], Any]] = {
    "expandable_segments": _flag,
    "garbage_collection_threshold": _threshold,
    "large_segment_size_mb": _whole,
    "max_non_split_rounding_mb": _whole,
    "max_split_size_mb": _whole,
    "per_process_memory_fraction": _share,
    "roundup_power2_divisions": _divisions,
}


def _word(value: Any) -> str:
    """A value as the variable spells it; sizes of intervals as a list."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
