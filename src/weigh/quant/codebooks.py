"""Tables of values that codes stand for, and the nearest of them to a number.

The dynamic maps are those of Dettmers et al. 2021 (arXiv:2110.02861) as bitsandbytes builds them
(`create_dynamic_map`): a sign, a run of zeros that says the decimal exponent, and a fraction in the bits that are
left. NF4 is the literal table of bitsandbytes, whose last digits come from fp32; FP4 is its own (E2M1 divided by 12
but for the least value), not the OCP format.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from weigh.records import dataclass

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
FP4 = np.array([s * x / 12 for s in (1, -1) for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)], np.float32)
"""In the order of the codes: bit 3 is the sign."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """Values, and the borders between them."""

    values: Any
    """fp32, by code."""
    order: Any
    """Codes in ascending order of their values."""
    borders: Any
    """fp32: a number above so many of them has the code `order[that]`. A number on a border has the lower value."""

    @classmethod
    def of(cls, values: Any, ties_up: bool = False) -> Codebook:
        """From values by code; `ties_up` gives a number midway between two the higher, as torchao does."""
        order = np.argsort(values, kind="stable").astype(np.uint8)
        ascending = values[order]
        borders = (ascending[:-1] + ascending[1:]) / np.float32(2)
        if ties_up:
            borders = np.nextafter(borders, np.float32(-np.inf))
        return cls(values, order, borders)

    def nearest(self, numbers: Any) -> Any:
        """Codes (uint8) of the nearest values of fp32 numbers."""
        found = self._by_comparing(numbers) if len(self.borders) < 32 else self._by_table(numbers)
        return found if self._sorted else self.order[found]

    @property
    def _sorted(self) -> bool:
        return bool((self.order[1:] > self.order[:-1]).all())

    def _by_comparing(self, numbers: Any) -> Any:
        """The number of borders below: fifteen comparisons of whole vectors beat a search each."""
        count = np.zeros(numbers.shape, np.uint8)
        above = np.empty(numbers.shape, np.bool_)
        for border in self.borders:
            np.greater(numbers, border, out=above)
            count += above.view(np.uint8)
        return count

    def _by_table(self, numbers: Any) -> Any:
        """The first 17 bits of a number say its code up to one border, with which it is compared."""
        below, border = table(self)
        index = numbers.view(np.uint32) >> np.uint32(15)
        found = below[index]
        found += (numbers > border[index]).view(np.uint8)
        return found


@cache
def table(book: Codebook) -> tuple[Any, Any]:
    """For each sign, exponent and 8 bits of mantissa: borders below all such numbers, and the one among them."""
    first = np.arange(1 << 17, dtype=np.uint32) << np.uint32(15)
    ends = np.stack([first, first | np.uint32(0x7FFF)]).view(np.float32)
    least, most = np.minimum(*ends), np.maximum(*ends)
    below = np.searchsorted(book.borders, least, side="left")
    assert (np.searchsorted(book.borders, most, side="left") - below <= 1)[np.isfinite(least)].all()
    padded = np.append(book.borders, np.float32(np.inf))
    return below.clip(0, 255).astype(np.uint8), padded[below.clip(0, len(book.borders))]


@cache
def dynamic(signed: bool = True, ties_up: bool = False) -> Codebook:
    """The dynamic map of 256 values, signed or not."""
    return Codebook.of(dynamic_map(signed), ties_up)


@cache
def nf4() -> Codebook:
    """NormalFloat: quantiles of the normal distribution."""
    return Codebook.of(NF4)


@cache
def fp4() -> Codebook:
    """The 4-bit float of bitsandbytes."""
    return Codebook.of(FP4)


def dynamic_map(signed: bool = True) -> Any:
    """The 256 values, ascending, in fp32.

    Seven decades; the i-th has 2^i (unsigned: 2^(i+1)) values, the middles of equal parts of 0.1 to 1. Zero and one are
    values of their own, minus one is none: the least value of the signed map is -0.9929688.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = _tenth_to_one(2 ** (i + (0 if signed else 1)))
        middles = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [*middles, *(-middles if signed else ())]
    return np.sort(np.array(values, np.float32))


def _tenth_to_one(parts: int) -> Any:
    """`torch.linspace(0.1, 1, parts + 1)` in fp32: up in its first half, down in its second, fused multiply-adds."""
    first, last = np.float32(0.1), np.float32(1)
    step, up = np.float64((last - first) / np.float32(parts)), np.arange(parts + 1)
    return np.where(up < (parts + 1) // 2, first + step * up, last - step * (parts - up)).astype(np.float32)
