"""Sizes with unknowns: a graph is built once for any context and any number of sequences.

An unknown is a power of two so large that sums and products of sizes never meet: the coefficients of a polynomial are
the digits of one whole number (Kronecker's substitution), and arithmetic on sizes needs no other type. Division is
exact where it is exact of every coefficient, which the sizes of a graph's tensors see to.
"""

from __future__ import annotations

BITS = 64
"""Of a digit; half of its range is for negative coefficients."""
TOKENS, SEQUENCES, CELLS, WINDOW = (1 << BITS * place for place in (1, 2, 4, 8))
"""Tokens of a sequence in the batch, sequences, cells of a stream, cells of a stream in layers with a window."""
PLACES = 12

Polynomial = tuple[tuple[int, int], ...]
"""Products of unknowns by their place, and how many of each."""


def polynomial(size: int) -> Polynomial:
    """The coefficients of a size.

    >>> polynomial(3 * TOKENS * CELLS - 2 * CELLS + 7)
    ((0, 7), (4, -2), (5, 3))
    """
    found, place, half, whole = [], 0, 1 << BITS - 1, 1 << BITS
    while size:
        digit = (size + half) % whole - half
        if digit:
            found.append((place, digit))
        size = (size - digit) >> BITS
        place += 1
    return tuple(found)


def products(tokens: int, sequences: int, cells: int, window: int) -> tuple[int, ...]:
    """What each place of a polynomial stands for."""
    few = (1, tokens, sequences, tokens * sequences)
    return (*few, *(cells * one for one in few), *(window * one for one in few))


def value(size: Polynomial, at: tuple[int, ...]) -> int:
    """What it comes to.

    >>> value(polynomial(3 * TOKENS * CELLS - 2 * CELLS + 7), products(2, 1, 10, 0))
    47
    """
    return sum([many * at[place] for place, many in size])
