"""LLM.int8(): a linear layer in int8 whose outlier features are kept out of it.

Dettmers et al. 2022, arXiv:2208.07339, in five steps:

1. Features (columns of the hidden states) with a value of at least the threshold are outliers.
2. The other columns are quantized row by row, the weight was so before: a vector of each factor, a scale.
3. The codes are multiplied in int8 and added up in int32.
4. The sums are scaled by both vectors' absmax / 127.
5. The outlier columns are multiplied in fp16 (the hidden states' own format) by the weight in fp16, and added; where
   only its codes were kept, as in bitsandbytes, by what those stand for.

As in bitsandbytes a row's absmax is over all its values but the outliers themselves: those that are small in an
outlier column count, though their codes are 0. Its CPU back end multiplies by 6.200124e-05 in step 4, 1.8e-5 more
than 1 / 127^2; that is not followed.

The paper counts outliers twice: its introduction says 150,000 a sequence in 6 feature dimensions at 6.7B parameters,
section 4 "up to 150k" for a sequence of 2,048 tokens in at most 7 dimensions at 13B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weigh.dtypes import INT8
from weigh.errors import InputError, UsageError
from weigh.quant.absmax import LEVELS, Absmax, to_codes
from weigh.quant.arrays import dtype_of
from weigh.quant.base import SOURCES, Packed, refuse_infinite
from weigh.records import dataclass

THRESHOLD = 6.0
"""From which magnitude a value is an outlier (section 3.2)."""
OF_LAYERS, OF_POSITIONS = 0.25, 0.06
"""In what share of layers, and of positions of a sequence, a feature has one to be called an outlier (section 4)."""
SCALE = np.float32(1 / 127**2)
WEIGHT = Absmax("row", half=True)
"""How the weight is quantized: cast to fp16, a scale a row."""
EXACT = 1024
"""Products of codes that can be added up in fp32 without rounding: 1024 * 127^2 < 2^24."""


@dataclass(frozen=True, slots=True)
class Split:
    """Hidden states as they are multiplied."""

    codes: Any
    """int8 [rows, features]; 0 in the outlier columns."""
    absmax: Any
    """fp32 [rows]: the largest magnitude that is no outlier."""
    outliers: Any
    """int64: the columns with outliers."""


def split(hidden: Any, threshold: float = THRESHOLD) -> Split:
    """Hidden states [rows, features] as codes and outlier columns; a threshold of 0 finds none.

    Raises:
        InputError: they have another number of axes, or values that are not finite.
    """
    if hidden.ndim != 2:
        raise InputError(f"hidden states have {hidden.ndim} axes", hint="Give [rows, features].")
    if dtype_of(hidden) not in SOURCES:
        raise InputError(f"hidden states in {dtype_of(hidden)}", hint="Give fp32, bf16 or fp16.")
    values = hidden.astype(np.float32)
    refuse_infinite(np.abs(values).max(axis=1, initial=0))
    large = np.abs(values) >= threshold if threshold > 0 else np.zeros(values.shape, np.bool_)
    outliers = np.flatnonzero(large.any(axis=0))
    values[large] = 0
    absmax = np.abs(values).max(axis=1, initial=0)
    values[:, outliers] = 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = to_codes(values * (LEVELS / absmax)[:, None])
    return Split(codes, absmax, outliers)


def multiply(a: Any, b: Any) -> Any:
    """int8 [m, k] times the transpose of int8 [n, k], added up in int32: [m, n]."""
    total = np.zeros((len(a), len(b)), np.int32)
    for start in range(0, a.shape[1], EXACT):  # whole numbers below 2^24 are exact in fp32, and fp32 is fast
        piece = slice(start, start + EXACT)
        total += (a[:, piece].astype(np.float32) @ b[:, piece].astype(np.float32).T).astype(np.int32)
    return total


def linear(hidden: Any, weight: Packed, bias: Any = None, threshold: float = THRESHOLD, kept: Any = None) -> Any:
    """`hidden @ weight.T + bias` by LLM.int8(), in the format of `hidden`.

    `hidden` is [..., features], `weight` what `WEIGHT` quantized from [outputs, features]. `kept` is that weight
    itself: given, outlier columns are multiplied by it in fp16, as in the paper; without, by what the codes stand for.

    Raises:
        InputError: the shapes do not fit, the weight is quantized otherwise, or a value is not finite.
    """
    codes, absmax = weight.parts["codes"], weight.parts["absmax"]
    if dtype_of(codes) is not INT8 or codes.ndim != 2 or absmax.shape != (len(codes),):
        raise InputError("the weight is not int8 with a scale a row", hint="Quantize it with llm_int8.WEIGHT.")
    if hidden.shape[-1] != codes.shape[1]:
        raise InputError(f"{hidden.shape[-1]:,} features meet a weight of {codes.shape[1]:,}")
    rows = hidden.reshape(-1, hidden.shape[-1])
    found = split(rows.astype(np.float16), threshold)
    total = multiply(found.codes, codes).astype(np.float32)
    out = total * (found.absmax[:, None] * absmax[None]) * SCALE
    if bias is not None:
        out += bias.astype(np.float32)
    out = out.astype(hidden.dtype)
    if found.outliers.size:
        columns = _columns(weight, found.outliers) if kept is None else kept[:, found.outliers].astype(np.float16)
        columns = columns.astype(hidden.dtype)
        product = rows[:, found.outliers].astype(np.float32) @ columns.astype(np.float32).T
        out = (out.astype(np.float32) + product).astype(hidden.dtype)
    return out.reshape(*hidden.shape[:-1], len(codes))


def _columns(weight: Packed, columns: Any) -> Any:
    """Some columns of a quantized weight, in fp32."""
    codes = weight.parts["codes"][:, columns]
    return WEIGHT.dequantize(Packed({"codes": codes, "absmax": weight.parts["absmax"]}, codes.shape, weight.dtype))


METHODS = ("absmax", "row", "vector", "llm_int8")
"""From one scale a tensor to the decomposition: each errs less than the one before where there are outliers."""


def product(hidden: Any, weight: Any, method: str, threshold: float = THRESHOLD) -> Any:
    """`hidden @ weight.T` in int8: a scale for each factor; for each row of `hidden`; for each row of both; `linear`.

    Raises:
        UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"is {method!r}", where="method", hint=f"Give one of {', '.join(METHODS)}.")
    if method == "llm_int8":
        return linear(hidden, WEIGHT.quantize(weight), threshold=threshold, kept=weight)
    scopes = {"absmax": ("tensor", "tensor"), "row": ("row", "tensor"), "vector": ("row", "row")}[method]
    a, b = (Absmax(scope).quantize(x) for scope, x in zip(scopes, (hidden, weight), strict=True))
    total = multiply(a.parts["codes"], b.parts["codes"]).astype(np.float32)
    return total * (a.parts["absmax"][:, None] * b.parts["absmax"][None]) * SCALE


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of the hidden states of all layers."""

    index: int
    largest: float
    """The largest magnitude anywhere."""
    layers: float
    """Share of the layers in which it has an outlier."""
    positions: float
    """Share of the positions of all sequences and layers at which it is one."""
    systematic: bool
    """It meets the literature's criterion."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """What the inputs of layers have of outliers."""

    threshold: float
    features: tuple[Feature, ...]
    """Those with an outlier anywhere, the most frequent first."""
    width: int
    """Features in all."""
    by_layer: dict[str, tuple[float, float, float]]
    """Each layer's share of features with outliers, of positions with any, of values that are one."""

    @property
    def systematic(self) -> tuple[Feature, ...]:
        """Those that meet the criterion."""
        return tuple(feature for feature in self.features if feature.systematic)


def outliers(
    inputs: Mapping[str, Any],
    threshold: float = THRESHOLD,
    of_layers: float = OF_LAYERS,
    of_positions: float = OF_POSITIONS,
) -> Outliers:
    """The outlier features of layers' inputs, each [..., positions, features] with the same features.

    Raises:
        InputError: there are no inputs, or they have different features.
    """
    widths = {x.shape[-1] for x in inputs.values() if x.ndim}
    if len(widths) != 1:
        said = ", ".join(map(str, sorted(widths))) or "no"
        raise InputError(
            f"the inputs have {said} features", hint="Features are compared across layers: give one width."
        )
    width = widths.pop()
    largest, in_layers, at, positions = np.zeros(width), np.zeros(width), np.zeros(width), 0
    by_layer = {}
    for name, hidden in inputs.items():
        magnitudes = np.abs(hidden.reshape(-1, width).astype(np.float32))
        large = magnitudes >= threshold
        largest = np.maximum(largest, magnitudes.max(axis=0, initial=0))
        in_layers += large.any(axis=0)
        at += large.sum(axis=0)
        positions += len(large)
        shares = (large.any(axis=0), large.any(axis=1), large)
        by_layer[name] = tuple(float(x.mean()) if x.size else 0.0 for x in shares)
    layers, shares_at = in_layers / len(inputs), at / max(positions, 1)
    systematic = (layers >= of_layers) & (shares_at >= of_positions)
    order = sorted(np.flatnonzero(in_layers), key=lambda i: (-layers[i], -shares_at[i]))
    features = tuple(
        Feature(int(i), float(largest[i]), float(layers[i]), float(shares_at[i]), bool(systematic[i])) for i in order
    )
    return Outliers(threshold, features, width, by_layer)  # type: ignore[arg-type]  # three shares each
