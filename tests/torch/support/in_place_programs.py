"""Programs in which several gradients meet at one tensor: is the sum made in place, or is it a third tensor?

`weight` is much larger than all else, so that a peak counts copies of it.
"""

from __future__ import annotations

from typing import Any

from support.inputs import PLAIN, Draw, draw_indices, draw_input
from support.programs import CPU, Drawn, program

ROWS, WIDTH = 4096, 32
WEIGHT_BYTES = ROWS * WIDTH * 4


def _draw(draw: Draw) -> Drawn:
    weight = draw_input(draw, (ROWS, WIDTH), "float32", True, PLAIN)
    return [draw_indices(draw, (2,)), draw_input(draw, (2, WIDTH), "float32", False, PLAIN), weight], {}


def _embedding_and_head(ops: Any, indices: Any, _: Any, weight: Any) -> Any:
    return ops.linear(ops.tanh(ops.embedding(indices, weight)), weight)


def _two_embeddings(ops: Any, indices: Any, _: Any, weight: Any) -> Any:
    return ops.add(ops.embedding(indices, weight), ops.embedding(indices, weight))


def _three_embeddings(ops: Any, indices: Any, x: Any, weight: Any) -> Any:
    return ops.add(_two_embeddings(ops, indices, x, weight), ops.embedding(indices, weight))


def _two_heads(ops: Any, _: Any, x: Any, weight: Any) -> Any:
    return ops.add(ops.linear(x, weight), ops.linear(x, weight))


def _two_products(ops: Any, _: Any, __: Any, weight: Any) -> Any:
    return ops.add(ops.mul(weight, 2.0), ops.mul(weight, 3.0))


def _two_turned_products(ops: Any, _: Any, __: Any, weight: Any) -> Any:
    return ops.add(ops.mul(ops.transpose(weight, 0, 1), 2.0), ops.mul(ops.transpose(weight, 0, 1), 3.0))


BODIES = {
    "in place: embedding and head": _embedding_and_head,
    "in place: two embeddings": _two_embeddings,
    "in place: three embeddings": _three_embeddings,
    "in place: two heads": _two_heads,
    "in place: two products": _two_products,
    "in place: two turned products": _two_turned_products,
}
for _name, _body in BODIES.items():
    program(_name, "", _draw, _body, (CPU,))
