"""The searches for scales of GGML's larger blocks, over many groups at once: values lie [of a group, groups].

Sums run down the first axis in order, each step rounded to fp32, as the loops in C do: numpy adds so along an axis
that is not the fastest in memory, and in pairs along one that is. `grouped` sees to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NOTHING = np.float32(1e-15)
"""A largest magnitude below is taken for zero."""
F = np.float32


def grouped(values: Any, size: int) -> Any:
    """Values as [size, groups + 1] in this order of memory; the last group is zeros, so that none is ever alone."""
    groups = np.zeros((size, values.size // size + 1), F)
    groups[:, :-1] = values.reshape(-1, size).T
    return groups


def summed(values: Any) -> Any:
    """The sums of groups, added in order."""
    return np.add.reduce(values, axis=0)


def scale_and_minimum(
    values: Any, weights: Any, most: int, *, first: float, step: float, steps: int, by_magnitude: bool = False
) -> Any:
    """Scale, minimum (as what is taken off, from 0 on) and codes from 0 to `most` that err least.

    Tries `steps + 1` scales about (max - min) / most, fits scale and minimum to the codes of each by weighted least
    squares, and keeps the best by weighted squares or, `by_magnitude`, magnitudes (`make_qkx2_quants`).
    """
    high, low = values.max(axis=0), np.minimum(values.min(axis=0), F(0))
    flat = high == low
    sum_w, sum_x = summed(weights), summed(weights * values)
    inverse = F(most) / (high - low)
    scale = F(1) / inverse
    codes = np.clip(np.rint(inverse * (values - low)), 0, most)
    best = _error(values, weights, codes, scale, low, by_magnitude)
    for i in range(steps + 1):
        inverse = (F(first) + F(step) * F(i) + F(most)) / (high - low)
        tried = np.clip(np.rint(inverse * (values - low)), F(0), F(most))
        weighted = weights * tried
        sum_l, sum_l2, sum_xl = summed(weighted), summed(weighted * tried), summed(weighted * values)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = new_low > 0
        new_low = np.where(positive, F(0), new_low)
        new_scale = np.where(positive, sum_xl / sum_l2, new_scale)
        error = _error(values, weights, tried, new_scale, new_low, by_magnitude)
        better = (determinant > 0) & (error < best) & ~flat
        best = np.where(better, error, best)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
        codes = np.where(better, tried, codes)
    return np.where(flat, F(0), scale), -low, np.where(flat, F(0), codes)


def _error(values: Any, weights: Any, codes: Any, scale: Any, low: Any, by_magnitude: bool) -> Any:
    difference = scale * codes + low - values
    return summed(weights * (np.abs(difference) if by_magnitude else difference * difference))


def signed_scale(values: Any, most: int) -> Any:
    """Scale and codes from -most to most - 1 by least squares with squares as weights (`make_qx_quants`)."""
    largest = _extreme(values)
    nothing = np.abs(largest) < NOTHING
    weights = values * values
    codes, sum_lx, sum_l2 = _fit(values, weights, F(-most) / largest, most)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, F(0))
    best = scale * sum_lx
    for i in [*range(-9, 0), *range(1, 10)]:
        tried, sum_lx, sum_l2 = _fit(values, weights, -(F(most) + F(0.1) * F(i)) / largest, most)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = np.where(better, tried, codes)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
    # Groups of zeros have the code 0, which stands for -most; their scale is 0.
    return np.where(nothing, F(0), scale), np.where(nothing, F(-most), codes)


def _fit(values: Any, weights: Any, inverse: Any, most: int) -> Any:
    codes = np.clip(np.rint(inverse * values), F(-most), F(most - 1))
    return codes, summed(weights * values * codes), summed(weights * codes * codes)


def signed_scale_by_turns(values: Any, most: int) -> Any:
    """The same, moving one code after the other to where it errs least, five times over (`make_q3_quants`)."""
    largest = _extreme(values)
    nothing = np.abs(largest) < NOTHING
    weights = values * values
    codes, sum_lx, sum_l2 = _fit(values, weights, F(-most) / largest, most)
    for _ in range(5):
        changed = False
        for i in range(len(values)):
            x, w, code = values[i], weights[i], codes[i]
            without_lx = sum_lx - w * x * code
            without_l2 = sum_l2 - w * code * code
            tried = np.clip(np.rint(x * without_l2 / without_lx), F(-most), F(most - 1))
            with_lx, with_l2 = without_lx + w * x * tried, without_l2 + w * tried * tried
            better = (without_lx > 0) & (tried != code) & (with_l2 > 0)
            better &= with_lx * with_lx * sum_l2 > sum_lx * sum_lx * with_l2
            codes[i] = np.where(better, tried, code)
            sum_lx, sum_l2 = np.where(better, with_lx, sum_lx), np.where(better, with_l2, sum_l2)
            changed = changed or bool(better.any())
        if not changed:
            break
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, F(0))
    return np.where(nothing, F(0), scale), np.where(nothing, F(-most), codes)


def table_scale(values: Any, table: Any, tries: int) -> Any:
    """The scale by which a table's values fit best, with squares as weights (`quantize_row_iq4_nl_impl`)."""
    largest = _extreme(values)
    weights = values * values
    sum_qx, sum_q2 = _fit_table(values, weights, F(1) / (-largest / table[0]), table)
    scale = np.where(sum_q2 > 0, sum_qx / sum_q2, F(0))
    best = scale * sum_qx
    for i in range(-tries, tries + 1):
        sum_qx, sum_q2 = _fit_table(values, weights, (F(i) + table[0]) / largest, table)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = np.where(better, sum_qx / sum_q2, scale)
        best = np.where(better, scale * sum_qx, best)
    return np.where(np.abs(largest) < NOTHING, F(0), scale)


def _fit_table(values: Any, weights: Any, inverse: Any, table: Any) -> Any:
    found = table[nearest_in(inverse * values, table)]
    return summed(weights * found * values), summed(weights * found * found)


def nearest_in(values: Any, table: Any) -> Any:
    """The index (uint8) of the nearest in an ascending table of whole numbers; what lies midway goes up."""
    index = np.zeros(values.shape, np.uint8)
    for border in (table[:-1] + table[1:]) / F(2):
        index += values >= border
    return index


def _extreme(values: Any) -> Any:
    at = np.abs(values).argmax(axis=0)
    return np.take_along_axis(values, at[None], axis=0)[0]
