"""Small programs over ops, each written once and run twice: on ghost tensors and on real PyTorch.

A program has a body (`ops` is either library), the rows of the op table that it is there to cover, and a way to draw
its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from support.inputs import (
    ANY,
    DENSE,
    FLOATS,
    PLAIN,
    STRIDED,
    Draw,
    Input,
    draw_broadcastable,
    draw_float,
    draw_indices,
    draw_input,
    draw_shape,
)

Drawn = tuple[list[Input], dict[str, Any]]

CUDA, CPU = "cuda", "cpu"
BOTH = (CUDA, CPU)


@dataclass(frozen=True)
class Program:
    """One program."""

    name: str
    body: Callable[..., Any]
    """`body(ops, *tensors, **attributes)`: a tensor, a list of them, or None."""
    draw: Callable[[Draw], Drawn]
    """Inputs and attributes."""
    rows: tuple[str, ...] = ()
    devices: tuple[str, ...] = BOTH


PROGRAMS: dict[str, Program] = {}


def program(
    name: str, rows: str, draw: Callable[[Draw], Drawn], body: Callable[..., Any], devices: tuple[str, ...] = BOTH
) -> None:
    """Enter a program; `rows` is a list in words, without `aten::`."""
    assert name not in PROGRAMS, name
    full = tuple(r if r[0].isupper() else f"aten::{r}" for r in rows.split())
    PROGRAMS[name] = Program(name, body, draw, full, devices)


# -- ways to draw


def unary(least: int = 0, layout: int = ANY, grad: bool | None = None) -> Callable[[Draw], Drawn]:
    """One tensor."""

    def draw_one(draw: Draw) -> Drawn:
        return [draw_input(draw, draw_shape(draw, least), draw_float(draw), grad, layout)], {}

    return draw_one


def binary(draw: Draw) -> Drawn:
    """Two tensors that broadcast, of one dtype or of two."""
    shape = draw_shape(draw, 0)
    left, right = shape, draw_broadcastable(draw, shape)
    dtype = draw_float(draw)
    other = dtype if draw(st.booleans()) else draw_float(draw)
    pair = [draw_input(draw, left, dtype), draw_input(draw, right, other)]
    return pair[:: draw(st.sampled_from((1, -1)))], {}


def same(draw: Draw) -> Drawn:
    """A gradient and what was saved, of one shape and dtype."""
    shape, dtype = draw_shape(draw, 0), draw_float(draw)
    return [draw_input(draw, shape, dtype), draw_input(draw, shape, dtype)], {}


def nothing(**choices: Any) -> Callable[[Draw], Drawn]:
    """No tensor; one of each attribute's choices."""
    return lambda draw: ([], {key: draw(st.sampled_from(values)) for key, values in choices.items()})


def with_dim(least: int = 1, extra: int = 0) -> Callable[[Draw], Drawn]:
    """One tensor and a dimension."""

    def draw_one(draw: Draw) -> Drawn:
        shape = draw_shape(draw, least)
        return [draw_input(draw, shape, draw_float(draw))], {"dim": draw(st.integers(0, len(shape) - 1 + extra))}

    return draw_one


# -- creation

DTYPES = ("float32", "bfloat16", "int64", "bool")
program("arange", "arange", nothing(length=(1, 5, 33)), lambda ops, length: ops.arange(length))
program(
    "eye",
    "eye",
    nothing(length=(1, 5, 33), dtype=DTYPES[:3]),
    lambda ops, length, dtype: ops.eye(length, ops.dtype(dtype)),
)
for _name in ("zeros", "ones", "full"):
    program(
        _name,
        _name,
        nothing(shape=((), (1,), (3, 5)), dtype=DTYPES),
        lambda ops, shape, dtype, name=_name: getattr(ops, name)(tuple(shape), ops.dtype(dtype)),
    )
program("scalar_tensor", "scalar_tensor", nothing(dtype=DTYPES), lambda ops, dtype: ops.scalar_tensor(ops.dtype(dtype)))
program("ones_like", "ones_like", unary(), lambda ops, x: ops.ones_like(x))

# -- element by element

for _name in ("add", "sub", "mul", "div"):
    program(_name, _name, binary, lambda ops, a, b, name=_name: getattr(ops, name)(a, b))
program("add a number", "add.Scalar", unary(), lambda ops, x: ops.add(x, 1.5))
program("subtract a number", "add.Scalar", unary(), lambda ops, x: ops.sub(x, 1.5))
program("multiply by a number", "mul.Scalar", unary(), lambda ops, x: ops.mul(x, 1.5))
program("divide by a number", "div.Scalar", unary(), lambda ops, x: ops.div(x, 1.5))
for _exponent in (2, 3.0, 0.5, 4):
    program(f"pow {_exponent}", "pow", unary(), lambda ops, x, n=_exponent: ops.pow(x, n))
for _name in "neg rsqrt sqrt reciprocal exp cos sin".split():
    program(_name, _name, unary(), lambda ops, x, name=_name: getattr(ops, name)(x))
for _name, _rows in {
    "tanh": "tanh tanh_backward",
    "sigmoid": "sigmoid sigmoid_backward",
    "relu": "relu threshold_backward",
    "silu": "silu silu_backward",
    "gelu": "gelu gelu_backward",
}.items():
    program(_name, _rows, unary(), lambda ops, x, name=_name: getattr(ops, name)(x))
program("clamp", "clamp", unary(grad=False), lambda ops, x: ops.clamp(x))
program("less_equal", "le", binary, lambda ops, a, b: ops.less_equal(a, b))
program(
    "bitwise_and",
    "bitwise_and",
    lambda draw: ([draw_input(draw, (3, 5), "bool", False, DENSE) for _ in range(2)], {}),
    lambda ops, a, b: ops.logical_and(a, b),
)
program("add_", "add_", binary, lambda ops, a, b: ops.add_(ops.add(ops.mul(a, 2.0), b), b))
program("tril", "tril", unary(2), lambda ops, x: ops.tril(x))


def _cast(draw: Draw) -> Drawn:
    return [draw_input(draw, draw_shape(draw, 0), draw_float(draw))], {"dtype": draw_float(draw)}


program("to", "_to_copy", _cast, lambda ops, x, dtype: ops.to(x, ops.dtype(dtype)))

# -- network


def _embedding(draw: Draw) -> Drawn:
    weight = draw_input(draw, (7, draw(st.sampled_from((1, 4, 9)))), draw_float(draw), True, PLAIN)
    return [draw_indices(draw, draw_shape(draw, 1, 3)), weight], {}


program("embedding", "embedding embedding_dense_backward", _embedding, lambda ops, i, w: ops.embedding(i, w))


def _layer_norm(draw: Draw) -> Drawn:
    shape, dtype = draw_shape(draw), draw_float(draw)
    affine = [draw_input(draw, shape[-1:], dtype, layout=PLAIN) for _ in range(draw(st.integers(0, 2)))]
    return [draw_input(draw, shape, dtype), *affine], {}


def _run_layer_norm(ops: Any, x: Any, weight: Any = None, bias: Any = None) -> Any:
    return ops.layer_norm(x, weight, bias)


program("layer_norm", "native_layer_norm native_layer_norm_backward", _layer_norm, _run_layer_norm)
program(
    "dropout",
    "native_dropout native_dropout_backward",
    unary(),
    lambda ops, x: ops.dropout(x, 0.1, True),
    (CUDA,),
)
program("dropout on the CPU", "bernoulli_", unary(), lambda ops, x: ops.dropout(x, 0.1, True), (CPU,))
program("softmax", "_softmax _softmax_backward_data", unary(1), lambda ops, x: ops.softmax(x))
program(
    "softmax in fp32",
    "_softmax _to_copy",
    unary(1),
    lambda ops, x: ops.softmax(x, ops.dtype("float32")),
)
program("log_softmax", "_log_softmax _log_softmax_backward_data", unary(1), lambda ops, x: ops.log_softmax(x))
program("safe_softmax", "_safe_softmax", unary(1), lambda ops, x: ops.safe_softmax(x))


def _loss(draw: Draw) -> Drawn:
    rows, classes = draw(st.sampled_from((1, 2, 33))), draw(st.sampled_from((1, 5, 64)))
    return [draw_input(draw, (rows, classes), draw_float(draw), True, STRIDED), draw_indices(draw, (rows,))], {}


program("nll_loss", "nll_loss_forward nll_loss_backward", _loss, lambda ops, x, t: ops.nll_loss(x, t))
program("cross_entropy", "_log_softmax nll_loss_forward", _loss, lambda ops, x, t: ops.cross_entropy(x, t))
program(
    "cross_entropy in fp32",
    "_log_softmax _to_copy",
    _loss,
    lambda ops, x, t: ops.cross_entropy(ops.to(x, ops.dtype("float32")), t),
)

# -- products


def _product(batch: bool, bias: bool = False) -> Callable[[Draw], Drawn]:
    def draw_pair(draw: Draw) -> Drawn:
        n, k, m = (draw(st.sampled_from((1, 2, 5, 8, 16))) for _ in range(3))
        lead = (draw(st.sampled_from((1, 2, 3))),) if batch else ()
        dtype = draw_float(draw)
        pair = [draw_input(draw, (*lead, n, k), dtype), draw_input(draw, (*lead, k, m), dtype)]
        added = [draw_input(draw, draw(st.sampled_from(((m,), (n, m), (1, m)))), dtype)] if bias else []
        return [*added, *pair], {}

    return draw_pair


program("mm", "mm", _product(batch=False), lambda ops, a, b: ops.mm(a, b))
program("addmm", "addmm", _product(batch=False, bias=True), lambda ops, c, a, b: ops.addmm(c, a, b))
program("bmm", "bmm", _product(batch=True), lambda ops, a, b: ops.bmm(a, b))


def _matmul(draw: Draw) -> Drawn:
    n, k, m = (draw(st.sampled_from((1, 2, 5, 8))) for _ in range(3))
    batch = draw_shape(draw, 0, 2)
    dtype = draw_float(draw)
    right = batch if draw(st.booleans()) else draw_broadcastable(draw, batch)
    return [draw_input(draw, (*batch, n, k), dtype), draw_input(draw, (*right, k, m), dtype)], {}


program("matmul", "bmm mm _unsafe_view", _matmul, lambda ops, a, b: ops.matmul(a, b))


def _linear(draw: Draw) -> Drawn:
    k, m, dtype = draw(st.sampled_from((1, 4, 8))), draw(st.sampled_from((1, 3, 16))), draw_float(draw)
    x = draw_input(draw, (*draw_shape(draw, 1, 3), k), dtype)
    weight = draw_input(draw, (m, k), dtype, layout=PLAIN)
    return [x, weight, *([draw_input(draw, (m,), dtype, layout=PLAIN)] if draw(st.booleans()) else [])], {}


program("linear", "mm addmm", _linear, lambda ops, x, w, b=None: ops.linear(x, w, b))

# -- picking


def _where(draw: Draw) -> Drawn:
    shape = draw_shape(draw, 1)
    shapes = [shape, *(draw_broadcastable(draw, shape) for _ in range(2))]
    condition = draw_input(draw, shapes.pop(draw(st.integers(0, 2))), "bool", False)
    dtype = draw_float(draw)
    if draw(st.booleans()):
        return [condition, *(draw_input(draw, s, dtype) for s in shapes)], {}
    return [
        condition,
        *(draw_input(draw, s, draw_float(draw), layout=PLAIN) for s in shapes),
    ], {}  # one is cast, inside


program("where", "where", _where, lambda ops, c, a, b: ops.where(c, a, b))
program("argmax", "argmax", unary(1), lambda ops, x: ops.argmax(x))
program("topk", "topk scatter", unary(1), lambda ops, x: ops.topk(x, 1)[0])


def _rows(draw: Draw) -> Drawn:
    return [draw_input(draw, draw_shape(draw, 1, 3), draw_float(draw), False), draw_indices(draw, (4,))], {}


def _alike(draw: Draw) -> Drawn:
    shape, dtype = draw_shape(draw), draw_float(draw)
    return [draw_input(draw, shape, dtype, False) for _ in range(draw(st.integers(1, 3)))], {}


program("stack", "stack", _alike, lambda ops, *xs: ops.stack(list(xs)))
program(
    "cumsum",
    "cumsum",
    lambda draw: ([draw_indices(draw, draw_shape(draw))], {}),
    lambda ops, x: ops.cumsum(x),
)
program("index_select", "index_select", _rows, lambda ops, x, i: ops.index_select(x, i))


def _gather(draw: Draw) -> Drawn:
    rows, columns = draw(st.sampled_from((1, 3))), draw(st.sampled_from((1, 8)))
    x = draw_input(draw, (rows, columns), draw_float(draw))
    return [x, draw_indices(draw, (rows, 2))], {"shape": (rows, 2)}


program("gather", "gather scatter_add", _gather, lambda ops, x, i, shape: ops.gather(x, i, tuple(shape)))
program(
    "repeat_interleave",
    "repeat_interleave",
    unary(1, grad=False),
    lambda ops, x: ops.repeat_interleave(x, 3),
)

# -- views and copies


def _reshaped(draw: Draw, layout: int) -> Drawn:
    sizes = [draw(st.sampled_from((1, 2, 3, 4))) for _ in range(draw(st.integers(1, 4)))]
    cut = draw(st.integers(0, len(sizes)))
    merged = [*sizes[:cut], -1] if cut < len(sizes) else sizes
    source, target = (sizes, merged) if draw(st.booleans()) else (_whole(merged, sizes), sizes)
    return [draw_input(draw, source, draw_float(draw), layout=layout)], {"shape": target}


def _whole(merged: list[int], sizes: list[int]) -> list[int]:
    """The -1 filled in."""
    total = known = 1
    for size in sizes:
        total *= size
    for size in merged:
        known *= 1 if size == -1 else size
    return [total // known if size == -1 else size for size in merged]


program("view", "view", lambda draw: _reshaped(draw, PLAIN), lambda ops, x, shape: ops.view(x, tuple(shape)))
program("reshape", "clone", lambda draw: _reshaped(draw, ANY), lambda ops, x, shape: ops.reshape(x, tuple(shape)))


def _two_dims(draw: Draw) -> Drawn:
    (x,), attributes = with_dim()(draw)
    return [x], {"dim0": attributes["dim"], "dim1": draw(st.integers(0, len(x["shape"]) - 1))}


program("transpose", "transpose", _two_dims, lambda ops, x, dim0, dim1: ops.transpose(x, dim0, dim1))


def _permute(draw: Draw) -> Drawn:
    shape = draw_shape(draw)
    return [draw_input(draw, shape, draw_float(draw))], {"dims": draw(st.permutations(range(len(shape))))}


program("permute", "permute", _permute, lambda ops, x, dims: ops.permute(x, tuple(dims)))


def _expand(draw: Draw) -> Drawn:
    shape = draw_shape(draw)
    return [draw_input(draw, draw_broadcastable(draw, shape), draw_float(draw))], {"shape": shape}


program("expand", "expand sum", _expand, lambda ops, x, shape: ops.expand(x, tuple(shape)))


def _shrink(draw: Draw) -> Drawn:
    shape = draw_shape(draw)
    return [draw_input(draw, shape, draw_float(draw))], {"shape": draw_broadcastable(draw, shape) or (1,)}


program("sum_to_size", "sum", _shrink, lambda ops, x, shape: ops.sum_to_size(x, tuple(shape)))
program("unsqueeze", "unsqueeze", with_dim(0, 1), lambda ops, x, dim: ops.unsqueeze(x, dim))


def _squeeze(draw: Draw) -> Drawn:
    shape = list(draw_shape(draw))
    dim = draw(st.integers(0, len(shape) - 1))
    shape[dim] = 1
    return [draw_input(draw, shape, draw_float(draw))], {"dim": dim}


program("squeeze", "squeeze", _squeeze, lambda ops, x, dim: ops.squeeze(x, dim))


def _narrow(draw: Draw) -> Drawn:
    (x,), attributes = with_dim()(draw)
    return [x], {**attributes, "length": draw(st.integers(1, x["shape"][attributes["dim"]]))}


program("narrow", "slice slice_backward", _narrow, lambda ops, x, dim, length: ops.narrow(x, dim, length))
program("select", "select select_backward", with_dim(), lambda ops, x, dim: ops.select(x, dim))


def _split(draw: Draw) -> Drawn:
    shape, sizes = list(draw_shape(draw)), [draw(st.sampled_from((1, 2, 4))) for _ in range(draw(st.integers(1, 3)))]
    dim = draw(st.integers(0, len(shape) - 1))
    shape[dim] = sum(sizes)
    used = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)).filter(any))
    return [draw_input(draw, shape, draw_float(draw))], {"sizes": sizes, "dim": dim, "used": used}


def _run_split(ops: Any, x: Any, sizes: list[int], dim: int, used: list[bool]) -> Any:
    return [part for part, wanted in zip(ops.split(x, list(sizes), dim), used, strict=True) if wanted]


program("split", "split", _split, _run_split)


def _cat(draw: Draw) -> Drawn:
    shape, dtype = list(draw_shape(draw)), draw_float(draw)
    dim = draw(st.integers(0, len(shape) - 1))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        shape[dim] = draw(st.sampled_from((2, 3, 5)))  # not one, as for `pad`
        parts.append(draw_input(draw, shape, dtype))
    return parts, {"dim": dim}


program("cat", "cat", _cat, lambda ops, *parts, dim: ops.cat(list(parts), dim))
program("clone", "clone", unary(), lambda ops, x: ops.clone(x))
program("contiguous", "clone", unary(), lambda ops, x: ops.contiguous(x))
program("clone_contiguous", "clone", unary(), lambda ops, x: ops.clone_contiguous(x))


def _wide(draw: Draw) -> Drawn:
    """The last dimension is not one, for a slice of an expanded gradient would keep a stride of zero.

    Nor are there four, for PyTorch would take some layouts for images with their channels last, and keep them.
    """
    shape = (*draw_shape(draw, 0, 2), draw(st.sampled_from((2, 5, 8))))
    return [draw_input(draw, shape, draw_float(draw))], {}


program("pad", "constant_pad_nd", _wide, lambda ops, x: ops.pad(x, 3))

# -- reductions


def _reduce(draw: Draw) -> Drawn:
    (x,), _ = unary(1)(draw)
    dims = draw(st.lists(st.integers(0, len(x["shape"]) - 1), min_size=1, unique=True))
    return [x], {"dims": sorted(dims), "keepdim": draw(st.booleans())}


program("sum", "sum expand", _reduce, lambda ops, x, dims, keepdim: ops.sum(x, tuple(dims), keepdim))
program(
    "mean",
    "mean",
    lambda draw: (lambda xs, a: (xs, {**a, "keepdim": draw(st.booleans())}))(*with_dim()(draw)),
    lambda ops, x, dim, keepdim: ops.mean(x, dim, keepdim),
)
program("vector_norm", "linalg_vector_norm", unary(1, grad=False), lambda ops, x: ops.vector_norm(x))
program(
    "vector_norm of rows",
    "linalg_vector_norm",
    unary(1, grad=False),
    lambda ops, x: ops.vector_norm(x, len(x.shape) - 1),
)

# -- lists


def _list(draw: Draw) -> Drawn:
    count = draw(st.integers(1, 3))
    return [draw_input(draw, draw_shape(draw), draw_float(draw), False, DENSE) for _ in range(count)], {}


program("foreach", "_foreach", _list, lambda ops, *xs: ops.foreach("aten::_foreach_sqrt", list(xs)))
program("foreach in place", "", _list, lambda ops, *xs: ops.in_place("aten::_foreach_mul_", list(xs)))


def _norms(ops: Any, *tensors: Any) -> Any:
    norms = ops.foreach_norm(list(tensors))
    return [*norms, ops.stack_scalars(norms, len(norms))]


program(
    "foreach_norm",
    "",
    lambda draw: ([draw_input(draw, (3, 5), draw_float(draw), False) for _ in range(draw(st.integers(1, 3)))], {}),
    _norms,
)
program("zeros_like", "", unary(), lambda ops, x: ops.zeros_like(x, "temporary", ops.dtype("float32")))

__all__ = ["BOTH", "CPU", "CUDA", "DENSE", "FLOATS", "PROGRAMS", "STRIDED", "Program"]
