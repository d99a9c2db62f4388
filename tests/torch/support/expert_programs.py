"""Programs over the ops of mixtures of experts, as in `programs.py`, and what these ops are in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from support.inputs import DENSE, PLAIN, Draw, draw_broadcastable, draw_float, draw_indices, draw_input, draw_shape
from support.programs import CUDA, Drawn, program, unary


class TorchExpertOps:
    """The same in real PyTorch."""

    sort = staticmethod(lambda x: tuple(torch.sort(x)))
    floor_divide = staticmethod(lambda x: x // 2)
    empty_like = staticmethod(torch.empty_like)
    bitwise_not = staticmethod(torch.bitwise_not)
    histc = staticmethod(lambda x, bins: torch.histc(x, bins=bins, min=0, max=bins - 1))
    grouped_mm = staticmethod(lambda a, b, offsets: torch.nn.functional.grouped_mm(a, b, offs=offsets))
    max_last = staticmethod(lambda x: tuple(x.max(dim=-1, keepdim=True)))
    divide_ = staticmethod(lambda a, b: a.div_(b))
    clamp_numbers = staticmethod(lambda x, both: x.clamp(min=-1.0 if both else None, max=1.0))
    new_empty = staticmethod(lambda x, shape: x.new_empty(shape))
    index_put_ = staticmethod(lambda x, index, source: x.index_put_((index,), source))

    equal, logical_or, log1p = map(staticmethod, (torch.eq, torch.logical_or, torch.log1p))
    rand_like = staticmethod(torch.rand_like)
    clamp_min = staticmethod(lambda x, low: x.clamp(min=low))
    scatter_source_ = staticmethod(lambda x, index, source: x.scatter_(1, index, source))
    scatter_value = staticmethod(lambda x, index: torch.scatter(x, -1, index, float("-inf")))
    polar, view_as_real = map(staticmethod, (torch.polar, torch.view_as_real))
    view_as_complex = staticmethod(torch.view_as_complex)
    mul_complex = staticmethod(torch.mul)

    @staticmethod
    def sampled_multiplier(*args: Any) -> Any:
        from transformers.models.phimoe.modeling_phimoe import PhimoeMultiplier

        return PhimoeMultiplier.apply(*args)

    @staticmethod
    def copy_slice(base: Any, source: Any, dim: int) -> Any:
        base.narrow(dim, 0, source.shape[dim]).copy_(source)
        return base


def _whole_numbers(draw: Draw) -> Drawn:
    return [draw_indices(draw, draw_shape(draw, 1, 1))], {}


def _quotient(draw: Draw) -> Drawn:
    shape, dtype = draw_shape(draw), draw_float(draw)
    return [draw_input(draw, s, dtype) for s in (shape, draw_broadcastable(draw, shape))], {}


def _groups(draw: Draw) -> Drawn:
    tokens, inner, outer, groups = (draw(st.sampled_from(sizes)) for sizes in ((8, 24), (8, 16), (8, 32), (2, 5)))
    turned = draw(st.booleans())
    weight = draw_input(draw, (groups, outer, inner) if turned else (groups, inner, outer), "bfloat16", None, PLAIN)
    offsets = draw_input(draw, (groups,), "int32", False, PLAIN)
    return [draw_input(draw, (tokens, inner), "bfloat16", None, PLAIN), weight, offsets], {"turned": turned}


def _run_groups(ops: Any, x: Any, weight: Any, offsets: Any, turned: bool) -> Any:
    out = ops.grouped_mm(x, ops.transpose(weight, 1, 2) if turned else weight, offsets)
    return ops.mul(out, 2.0)  # whose gradient is dense, as that of the experts is


def _slices(draw: Draw) -> Drawn:
    shape, dtype = list(draw_shape(draw)), draw_float(draw)
    parts = []
    for _ in range(2):
        shape[-1] = draw(st.sampled_from((2, 3, 8)))
        parts.append(draw_input(draw, shape, dtype))
    return parts, {"width": sum(part["shape"][-1] for part in parts)}


def _run_slices(ops: Any, a: Any, b: Any, width: int) -> Any:
    base = ops.new_empty(a, (*a.shape[:-1], width))
    return ops.copy_slice(ops.copy_slice(base, a, -1), b, -1)


program("sort", "sort", _whole_numbers, lambda ops, x: list(ops.sort(x)))
program("floor_divide", "floor_divide", _whole_numbers, lambda ops, x: ops.floor_divide(x))
program("empty_like", "empty_like", _whole_numbers, lambda ops, x: ops.empty_like(x))
program(
    "histc",
    "histc",
    lambda draw: ([draw_input(draw, draw_shape(draw, 1, 1), "int32", False, PLAIN)], {}),
    lambda ops, x: ops.histc(x, 8),
    (CUDA,),
)
program("max of a row", "max scatter", unary(1), lambda ops, x: ops.max_last(x)[0])
program("div_ by a tensor", "div_.Tensor", _quotient, lambda ops, a, b: ops.divide_(ops.mul(a, 2.0), b))
program(
    "clamp by numbers",
    "clamp.Scalar",
    lambda draw: (unary()(draw)[0], {"both": draw(st.booleans())}),
    lambda ops, x, both: ops.clamp_numbers(x, both),
)
program(
    "bitwise_not",
    "bitwise_not",
    lambda draw: ([draw_input(draw, draw_shape(draw), "bool", False, DENSE)], {}),
    lambda ops, x: ops.bitwise_not(x),
)
program("grouped_mm", "_grouped_mm", _groups, _run_groups, (CUDA,))
program("filled slice by slice", "new_empty copy_", _slices, _run_slices)


def _angles(draw: Draw) -> Drawn:
    shape = draw_shape(draw)
    return [draw_input(draw, shape, "float32", False) for _ in range(2)], {}


def _turned(draw: Draw) -> Drawn:
    shape = (*draw_shape(draw, 1, 3), draw(st.sampled_from((2, 6, 8))))
    turns = (*draw_broadcastable(draw, shape[:-1]), shape[-1] // 2)
    layout = draw(st.sampled_from((PLAIN, DENSE)))
    return [
        draw_input(draw, shape, draw_float(draw), None, layout),
        draw_input(draw, (*turns, 2), "float32", None, PLAIN),
    ], {}


def _run_turned(ops: Any, x: Any, turns: Any) -> Any:
    pairs = ops.reshape(ops.to(x, ops.dtype("float32")), (*x.shape[:-1], x.shape[-1] // 2, 2))
    pairs = ops.view_as_complex(ops.contiguous(pairs))
    out = ops.view_as_real(ops.mul_complex(pairs, ops.view_as_complex(turns)))
    return ops.to(ops.reshape(out, (*out.shape[:-2], out.shape[-2] * 2)), x.dtype)


program("polar", "polar", _angles, lambda ops, length, angle: ops.mul(ops.polar(length, angle), 1.0))
program("pairs turned", "view_as_complex view_as_real mul.complex resolve_conj", _turned, _run_turned)


def _compared(dtype: str) -> Any:
    def draw_both(draw: Draw) -> Drawn:
        shape = draw_shape(draw)
        return [draw_input(draw, s, dtype, False, DENSE) for s in (shape, draw_broadcastable(draw, shape))], {}

    return draw_both


def _repeated(draw: Draw) -> Drawn:
    shape = draw_shape(draw, 1, 3)
    lead = draw(st.integers(0, 2))
    sizes = [draw(st.sampled_from((1, 1, 2, 3))) for _ in range(lead + len(shape))]
    return [draw_input(draw, shape, draw_float(draw))], {"sizes": sizes}


def _rows(draw: Draw) -> tuple[tuple[int, int], int]:
    shape = draw_shape(draw, 2, 2)
    return (shape[0], shape[1]), draw(st.integers(1, shape[1]))


def _scattered(draw: Draw) -> Drawn:
    shape, chosen = _rows(draw)
    few, dtype = (shape[0], chosen), draw_float(draw)
    base = draw_input(draw, shape, dtype, False, PLAIN)
    return [base, draw_indices(draw, few), draw_input(draw, few, dtype, None, PLAIN)], {}


def _struck_out(draw: Draw) -> Drawn:
    shape, chosen = _rows(draw)
    return [draw_input(draw, shape, draw_float(draw)), draw_indices(draw, (shape[0], chosen))], {}


def _sampled(draw: Draw) -> Drawn:
    (tokens, experts), _ = _rows(draw)
    dtype = draw_float(draw)
    shapes = ((tokens, experts), (tokens, 1), (tokens, experts), (tokens, 1))
    scores, multiplier, gates, mask = (draw_input(draw, s, dtype, None, PLAIN) for s in shapes)
    return [scores, multiplier, draw_indices(draw, (tokens, 1)), gates, mask | {"grad": False}], {}


def _run_sampled(ops: Any, scores: Any, multiplier: Any, selected: Any, gates: Any, mask: Any) -> Any:
    return ops.sampled_multiplier(ops.mul(scores, 2.0), multiplier, selected, gates, mask)


program(
    "log1p",
    "log1p",
    lambda draw: ([draw_input(draw, draw_shape(draw), "float32", False)], {}),
    lambda ops, x: ops.log1p(x),
)
program("equal", "eq", _compared("int64"), lambda ops, a, b: ops.equal(a, b))
program("logical_or", "logical_or", _compared("bool"), lambda ops, a, b: ops.logical_or(a, b))
program("clamp_min", "clamp.min", _compared("float32"), lambda ops, a, b: ops.clamp_min(a, b))
program("rand_like", "rand_like", unary(grad=False), lambda ops, x: ops.rand_like(x))
program(
    "booleans counted",
    "sum cumsum",
    lambda draw: ([draw_input(draw, draw_shape(draw), "bool", False, PLAIN)], {}),
    lambda ops, x: [ops.cumsum(x), ops.sum(x, (-1,))],
)
program("repeat", "repeat", _repeated, lambda ops, x, sizes: ops.mul(ops.repeat(x, *sizes), 2.0))
program(
    "scatter_", "scatter_.src", _scattered, lambda ops, x, i, source: ops.mul(ops.scatter_source_(x, i, source), 2.0)
)
program("scatter of a number", "scatter.value", _struck_out, lambda ops, x, i: ops.scatter_value(x, i))
program("sampled multiplier", "PhimoeMultiplier", _sampled, _run_sampled)
