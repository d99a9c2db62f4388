"""Tensors out of nothing: ranges, constants, inputs."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import FLOAT32, INT64, DType
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty, is_dense


class _Creation(Op):
    """A new contiguous tensor of the given shape."""

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        """None: values are written, not computed."""
        return 0


class Arange(_Creation):
    """`torch.arange(n)`."""

    name = "aten::arange"

    @staticmethod
    def forward(ctx: Any, *, shape: Shape, dtype: DType) -> Tensor:
        return empty(shape, dtype, "aten::arange")


class Eye(_Creation):
    """`torch.eye(n)`: (n, n)."""

    name = "aten::eye"

    @staticmethod
    def forward(ctx: Any, *, length: Size, dtype: DType) -> Tensor:
        return empty((length, length), dtype, "aten::eye")


class Zeros(_Creation):
    """`torch.zeros(shape)`."""

    name = "aten::zeros"

    @staticmethod
    def forward(ctx: Any, *, shape: Shape, dtype: DType) -> Tensor:
        return empty(shape, dtype, "aten::zeros")


class Ones(_Creation):
    """`torch.ones(shape)`."""

    name = "aten::ones"

    @staticmethod
    def forward(ctx: Any, *, shape: Shape, dtype: DType) -> Tensor:
        return empty(shape, dtype, "aten::ones")


class Full(_Creation):
    """`torch.full(shape, value)`."""

    name = "aten::full"

    @staticmethod
    def forward(ctx: Any, *, shape: Shape, dtype: DType) -> Tensor:
        return empty(shape, dtype, "aten::full")


class ScalarTensor(_Creation):
    """`torch.scalar_tensor(value)`."""

    name = "aten::scalar_tensor"

    @staticmethod
    def forward(ctx: Any, *, dtype: DType) -> Tensor:
        return empty((), dtype, "aten::scalar_tensor")


class OnesLike(_Creation):
    """`torch.ones_like(x)`: the seed of a backward pass."""

    name = "aten::ones_like"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return new_like(x, "aten::ones_like")


def arange(length: Size, dtype: DType = INT64) -> Tensor:
    """`torch.arange(length)`, shape (length,)."""
    return apply(Arange, shape=(length,), dtype=dtype)  # type: ignore[no-any-return]


def eye(length: Size, dtype: DType = FLOAT32) -> Tensor:
    """`torch.eye(length)`, shape (length, length)."""
    return apply(Eye, length=length, dtype=dtype)  # type: ignore[no-any-return]


def zeros(shape: Shape, dtype: DType = FLOAT32) -> Tensor:
    """`torch.zeros(shape)`."""
    return apply(Zeros, shape=shape, dtype=dtype)  # type: ignore[no-any-return]


def ones(shape: Shape, dtype: DType = FLOAT32) -> Tensor:
    """`torch.ones(shape)`."""
    return apply(Ones, shape=shape, dtype=dtype)  # type: ignore[no-any-return]


def full(shape: Shape, dtype: DType = FLOAT32) -> Tensor:
    """`torch.full(shape, value)`."""
    return apply(Full, shape=shape, dtype=dtype)  # type: ignore[no-any-return]


def scalar_tensor(dtype: DType = FLOAT32) -> Tensor:
    """`torch.scalar_tensor(value)`, shape ()."""
    return apply(ScalarTensor, dtype=dtype)  # type: ignore[no-any-return]


def ones_like(x: Tensor) -> Tensor:
    """`torch.ones_like(x)`."""
    return apply(OnesLike, x.alias())  # type: ignore[no-any-return]


def new_like(x: Tensor, op: str, dtype: DType | None = None) -> Tensor:
    """`empty_like` with `preserve_format`: the strides of a dense tensor, else dense strides in the same order."""
    strides = x.strides if x.strides is None or is_dense(x) else dense_strides_in_order(x)
    return empty(x.shape, dtype or x.dtype, op, strides)


def dense_strides_in_order(x: Tensor) -> Shape | None:
    """Dense strides that keep the order of `x`'s (TensorUtils.cpp, `infer_dense_strides`)."""
    from weigh.ghost.ops.pointwise import output_strides

    return output_strides(x.shape, (x,))


def input_tensor(shape: Shape, dtype: DType = INT64) -> Tensor:
    """A tensor that the caller brings: token ids, labels."""
    return empty(shape, dtype, "input", purpose="input")
