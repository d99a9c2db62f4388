"""What becomes of aten's operations before AOTAutograd divides the graph: TorchInductor's decompositions.

Read: torch/_inductor/decomposition.py, torch/_decomp/decompositions.py and torch/_refs/nn/functional (2.13); the joint
graphs of real models have the same nodes in the same order (tests/torch/test_compiling.py). Left out, and refused by
name: what is not in `DECOMPOSITIONS`, convolutions, sorting and recurrences among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weigh.dtypes import BOOL, FLOAT32, INT64, DType
from weigh.errors import NotModelledError
from weigh.techniques.compiling.graph import DISTINCT, Graph, Node

Decomposition = Callable[[Graph, Sequence[Any], dict[str, Any], list[Any]], list[Any]]
"""Of the nodes of an operation's inputs, its attributes and its results (None for one that is not wanted): nodes."""


def decompose(
    graph: Graph, name: str, inputs: Sequence[Any], attributes: dict[str, Any], results: list[Any]
) -> list[Any]:
    """The nodes of an operation's results; those that it is made of are added to the graph.

    Raises:
        NotModelledError: compiled code of this operation is not described.
    """
    found = DECOMPOSITIONS.get(name)
    if found is None:
        hint = "Leave compile out, or compile another model."
        raise NotModelledError(f"{name.removeprefix('aten::')} in compiled code", where="compile", hint=hint)
    graph.begin(name)
    return found(graph, inputs, attributes, results)


def _same(op: str, key: object = DISTINCT) -> Decomposition:
    """One node of all inputs. Equal ones are one where `key` is given."""

    def made(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
        return [graph.add(op, [i for i in inputs if i is not None], results[0][0], results[0][1], key)]

    return made


def _convert(graph: Graph, node: Node, dtype: DType) -> Node:
    if node.dtype is dtype:
        return node
    return graph.add("convert", [node], node.shape, dtype, "")


def _pointwise(graph: Graph, op: str, *inputs: Node, dtype: DType | None = None) -> Node:
    """An operation on tensors of the same shape, or of shapes that broadcast to the largest."""
    largest = max(inputs, key=lambda n: (len(n.shape), n.num_bytes // (n.dtype.itemsize if n.dtype else 1)))
    return graph.add(op, inputs, largest.shape, dtype or largest.dtype)


def _reduced(graph: Graph, op: str, node: Node, dims: tuple[int, ...], keepdim: bool = True) -> Node:
    shape = [1 if d in dims else s for d, s in enumerate(node.shape) if keepdim or d not in dims]
    return graph.add(op, [node], shape, node.dtype, reduced=dims)


def _cat(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    """One tensor several times is a copy of an expanded view (_inductor/decomposition.py, `cat`)."""
    shape, dtype = results[0]
    if len(set(inputs)) > 1:
        return [graph.add("cat", inputs, shape, dtype)]
    one, times = inputs[0], len(inputs)
    dim = next((d for d, (a, b) in enumerate(zip(one.shape, shape, strict=True)) if a != b), 0)
    lifted = graph.add("unsqueeze", [one], (*one.shape[:dim], 1, *one.shape[dim:]), dtype)
    wide = graph.add("expand", [lifted], (*one.shape[:dim], times, *one.shape[dim:]), dtype)
    return [graph.add("view", [graph.add("clone", [wide], wide.shape, dtype)], shape, dtype)]


def _view(op: str) -> Decomposition:
    def made(graph: Graph, inputs: Sequence[Any], attributes: dict[str, Any], results: list[Any]) -> list[Any]:
        (source,) = inputs
        shape, dtype = results[0]
        if op in ("view", "expand") and source.shape == shape:
            return [source]
        dims = tuple(attributes.get(k) for k in ("dim", "dim0", "dim1", "dims"))
        known = op not in ("slice", "select")  # of which only the sizes are known
        return [graph.add(op, [source], shape, dtype, dims if known else DISTINCT)]

    return made


def _views(op: str) -> Decomposition:
    """A view of several parts: not among the views that the partitioner knows, where it is `unbind`."""

    def made(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
        whole = graph.add(op, inputs, (), None, DISTINCT)
        return [graph.add("part", [whole], r[0], r[1], DISTINCT) for r in results]

    return made


def _to_copy(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    if inputs[0].dtype is results[0][1]:
        return [graph.add("clone", inputs, results[0][0], results[0][1], DISTINCT)]
    return [_convert(graph, inputs[0], results[0][1])]


def _clone(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    return [graph.add("clone", inputs, results[0][0], results[0][1], DISTINCT)]


def _sum(op: str) -> Decomposition:
    def made(graph: Graph, inputs: Sequence[Any], attributes: dict[str, Any], results: list[Any]) -> list[Any]:
        dims = tuple(attributes.get("dims") or (attributes["dim"],))
        return [graph.add(op, inputs, results[0][0], results[0][1], DISTINCT, dims)]

    return made


def _silu(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    x = _convert(graph, inputs[0], FLOAT32)
    below = _pointwise(graph, "add", _pointwise(graph, "exp", _pointwise(graph, "neg", x)))
    return [_convert(graph, _pointwise(graph, "div", x, below), results[0][1])]


def _silu_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, x = (_convert(graph, i, FLOAT32) for i in inputs)
    sigmoid = _pointwise(graph, "sigmoid", x)
    first = _pointwise(graph, "mul", grad, sigmoid)
    rest = _pointwise(graph, "add", _pointwise(graph, "mul", x, _pointwise(graph, "sub", sigmoid)))
    return [_convert(graph, _pointwise(graph, "mul", first, rest), results[0][1])]


def _gelu(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    """The exact form; the tanh form has the same reads and more arithmetic."""
    x = _convert(graph, inputs[0], FLOAT32)
    half = _pointwise(graph, "mul", x)
    grown = _pointwise(graph, "add", _pointwise(graph, "erf", _pointwise(graph, "mul", x)))
    return [_convert(graph, _pointwise(graph, "mul", half, grown), results[0][1])]


def _gelu_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, x = (_convert(graph, i, FLOAT32) for i in inputs)
    cdf = _pointwise(graph, "mul", _pointwise(graph, "add", _pointwise(graph, "erf", _pointwise(graph, "mul", x))))
    square = _pointwise(graph, "mul", x, x)
    pdf = _pointwise(graph, "mul", _pointwise(graph, "exp", _pointwise(graph, "mul", square)))
    slope = _pointwise(graph, "add", cdf, _pointwise(graph, "mul", x, pdf))
    return [_convert(graph, _pointwise(graph, "mul", grad, slope), results[0][1])]


def _tanh_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, out = (_convert(graph, i, FLOAT32) for i in inputs)
    slope = _pointwise(graph, "sub", _pointwise(graph, "mul", out, out))
    return [_convert(graph, _pointwise(graph, "mul", grad, slope), results[0][1])]


def _sigmoid_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, out = (_convert(graph, i, FLOAT32) for i in inputs)
    slope = _pointwise(graph, "mul", _pointwise(graph, "sub", out), out)
    return [_convert(graph, _pointwise(graph, "mul", grad, slope), results[0][1])]


def _threshold_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], __: list[Any]) -> list[Any]:
    grad, out = inputs
    return [_pointwise(graph, "where", _pointwise(graph, "le", out, dtype=BOOL), grad)]


def _layer_norm(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    x, weight, bias = inputs
    dtype = results[0][1]
    x = _convert(graph, x, FLOAT32)
    last = (len(x.shape) - 1,)
    whole = graph.add("var_mean", [x], (), None, reduced=last)
    variance, mean = (graph.add("part", [whole], *results[1]) for _ in range(2))
    rstd = _pointwise(graph, "rsqrt", _pointwise(graph, "add", variance))
    out = _pointwise(graph, "mul", _pointwise(graph, "sub", x, mean), rstd)
    if weight is not None:
        out = _pointwise(graph, "mul", out, weight)
    if bias is not None:
        out = _pointwise(graph, "add", out, bias)
    return [_convert(graph, out, dtype), mean, rstd]


def _layer_norm_backward(graph: Graph, inputs: Sequence[Any], attributes: dict[str, Any], __: Any) -> list[Any]:
    grad, x, weight, _bias, mean, rstd = inputs
    dtype = x.dtype
    grad, x = _convert(graph, grad, FLOAT32), _convert(graph, x, FLOAT32)
    last, before = (len(x.shape) - 1,), tuple(range(len(x.shape) - 1))
    normal = _pointwise(graph, "mul", _pointwise(graph, "sub", x, mean), rstd)
    inner = grad
    if weight is not None:
        inner = _pointwise(graph, "mul", grad, _convert(graph, weight, FLOAT32))
    scaled = _pointwise(graph, "mul", inner)
    total = _reduced(graph, "sum", inner, last)
    projected = _reduced(graph, "sum", _pointwise(graph, "mul", inner, normal), last)
    turned = _pointwise(graph, "mul", normal, projected)
    slope = _pointwise(graph, "sub", _pointwise(graph, "sub", scaled, total), turned)
    to_x = _pointwise(graph, "mul", slope, _pointwise(graph, "div", rstd))
    gradients: list[Node | None] = [_convert(graph, to_x, dtype), None, None]
    if weight is not None and attributes["needs"][1]:
        reduced = _reduced(graph, "sum", _pointwise(graph, "mul", grad, normal), before, keepdim=False)
        gradients[1] = _convert(graph, reduced, weight.dtype)
    if _bias is not None and attributes["needs"][2]:
        gradients[2] = _convert(graph, _reduced(graph, "sum", grad, before, keepdim=False), _bias.dtype)
    return gradients


def _dropout(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], __: list[Any]) -> list[Any]:
    (x,) = inputs
    seeds = graph.add("seed", [], (), INT64, "all")
    seed = graph.add("seed", [seeds], (), INT64, DISTINCT)
    noise = _convert(graph, graph.add("random", [seed], x.shape, FLOAT32), x.dtype)
    mask = _pointwise(graph, "gt", noise, dtype=BOOL)
    masked = graph.add("mul", [mask, x], x.shape, x.dtype)
    return [_pointwise(graph, "mul", masked), mask]


def _dropout_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], __: list[Any]) -> list[Any]:
    grad, mask = inputs
    return [_pointwise(graph, "mul", grad, _pointwise(graph, "mul", _convert(graph, mask, grad.dtype)))]


def _softmax(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    x = _convert(graph, inputs[0], FLOAT32)
    last = (len(x.shape) - 1,)
    raised = _pointwise(graph, "exp", _pointwise(graph, "sub", x, _reduced(graph, "amax", x, last)))
    out = _pointwise(graph, "div", raised, _reduced(graph, "sum", raised, last))
    return [_convert(graph, out, results[0][1])]


def _softmax_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, out = (_convert(graph, i, FLOAT32) for i in inputs)
    last = (len(out.shape) - 1,)
    product = _pointwise(graph, "mul", grad, out)
    total = _reduced(graph, "sum", product, last)
    slope = graph.add("fma", [_pointwise(graph, "neg", out), total, product], out.shape, FLOAT32)
    return [_convert(graph, slope, results[0][1])]


def _log_softmax(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    x = _convert(graph, inputs[0], FLOAT32)
    last = (len(x.shape) - 1,)
    shifted = _pointwise(graph, "sub", x, _reduced(graph, "amax", x, last))
    total = _reduced(graph, "sum", _pointwise(graph, "exp", shifted), last)
    out = _pointwise(graph, "sub", shifted, _pointwise(graph, "log", total))
    return [_convert(graph, out, results[0][1])]


def _log_softmax_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, out = (_convert(graph, i, FLOAT32) for i in inputs)
    raised = _pointwise(graph, "exp", out)
    total = _reduced(graph, "sum", grad, (len(out.shape) - 1,))
    slope = _pointwise(graph, "sub", grad, _pointwise(graph, "mul", raised, total))
    return [_convert(graph, slope, results[0][1])]


def _counted(graph: Graph, target: Node) -> Node:
    """Which targets count."""
    return graph.add("ne", [target], target.shape, BOOL, "ignored")


def _nll_loss(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], __: list[Any]) -> list[Any]:
    x, target = inputs
    counted = _counted(graph, target)
    zero = graph.add("full", [], (), INT64)
    safe = _pointwise(graph, "where", counted, target, zero, dtype=INT64)
    column = graph.add("unsqueeze", [safe], (*safe.shape, 1), INT64)
    found = graph.add("gather", [x, column], column.shape, x.dtype)
    losses = _pointwise(graph, "neg", graph.add("squeeze", [found], safe.shape, x.dtype))
    losses = _pointwise(graph, "where", counted, losses, graph.add("full", [], (), x.dtype), dtype=x.dtype)
    count = _convert(graph, graph.add("sum", [counted], (), INT64, reduced=(0,)), x.dtype)
    total = graph.add("sum", [losses], (), x.dtype, reduced=(0,))
    return [_pointwise(graph, "div", total, count), count]


def _nll_loss_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], __: list[Any]) -> list[Any]:
    grad, x, target, count = inputs
    share = _pointwise(graph, "div", grad, count)
    column = graph.add("unsqueeze", [target], (*target.shape, 1), INT64)
    counted = _counted(graph, column)
    safe = _pointwise(graph, "where", counted, column, graph.add("full", [], (), INT64), dtype=INT64)
    classes = graph.add("view", [graph.add("iota", [], x.shape[-1:], INT64)], (1, x.shape[-1]), INT64)
    wide = graph.add("expand", [safe], x.shape, INT64)
    chosen = graph.add("eq", [wide, classes], x.shape, BOOL)
    one = graph.add("where", [chosen, graph.add("full", [], (), x.dtype)], x.shape, x.dtype)
    scale = graph.add("where", [counted, share, graph.add("full", [], (), x.dtype)], column.shape, x.dtype)
    return [graph.add("mul", [one, scale], x.shape, x.dtype)]


def _embedding_backward(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
    grad, indices = inputs
    shape, dtype = results[0]
    grad = _convert(graph, grad, FLOAT32)
    inside = [graph.add(op, [indices], indices.shape, BOOL) for op in ("ge", "lt")]
    both = _pointwise(graph, "bitwise_and", *inside)
    both = _pointwise(graph, "bitwise_and", both, graph.add("ne", [indices], indices.shape, BOOL))
    column = graph.add("unsqueeze", [both], (*both.shape, 1), BOOL)
    zeros = graph.add("full", [], shape, FLOAT32)
    summed = graph.add("index_put", [zeros, column, indices, grad], shape, FLOAT32)
    return [_convert(graph, summed, dtype)]


def _scattered(op: str) -> Decomposition:
    def made(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
        shape, dtype = results[0]
        zeros = graph.add("full", [], shape, dtype)
        return [graph.add(op, [zeros, inputs[0]], shape, dtype)]

    return made


def _library(op: str) -> Decomposition:
    """What a library computes: one tensor, or several, and what it takes for itself while it does."""

    def made(graph: Graph, inputs: Sequence[Any], _: dict[str, Any], results: list[Any]) -> list[Any]:
        inputs = [i for i in inputs if i is not None]
        if len(results) == 1:
            return [graph.add(op, inputs, results[0][0], results[0][1], DISTINCT)]
        whole = graph.add(op, inputs, (), None, DISTINCT)
        return [r and graph.add("part", [whole], r[0], r[1], DISTINCT) for r in results]

    return made


_ALIKE = {
    **{f"aten::{op}": op for op in ("add", "sub", "mul", "div", "pow", "neg", "rsqrt", "sqrt", "reciprocal", "exp")},
    **{f"aten::{op}": op for op in ("log", "log1p", "cos", "sin", "tanh", "sigmoid", "relu", "where", "abs", "clamp")},
    **{f"aten::{op}": op for op in ("floor", "expm1", "minimum", "bitwise_and", "bitwise_not", "logical_or", "tril")},
    **{f"aten::{op}.Scalar": op for op in ("add", "mul", "div", "clamp", "eq", "ge", "gt", "lt")},
    **{f"aten::{op}.Tensor": op for op in ("ge", "pow", "clamp")},
    **{f"aten::{op}": op for op in ("eq", "gt", "le", "ge", "gather", "index", "embedding")},
    "aten::rsub.Scalar": "sub",
    "aten::masked_fill": "where",
    "aten::masked_fill.Scalar": "where",
    "aten::masked_fill_": "where",
    "aten::mul_.Scalar": "mul",
    "aten::div_.Scalar": "div",
    "aten::add_": "add",
    "aten::triu": "tril",
    "aten::stack": "cat",
    "aten::stack.last": "cat",
    "aten::stack.dim": "cat",
    "aten::repeat": "clone",
}
_MADE = {"arange": "iota", **dict.fromkeys(("zeros", "ones", "full", "scalar_tensor", "eye", "new_zeros"), "full")}
_ATTENTION = tuple(
    f"aten::_scaled_dot_product_{kernel}_attention{direction}"
    for kernel in ("flash", "efficient", "cudnn")
    for direction in ("", "_backward")
) + tuple(f"aten::_scaled_dot_product_flash_attention_for_cpu{direction}" for direction in ("", "_backward"))
_NOT_KEYED = frozenset(("pow", "clamp", "embedding", "index", "clone"))

DECOMPOSITIONS: dict[str, Decomposition] = {
    **{name: _same(op, "" if name.endswith(op) and op not in _NOT_KEYED else DISTINCT) for name, op in _ALIKE.items()},
    "aten::constant_pad_nd": _same("constant_pad", ""),
    **{f"aten::{name}": _same(op, DISTINCT if name == "full" else name) for name, op in _MADE.items()},
    "aten::full_like": lambda graph, _i, _a, results: [graph.add("full", [], *results[0])],
    "aten::zeros_like": lambda graph, _i, _a, results: [graph.add("full", [], *results[0])],
    "aten::ones_like": lambda graph, _i, _a, results: [graph.add("full", [], *results[0])],
    "aten::view": _view("view"),
    "aten::_unsafe_view": _view("view"),
    "aten::transpose": _view("permute"),
    "aten::permute": _view("permute"),
    "aten::expand": _view("expand"),
    "aten::unsqueeze": _view("unsqueeze"),
    "aten::squeeze": _view("squeeze"),
    "aten::slice": _view("slice"),
    "aten::slice.step": _view("slice"),
    "aten::select": _view("select"),
    "aten::split": _views("split"),
    "aten::unbind": _views("unbind"),
    "aten::cat": _cat,
    "aten::clone": _clone,
    "aten::_to_copy": _to_copy,
    "aten::sum": _sum("sum"),
    "aten::mean": _sum("mean"),
    "aten::var": _sum("var"),
    "aten::silu": _silu,
    "aten::silu_backward": _silu_backward,
    "aten::gelu": _gelu,
    "aten::gelu_backward": _gelu_backward,
    "aten::tanh_backward": _tanh_backward,
    "aten::sigmoid_backward": _sigmoid_backward,
    "aten::threshold_backward": _threshold_backward,
    "aten::native_layer_norm": _layer_norm,
    "aten::native_layer_norm_backward": _layer_norm_backward,
    "aten::native_dropout": _dropout,
    "aten::native_dropout_backward": _dropout_backward,
    "aten::_softmax": _softmax,
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::_log_softmax": _log_softmax,
    "aten::_log_softmax_backward_data": _log_softmax_backward,
    "aten::nll_loss_forward": _nll_loss,
    "aten::nll_loss_backward": _nll_loss_backward,
    "aten::embedding_dense_backward": _embedding_backward,
    "aten::slice_backward": _scattered("slice_scatter"),
    "aten::select_backward": _scattered("select_scatter"),
    "aten::mul.complex": _library("mul_complex"),
    "aten::resolve_conj": _library("resolve_conj"),
    **{
        f"aten::{op}": _library(op)
        for op in ("view_as_complex", "view_as_real", "mm", "addmm", "bmm", "baddbmm", "cumsum")
    },
    **{name: _library(name.removeprefix("aten::")) for name in _ATTENTION},
}
