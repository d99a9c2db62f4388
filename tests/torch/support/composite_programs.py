"""Programs of several ops: autocast and its cache, checkpoints, a weight or a tensor used twice, a small block."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from support.inputs import DENSE, FLOATS, PLAIN, Draw, draw_indices, draw_input, draw_shape
from support.programs import Drawn, program

LOW = ("bfloat16", "float16")


def _layer(draw: Draw, dtypes: tuple[str, ...] = FLOATS) -> Drawn:
    """An input of three dimensions, a square weight and a bias."""
    width, dtype = draw(st.sampled_from((4, 8))), draw(st.sampled_from(dtypes))
    x = draw_input(draw, (*draw_shape(draw, 2, 2), width), dtype, layout=DENSE)
    return [
        x,
        draw_input(draw, (width, width), dtype, layout=PLAIN),
        draw_input(draw, (width,), dtype, True, PLAIN),
    ], {}


def _mixed(draw: Draw) -> Drawn:
    """An fp32 layer with an input of any dtype, and the dtype to compute in."""
    (_, weight, bias), _ = _layer(draw, ("float32",))
    x = draw_input(draw, (*draw_shape(draw, 2, 2), weight["shape"][0]), draw(st.sampled_from(FLOATS)), layout=DENSE)
    return [x, weight, bias], {"dtype": draw(st.sampled_from(LOW))}


def _autocast_linear(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        once = ops.linear(x, weight, bias)
        return ops.linear(once, weight)


def _autocast_twice(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        once = ops.linear(x, weight, bias)
    with ops.autocast(ops.dtype(dtype)):
        return ops.linear(once, weight)


def _autocast_nested(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        with ops.autocast(ops.dtype(dtype)):
            once = ops.linear(x, weight, bias)
        with ops.autocast(None):
            scaled = ops.mul(once, 2.0)
        return ops.linear(scaled, weight)


def _autocast_no_grad(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)), ops.no_grad():
        return ops.linear(ops.linear(x, weight, bias), weight)


def _autocast_norm(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        low = ops.linear(x, weight)
        return ops.layer_norm(low, bias, bias)


def _autocast_lists(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        low = ops.linear(x, weight)
        return [
            ops.softmax(low),
            ops.pow(low, 2),
            ops.exp(low),
            ops.mul(low, bias),
            ops.cat([low, bias_like(ops, low)], -1),
        ]


def bias_like(ops: Any, low: Any) -> Any:
    """An fp32 tensor beside one of a lower precision."""
    return ops.to(low, ops.dtype("float32"))


def _autocast_matmul(ops: Any, x: Any, weight: Any, _: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        scores = ops.matmul(x, ops.transpose(x, 1, 2))
        return ops.matmul(ops.softmax(scores), ops.gelu(ops.matmul(x, weight)))


def _autocast_loss(ops: Any, x: Any, weight: Any, _: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        logits = ops.matmul(x, weight)
        loss = ops.sum(ops.log_softmax(logits), (0, 1, 2))
        return ops.add(loss, ops.sum(ops.rsqrt(ops.tanh(logits)), (0, 1, 2)))


program("autocast: linear, weight used twice", "", _mixed, _autocast_linear)
program("autocast: two regions", "", _mixed, _autocast_twice)
program("autocast: nested and switched off", "", _mixed, _autocast_nested)
program("autocast: without gradients", "", _mixed, _autocast_no_grad)
program("autocast: layer norm", "", _mixed, _autocast_norm)
program("autocast: lists", "", _mixed, _autocast_lists)
program("autocast: matmul", "", _mixed, _autocast_matmul)
program("autocast: loss", "", _mixed, _autocast_loss)


def _tied(draw: Draw) -> Drawn:
    dtype = draw(st.sampled_from(FLOATS))
    weight = draw_input(draw, (11, 8), dtype, True, PLAIN)
    return [draw_indices(draw, draw_shape(draw, 2, 2)), weight], {}


def _run_tied(ops: Any, indices: Any, weight: Any) -> Any:
    hidden = ops.embedding(indices, weight)
    return ops.linear(ops.tanh(hidden), weight)


def _used_twice(ops: Any, x: Any, weight: Any, bias: Any) -> Any:
    hidden = ops.linear(x, weight, bias)
    return ops.add(ops.mul(hidden, ops.sigmoid(hidden)), hidden)


def _residual(ops: Any, x: Any, weight: Any, bias: Any) -> Any:
    for _ in range(2):
        x = ops.add(x, ops.linear(ops.gelu(x), weight, bias))
    return x


program("tied weights", "", _tied, _run_tied)
program("a tensor used three times", "", _layer, _used_twice)
program("residual stream", "", _layer, _residual)
program("a leaf added to itself", "", _layer, lambda ops, x, *_: ops.add(x, x))
program("a leaf multiplied by itself", "", _layer, lambda ops, x, *_: ops.mul(x, x))


def _block(ops: Any, x: Any, weight: Any, bias: Any) -> Any:
    normed = ops.layer_norm(x, bias, bias)
    return ops.add(x, ops.linear(ops.gelu(ops.linear(normed, weight, bias)), weight))


program("block", "", _layer, _block)


def _wanting(draw: Draw) -> Drawn:
    (x, weight, bias), attributes = _layer(draw)
    return [{**x, "grad": True}, weight, bias], attributes


def _checkpointed(ops: Any, x: Any, weight: Any, bias: Any, how: str) -> Any:
    def block(hidden: Any) -> Any:
        return _block(ops, hidden, weight, bias)

    for _ in range(2):
        x = getattr(ops, how)(block, x)
    return x


program("checkpoint", "", _wanting, lambda ops, *t: _checkpointed(ops, *t, how="checkpoint"))
program(
    "checkpoint, selective",
    "",
    _wanting,
    lambda ops, *t: _checkpointed(ops, *t, how="selective_checkpoint"),
)
program(
    "checkpoint, reentrant",
    "CheckpointFunction",
    _wanting,
    lambda ops, *t: _checkpointed(ops, *t, how="reentrant_checkpoint"),
)


def _checkpointed_autocast(ops: Any, x: Any, weight: Any, bias: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        return _checkpointed(ops, x, weight, bias, how="checkpoint")


def _wanting_mixed(draw: Draw) -> Drawn:
    (_, weight, bias), attributes = _mixed(draw)
    x = draw_input(draw, (*draw_shape(draw, 2, 2), weight["shape"][0]), "float32", True, DENSE)
    return [x, weight, bias], attributes


program("checkpoint under autocast", "", _wanting_mixed, _checkpointed_autocast)
