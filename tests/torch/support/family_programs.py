"""Programs of the ops that single families need: heads picked by a list, position buckets, windows, clamps."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from support.inputs import PLAIN, Draw, draw_float, draw_indices, draw_input, draw_shape
from support.programs import CPU, Drawn, binary, program, unary

# -- heads


def _list_of_heads(draw: Draw) -> Drawn:
    shape = (*draw_shape(draw, 1, 2), draw(st.sampled_from((3, 5))), draw(st.sampled_from((1, 4))))
    return [draw_input(draw, shape, draw_float(draw), layout=PLAIN)], {"dim": len(shape) - 2}


def _pairs(draw: Draw) -> Drawn:
    shape = (*draw_shape(draw, 0, 2), draw(st.sampled_from((2, 4, 8))))
    return [draw_input(draw, shape, draw_float(draw))], {}


def _alike(draw: Draw) -> Drawn:
    shape, dtype = draw_shape(draw), draw_float(draw)
    return [draw_input(draw, shape, dtype) for _ in range(2)], {}


def _scaled(draw: Draw) -> Drawn:
    shape, dtype = draw_shape(draw), draw_float(draw)
    return [draw_input(draw, shape, dtype), draw_input(draw, (1,), dtype, False)], {}


def _scores(draw: Draw) -> Drawn:
    b, n, k, m = (draw(st.sampled_from((1, 2, 5))) for _ in range(4))
    dtype = draw_float(draw)
    bias = (b, n, m) if draw(st.booleans()) else (b, 1, m)
    return [draw_input(draw, s, dtype) for s in (bias, (b, n, k), (b, k, m))], {}


def _rows(draw: Draw) -> Drawn:
    x = draw_input(draw, draw_shape(draw, 1, 3), draw_float(draw), layout=PLAIN)
    return [x, draw_indices(draw, draw_shape(draw, 1, 2))], {}


program("index by a list", "index index_put", _list_of_heads, lambda ops, x, dim: ops.index_list(x, dim))
program("index rows", "index.rows", _rows, lambda ops, x, rows: ops.index_rows(x, rows))
program("every other", "slice.step", _pairs, lambda ops, x: ops.every_other(x))
program("stack last", "stack.last", _alike, lambda ops, a, b: ops.stack_last([a, b]))
program("baddbmm", "baddbmm", _scores, lambda ops, c, a, b: ops.baddbmm(c, a, b))
program("mul_", "mul_.Scalar", unary(), lambda ops, x: ops.mul_(ops.neg(x)))
program("scale_", "mul_.Tensor", _scaled, lambda ops, x, factor: ops.scale_(ops.neg(x), factor))
program("div_", "div_.Scalar", unary(), lambda ops, x: ops.div_(ops.neg(x)))
program("one minus", "rsub.Scalar", unary(), lambda ops, x: ops.one_minus(x))

# -- positions


def _masked(draw: Draw) -> Drawn:
    shape = draw_shape(draw)
    mask = draw_input(draw, shape, "bool", False, PLAIN)
    return [draw_input(draw, shape, draw_float(draw), layout=PLAIN), mask], {}


def _exponents(draw: Draw) -> Drawn:
    return [draw_input(draw, (), "float32", False), draw_input(draw, draw_shape(draw), "int32", False, PLAIN)], {}


def _without_gradient(draw: Draw) -> Drawn:
    pair, attributes = binary(draw)
    return [{**i, "grad": False} for i in pair], attributes


for _name, _row in {
    "less_than": "lt.Scalar",
    "greater_than": "gt.Scalar",
    "equal_to": "eq.Scalar",
    "absolute": "abs",
    "log": "log",
    "floor": "floor",
    "full_like": "full_like",
    "zeros_as": "zeros_like",
    "new_zeros": "new_zeros",
    "isinf": "isinf",
    "any_": "any",
    "roll": "roll",
}.items():
    program(_name, _row, unary(1, grad=False), lambda ops, x, name=_name: getattr(ops, name)(x))
for _name, _row in {"greater_equal": "ge", "greater": "gt"}.items():
    program(_name, _row, _without_gradient, lambda ops, a, b, name=_name: getattr(ops, name)(a, b))
program("minimum", "minimum eq", binary, lambda ops, a, b: ops.minimum(a, b))
program("expm1", "expm1", unary(), lambda ops, x: ops.expm1(x))
program("power", "pow.Tensor", _exponents, lambda ops, a, b: ops.power(a, b))
program("masked_fill", "masked_fill", _masked, lambda ops, x, mask: ops.masked_fill(x, mask))

program("masked_fill_", "masked_fill_", _masked, lambda ops, x, mask: ops.masked_fill_(ops.neg(x), mask))
program("var", "var mean", unary(1), lambda ops, x: ops.var(x, -1))
program("unbind", "unbind", unary(1), lambda ops, x: ops.unbind(x)[0])
program("unbind all", "unbind stack.dim", unary(1), lambda ops, x: sum(part * 2.0 for part in ops.unbind(x)))
program("unbind rows", "unbind", unary(2), lambda ops, x: sum(part * 2.0 for part in ops.unbind(x, -2)))


def _zeros_and_columns(draw: Draw) -> Drawn:
    shape, dtype = (*draw_shape(draw, 1, 2), 3), draw_float(draw)
    return [
        draw_input(draw, (*shape[:-1], 5), dtype, False, PLAIN),
        {**draw_input(draw, (3,), "int64", False, PLAIN)},
        draw_input(draw, shape, dtype, True, PLAIN),
    ], {}


program("index_copy", "index_copy", _zeros_and_columns, lambda ops, *t: ops.index_copy(*t))
program("index_copy_", "index_copy_", _zeros_and_columns, lambda ops, x, *t: ops.index_copy_last_(x * 1.0, *t))


def _rows_to_add(draw: Draw) -> Drawn:
    width, dtype = draw(st.sampled_from((1, 3, 8))), draw_float(draw)
    index = draw_input(draw, (3,), "int64", False, PLAIN)
    return [draw_input(draw, (5, width), dtype, None, PLAIN), index, draw_input(draw, (3, width), dtype)], {}


def _numbers(draw: Draw) -> Drawn:
    return [draw_input(draw, (3, draw(st.integers(1, 9))), "int64", False, PLAIN)], {}


def _run_nonzero(ops: Any, x: Any) -> Any:
    return ops.nonzero(ops.equal(x, x), x.shape[0] * x.shape[1])


program("index_add_", "index_add_", _rows_to_add, lambda ops, x, *t: ops.index_add_(x * 1.0, *t))
program(
    "nonzero", "nonzero", lambda draw: ([draw_input(draw, (3, 4), "int64", False, PLAIN)], {}), _run_nonzero, (CPU,)
)

# -- clamps


def _between(draw: Draw) -> Drawn:
    (x,), _ = unary()(draw)
    return [x, *(draw_input(draw, (), x["dtype"], False) for _ in range(2))], {}


program("Bloom's GELU", "GeLUFunction", unary(), lambda ops, x: ops.bloom_gelu(x))
program("clamp_", "clamp_", unary(), lambda ops, x: ops.clamp_(ops.neg(x)))
program("clamp between", "clamp.Tensor ge.Tensor", _between, lambda ops, *t: ops.clamp_between(*t))


class TorchFamilyOps:
    """The same in real PyTorch."""

    index_list = staticmethod(lambda x, dim: x[(*[slice(None)] * dim, [1])])
    index_rows = staticmethod(lambda x, rows: x[rows])

    @staticmethod
    def bloom_gelu(x: Any) -> Any:
        from transformers.models.bloom.modeling_bloom import GeLUFunction

        return GeLUFunction.apply(x)

    every_other = staticmethod(lambda x: x[..., ::2])
    one_minus = staticmethod(lambda x: 1 - x)
    less_than = staticmethod(lambda x: x < 1)
    greater_than = staticmethod(lambda x: x > 1)
    equal_to = staticmethod(lambda x: x == 1)
    new_zeros = staticmethod(lambda x: x.new_zeros(x.shape))
    any_ = staticmethod(lambda x: x.any())
    roll = staticmethod(lambda x: x.roll(1, -1))
    masked_fill = staticmethod(lambda x, mask: x.masked_fill(mask, 0.0))
    masked_fill_ = staticmethod(lambda x, mask: x.masked_fill_(mask, 0.0))
    var = staticmethod(lambda x, dim: x.var(dim, unbiased=False, keepdim=True))
    unbind = staticmethod(lambda x, dim=0: x.unbind(dim))
    index_copy = staticmethod(lambda x, index, source: x.index_copy(-1, index, source))
    index_copy_last_ = staticmethod(lambda x, index, source: x.index_copy_(-1, index, source))
    index_add_ = staticmethod(lambda x, index, source: x.index_add_(0, index, source))
    nonzero = staticmethod(lambda condition, _: condition.nonzero().t())
    repeat = staticmethod(lambda x, *sizes: x.repeat(*sizes))
    clamp_ = staticmethod(lambda x: x.clamp_(-1.0, 1.0))

    @staticmethod
    def baddbmm(bias: Any, a: Any, b: Any) -> Any:
        return bias.baddbmm(a, b, beta=1, alpha=0.125)

    @staticmethod
    def mul_(x: Any) -> Any:
        x *= 2.0
        return x

    @staticmethod
    def scale_(x: Any, factor: Any) -> Any:
        x *= factor
        return x

    @staticmethod
    def div_(x: Any) -> Any:
        x /= 2.0
        return x
