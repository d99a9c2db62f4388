"""What a format does to values: how far they are off, and how much of that outliers cause.

Sums are kept, so that tensors add up to layers and models; what people read is derived from them:

- relative RMSE: the root of the squared errors over the squared values (0.01: off by 1 % as a whole);
- SQNR: the same as a ratio of signal to noise in decibels, -20 log10 of it (6 dB a bit);
- largest and mean error: magnitudes, in the values' own unit;
- cosine: of the angle between the values and what comes back, 1 where the direction is kept;
- outliers: values of more than 6 times the tensor's root mean square; an outlier column has one;
- the rest: the relative RMSE of all values that are no outliers, quantized with the outliers among them, and again
  with zeros in their places: the difference is what outliers cost the others.
"""

from __future__ import annotations

from math import inf, log10, prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from weigh.errors import InputError
from weigh.quant.arrays import pieces
from weigh.quant.base import matrix
from weigh.records import dataclass, fields, replace

if TYPE_CHECKING:
    from weigh.quant.base import Quantizer

OUTLIER = 6.0
"""In root mean squares of its tensor."""
LEAST_POWER, POWERS = -20, 24
"""The histogram of error magnitudes in root mean squares: below 2^-20, then a bin each doubling, up to 2^2 and more."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one tensor, or of several added up."""

    elements: int = 0
    squares: float = 0.0
    """Sum of squared values."""
    squared_error: float = 0.0
    absolute_error: float = 0.0
    largest: float = 0.0
    """The largest error."""
    product: float = 0.0
    """Sum of values times what comes back."""
    found_squares: float = 0.0
    """Sum of squares of what comes back."""
    outliers: int = 0
    outlier_columns: int = 0
    rest_squares: float = 0.0
    rest_error: float = 0.0
    """Squared errors of what is no outlier."""
    rest_alone: float = 0.0
    """The same, the outliers being zeros."""
    histogram: tuple[int, ...] = (0,) * POWERS
    """How many errors lie in each bin."""

    def __add__(self, other: Errors) -> Errors:
        """Of both together."""
        names = (f.name for f in fields(self) if f.name not in ("largest", "histogram"))
        added = {name: getattr(self, name) + getattr(other, name) for name in names}
        bins = tuple(a + b for a, b in zip(self.histogram, other.histogram, strict=True))
        return Errors(**added, largest=max(self.largest, other.largest), histogram=bins)

    @property
    def relative_rmse(self) -> float:
        """0 where nothing is off; infinite where zeros are."""
        return _relative(self.squared_error, self.squares)

    @property
    def sqnr(self) -> float:
        """In decibels."""
        return -20 * log10(self.relative_rmse) if self.relative_rmse else inf

    @property
    def mean_absolute(self) -> float:
        """The mean error."""
        return self.absolute_error / self.elements if self.elements else 0.0

    @property
    def cosine(self) -> float:
        """1 where the direction is kept; 0 where all came back as zeros."""
        norms = sqrt(self.squares) * sqrt(self.found_squares)
        return self.product / norms if norms else float(self.squares == self.found_squares)

    @property
    def rest(self) -> float:
        """Relative RMSE of what is no outlier."""
        return _relative(self.rest_error, self.rest_squares)

    @property
    def rest_without_outliers(self) -> float:
        """The same, with zeros in the outliers' places."""
        return _relative(self.rest_alone, self.rest_squares)

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV; an infinite SQNR is null."""
        return {
            "elements": self.elements,
            "relative_rmse": self.relative_rmse,
            "sqnr_db": self.sqnr if self.sqnr != inf else None,
            "mean_absolute_error": self.mean_absolute,
            "largest_error": self.largest,
            "cosine": self.cosine,
            "outliers": self.outliers,
            "outlier_columns": self.outlier_columns,
            "relative_rmse_of_rest": self.rest,
            "relative_rmse_of_rest_without_outliers": self.rest_without_outliers,
        }


def compare(values: Any, found: Any) -> Errors:
    """How far `found` is from `values`, arrays of one shape; the outliers' part is left out.

    Raises:
        InputError: the shapes differ.
    """
    if values.shape != found.shape:
        raise InputError(f"the arrays are {values.shape} and {found.shape}", hint="Give two of one shape.")
    view = values.reshape(_matrix(values.shape))
    return _added(view, found.reshape(view.shape), _rms(view))


def measure(quantizer: Quantizer, values: Any) -> Errors:
    """What quantizing does to an array. Beside it, what comes back is in memory; twice where it has outliers.

    Raises:
        InputError: it cannot be quantized.
    """
    view = values.reshape(_matrix(values.shape))
    rms, found = _rms(view), quantizer.round_trip(values).reshape(view.shape)
    plain, columns = _added(view, found, rms), np.zeros(view.shape[1], np.bool_)
    for piece in pieces(*view.shape):
        columns |= _is_outlier(view[piece], rms).any(axis=0)
    if not columns.any():
        error = plain.squared_error
        return replace(plain, rest_squares=plain.squares, rest_error=error, rest_alone=error)
    zeroed = view.copy()
    for piece in pieces(*view.shape):
        zeroed[piece][_is_outlier(view[piece], rms)] = 0
    alone = quantizer.round_trip(zeroed.reshape(values.shape)).reshape(view.shape)
    del zeroed
    outliers, rest, rest_error, rest_alone = 0, 0.0, 0.0, 0.0
    for piece in pieces(*view.shape):
        large = _is_outlier(view[piece], rms)
        exact = view[piece].astype(np.float64)[~large]
        outliers += int(large.sum())
        rest += float((exact**2).sum())
        rest_error += float(((found[piece][~large] - exact) ** 2).sum())
        rest_alone += float(((alone[piece][~large] - exact) ** 2).sum())
    return replace(
        plain,
        outliers=outliers,
        outlier_columns=int(columns.sum()),
        rest_squares=rest,
        rest_error=rest_error,
        rest_alone=rest_alone,
    )


def output(quantizer: Quantizer, weight: Any, inputs: Any) -> Errors:
    """What quantizing a weight [outputs, features] does to `inputs @ weight.T`, inputs being [..., features].

    Raises:
        InputError: the shapes do not fit, or the weight cannot be quantized.
    """
    if weight.ndim != 2 or inputs.shape[-1] != weight.shape[1]:
        raise InputError(f"inputs {inputs.shape} do not fit a weight {weight.shape}")
    rows = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
    return compare(rows @ weight.astype(np.float64).T, rows @ quantizer.round_trip(weight).astype(np.float64).T)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return matrix(shape) if len(shape) > 1 else (prod(shape), 1)


def _rms(view: Any) -> float:
    """In pieces, as all that follows: in fp64 the whole would take twice what it takes."""
    squares = sum(float((view[piece].astype(np.float64) ** 2).sum()) for piece in pieces(*view.shape))
    return sqrt(squares / view.size) if view.size else 0.0


def _is_outlier(values: Any, rms: float) -> Any:
    return np.abs(values.astype(np.float32, copy=False)) > OUTLIER * rms


def _added(view: Any, found: Any, rms: float) -> Errors:
    parts = (_errors(view[piece], found[piece], rms) for piece in pieces(*view.shape))
    return sum(parts, Errors())


def _errors(values: Any, found: Any, rms: float) -> Errors:
    values, found = values.astype(np.float64), found.astype(np.float64)
    error = np.abs(found - values)
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = np.floor(np.log2(error / rms)) if rms else np.full(error.shape, -inf)
    at = np.clip(np.nan_to_num(powers, neginf=LEAST_POWER - 1) - LEAST_POWER + 1, 0, POWERS - 1).astype(np.int64)
    return Errors(
        elements=values.size,
        squares=float((values**2).sum()),
        squared_error=float((error**2).sum()),
        absolute_error=float(error.sum()),
        largest=float(error.max(initial=0)),
        product=float((values * found).sum()),
        found_squares=float((found**2).sum()),
        histogram=tuple(np.bincount(at.reshape(-1), minlength=POWERS).tolist()),
    )


def _relative(error: float, squares: float) -> float:
    if not squares:
        return inf if error else 0.0
    return sqrt(error / squares)
