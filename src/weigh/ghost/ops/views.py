"""Views, and the copies that a view turns into where strides do not allow one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weigh.dims import Shape, Size, product
from weigh.dtypes import promote
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import ShapeError, Tensor, empty, is_dense, normalise


def _view_of(x: Tensor, shape: Shape, strides: Shape | None, numel: Size) -> Tensor:
    made = Tensor(x.storage, shape, None if strides is None else normalise(shape, strides), x.dtype, numel)
    made.is_view = True
    return made


class View(Op):
    """`x.view(shape)`. ViewBackward0: `grad.reshape(self.sizes())`."""

    name = "aten::view"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, shape: Shape, strides: Shape | None) -> Tensor:
        if ctx:
            ctx.meta = x.shape
        return _view_of(x, shape, strides, x.numel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [reshape(grad, ctx.meta)]


class UnsafeView(View):
    """`_unsafe_view`: a view that claims to be a new tensor. UnsafeViewBackward0: `grad.reshape(self.sizes())`."""

    name = "aten::_unsafe_view"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, shape: Shape, strides: Shape | None) -> Tensor:
        if ctx:
            ctx.meta = x.shape
        return Tensor(x.storage, shape, strides, x.dtype, x.numel)


class Transpose(Op):
    """`x.transpose(a, b)` (and `x.t()`). TransposeBackward0: the same transpose of the gradient."""

    name = "aten::transpose"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim0: int, dim1: int) -> Tensor:
        if ctx:
            ctx.meta = dim0, dim1
        shape, strides = list(x.shape), list(x.stride())
        shape[dim0], shape[dim1] = shape[dim1], shape[dim0]
        strides[dim0], strides[dim1] = strides[dim1], strides[dim0]
        return _view_of(x, tuple(shape), tuple(strides), x.numel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [transpose(grad, *ctx.meta)]


class Permute(Op):
    """`x.permute(dims)`. PermuteBackward0: the inverse permutation."""

    name = "aten::permute"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
        if ctx:
            ctx.meta = tuple(sorted(range(len(dims)), key=dims.__getitem__))
        strides = x.stride()
        return _view_of(x, tuple(x.shape[d] for d in dims), tuple(strides[d] for d in dims), x.numel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [permute(grad, ctx.meta)]


class Expand(Op):
    """`x.expand(shape)`: strides of zero. ExpandBackward0: the gradient summed to the shape before."""

    name = "aten::expand"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, shape: Shape) -> Tensor:
        lead = len(shape) - len(x.shape)
        strides: list[Size] = [0] * lead
        for size, stride, wanted in zip(x.shape, x.stride(), shape[lead:], strict=True):
            strides.append(stride if size is wanted or size == wanted else 0)
        return _view_of(x, shape, tuple(strides), product(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        from weigh.ghost.ops.reduction import sum_to_size

        return [sum_to_size(grad, ctx.inputs[0][0])]


class Unsqueeze(Op):
    """`x.unsqueeze(dim)`. UnsqueezeBackward0: `grad.squeeze(dim)`."""

    name = "aten::unsqueeze"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int) -> Tensor:
        if ctx:
            ctx.meta = dim
        shape, strides = list(x.shape), list(x.stride())
        strides.insert(dim, shape[dim] * strides[dim] if dim < len(shape) else 1)
        shape.insert(dim, 1)
        return _view_of(x, tuple(shape), None if x.strides is None else tuple(strides), x.numel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [squeeze(grad, ctx.meta)]


class Squeeze(Op):
    """`x.squeeze(dim)` of a dimension of size one. SqueezeBackward1: `grad.unsqueeze(dim)`."""

    name = "aten::squeeze"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int) -> Tensor:
        if ctx:
            ctx.meta = dim
        shape, strides = list(x.shape), list(x.stride())
        del shape[dim], strides[dim]
        return _view_of(x, tuple(shape), None if x.strides is None else tuple(strides), x.numel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [unsqueeze(grad, ctx.meta)]


class Slice(Op):
    """`x[..., start:stop]`. SliceBackward0: zeros of the full size with the gradient copied in."""

    name = "aten::slice"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int, length: Size) -> Tensor:
        shape = list(x.shape)
        shape[dim] = length
        sizes = tuple(shape)
        return _view_of(x, sizes, x.stride(), product(sizes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [apply(SliceBackward, grad, shape=ctx.inputs[0][0])]


class SliceBackward(Op):
    """`slice_backward`: zeros of the input's shape, the gradient copied in."""

    name = "aten::slice_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *, shape: Shape) -> Tensor:
        return empty(shape, grad.dtype, "aten::slice_backward")


class Select(Op):
    """`x[..., i]`. SelectBackward0: `select_backward`, a zero tensor of the full size."""

    name = "aten::select"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int) -> Tensor:
        shape, strides = list(x.shape), list(x.stride())
        del shape[dim], strides[dim]
        sizes = tuple(shape)
        return _view_of(x, sizes, tuple(strides), product(sizes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [apply(SelectBackward, grad, shape=ctx.inputs[0][0])]


class SelectBackward(Op):
    """`select_backward`: zeros of the input's shape, the gradient copied in."""

    name = "aten::select_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *, shape: Shape) -> Tensor:
        return empty(shape, grad.dtype, "aten::select_backward")


class Split(Op):
    """`x.split(sizes, dim)`. SplitBackward0: the gradients concatenated, zeros for those that did not come."""

    name = "aten::split"
    view = True
    differentiable = 1 << 30

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, sizes: tuple[Size, ...], dim: int) -> list[Tensor]:
        if ctx:
            ctx.meta = sizes, dim
        outputs = []
        strides = x.stride()
        for size in sizes:
            shape = list(x.shape)
            shape[dim] = size
            outputs.append(_view_of(x, tuple(shape), strides, product(tuple(shape))))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> list[Any]:
        from weigh.ghost.ops.creation import zeros

        sizes, dim = ctx.meta
        shape, dtype = ctx.inputs[0]
        parts: list[Tensor] = []
        for number, size in enumerate(sizes):
            part = grads[number] if number < len(grads) else None
            if part is None:
                full = list(shape)
                full[dim] = size
                part = zeros(tuple(full), dtype)
            parts.append(part)
        return [cat(parts, dim)]


class Unbind(Op):
    """`x.unbind(dim)`, or `a, b = x`. UnbindBackward0: the gradients stacked, zeros for those that did not come."""

    name = "aten::unbind"
    source = "FunctionsManual.cpp, unbind_backward"
    view = True
    differentiable = 1 << 30

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int) -> list[Tensor]:
        if ctx:
            ctx.meta = dim
        shape, strides = (sizes[:dim] + sizes[dim + 1 :] for sizes in (x.shape, x.stride()))
        return [_view_of(x, shape, strides, product(shape)) for _ in range(x.shape[dim])]  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> list[Any]:
        from weigh.ghost.ops.creation import zeros

        shape, dtype = ctx.inputs[0]
        came = [*grads, *[None] * (shape[ctx.meta] - len(grads))]
        parts = [zeros((), dtype) if part is None else part for part in came]  # expanded
        return [apply(UnbindBackward, *parts, shape=shape)]


class UnbindBackward(Op):
    """`unbind_backward`: the gradients stacked."""

    name = "aten::stack.dim"

    @staticmethod
    def forward(ctx: Any, *parts: Tensor, shape: Shape) -> Tensor:
        return empty(shape, parts[0].dtype, "aten::stack")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class Cat(Op):
    """`torch.cat`: one contiguous tensor. CatBackward0: slices (views) of the gradient."""

    name = "aten::cat"

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor, dim: int) -> Tensor:
        if ctx:
            ctx.meta = dim, [t.shape[dim] for t in tensors]
        shape = list(tensors[0].shape)
        total: Size = 0
        dtype = tensors[0].dtype
        for tensor in tensors:
            total = total + tensor.shape[dim]
            if tensor.dtype is not dtype:
                dtype = promote(dtype, tensor.dtype)
        shape[dim] = total
        return empty(tuple(shape), dtype, "aten::cat")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        dim, sizes = ctx.meta
        return [narrow(grad, dim, size) if need else None for size, need in zip(sizes, ctx.needs, strict=True)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class Clone(Op):
    """`x.clone()`; contiguous or as `like`. CloneBackward0: the gradient itself."""

    name = "aten::clone"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, contiguous: bool = False, strides: Shape | None = None) -> Tensor:
        if contiguous:
            return empty(x.shape, x.dtype, "aten::clone", strides)
        from weigh.ghost.ops.creation import new_like

        return new_like(x, "aten::clone")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class ConstantPad(Op):
    """`F.pad` with a constant. ConstantPadNdBackward0: the gradient narrowed by a negative pad, which copies it."""

    name = "aten::constant_pad_nd"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, amount: Size) -> Tensor:
        if ctx:
            ctx.meta = amount
        shape = (*x.shape[:-1], x.shape[-1] + amount)
        return empty(shape, x.dtype, "aten::constant_pad_nd")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [apply(ConstantPad, grad, amount=-ctx.meta)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def view_strides(x: Tensor, shape: Shape) -> tuple[bool, Shape | None]:
    """Whether `x` can be viewed in `shape`, and with which strides (TensorUtils.cpp, `computeStride_impl`)."""
    if x.strides is None:
        return True, None
    strides: list[Size] = []
    view_dim = len(shape) - 1
    base = x.strides[-1]
    chunk: Size = 1
    done: Size = 1
    for dim in range(len(x.shape) - 1, -1, -1):
        chunk = chunk * x.shape[dim]
        if dim == 0 or (x.shape[dim - 1] != 1 and x.strides[dim - 1] != chunk * base):
            while view_dim >= 0 and (done < chunk or shape[view_dim] == 1):
                strides.append(done * base)
                done = done * shape[view_dim]
                view_dim -= 1
            if done != chunk:
                return False, None
            if dim > 0:
                base = x.strides[dim - 1]
                chunk = done = 1
    return view_dim == -1, tuple(reversed(strides))


def _resolve(x: Tensor, shape: Sequence[Size]) -> Shape:
    """Put the size that -1 stands for."""
    if -1 not in [s for s in shape if s.__class__ is int]:
        return tuple(shape)
    place = next(i for i, s in enumerate(shape) if s.__class__ is int and s == -1)
    rest: Size = 1
    for number, size in enumerate(shape):
        if number != place:
            rest = rest * size
    return (*shape[:place], x.numel // rest, *shape[place + 1 :])


def view(x: Tensor, shape: Sequence[Size]) -> Tensor:
    """`x.view(shape)`; -1 stands for what is left.

    Raises `ShapeError` where the strides do not allow a view.
    """
    sizes = _resolve(x, shape)
    possible, strides = view_strides(x, sizes)
    if not possible:
        raise ShapeError(f"cannot view {list(x.shape)} with strides {x.strides} as {list(sizes)}", hint="use reshape")
    return apply(View, x, shape=sizes, strides=strides)  # type: ignore[no-any-return]


def reshape(x: Tensor, shape: Sequence[Size]) -> Tensor:
    """`x.reshape(shape)`: a view where one is possible, else a contiguous copy."""
    sizes = _resolve(x, shape)
    possible, strides = view_strides(x, sizes)
    if possible:
        if sizes is x.shape:
            return x
        return apply(View, x, shape=sizes, strides=strides)  # type: ignore[no-any-return]
    copy = apply(Clone, x, contiguous=True)
    return apply(UnsafeView, copy, shape=sizes, strides=None)  # type: ignore[no-any-return]


def unsafe_view(x: Tensor, shape: Shape) -> Tensor:
    """`_unsafe_view` of a contiguous tensor."""
    return apply(UnsafeView, x, shape=shape, strides=None)  # type: ignore[no-any-return]


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """`x.transpose(dim0, dim1)`."""
    return apply(Transpose, x, dim0=dim0, dim1=dim1)  # type: ignore[no-any-return]


def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """`x.permute(dims)`."""
    return apply(Permute, x, dims=tuple(dims))  # type: ignore[no-any-return]


def expand(x: Tensor, shape: Sequence[Size]) -> Tensor:
    """`x.expand(shape)`."""
    return apply(Expand, x, shape=tuple(shape))  # type: ignore[no-any-return]


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """`x.unsqueeze(dim)`."""
    return apply(Unsqueeze, x, dim=dim % (len(x.shape) + 1))  # type: ignore[no-any-return]


def squeeze(x: Tensor, dim: int) -> Tensor:
    """`x.squeeze(dim)` of a dimension that is known to be one."""
    return apply(Squeeze, x, dim=dim % len(x.shape))  # type: ignore[no-any-return]


def narrow(x: Tensor, dim: int, length: Size, start: Size = 0) -> Tensor:  # noqa: ARG001  no byte depends on it
    """`x.narrow(dim, start, length)`, or a slice: no op at all where it takes everything."""
    dim = dim % len(x.shape)
    return apply(Slice, x, dim=dim, length=length)  # type: ignore[no-any-return]


def select(x: Tensor, dim: int) -> Tensor:
    """`x.select(dim, index)`."""
    return apply(Select, x, dim=dim % len(x.shape))  # type: ignore[no-any-return]


def split(x: Tensor, sizes: list[Size] | Size, dim: int = 0) -> list[Tensor]:
    """`x.split(sizes, dim)`; one size stands for equal parts."""
    dim = dim % len(x.shape)
    if not isinstance(sizes, list):
        whole, part = x.shape[dim], sizes
        if not isinstance(whole, int) or not isinstance(part, int):
            raise ShapeError("split needs plain sizes", hint="give a list of sizes")
        sizes = [min(part, whole - start) for start in range(0, whole, part)]
    return apply(Split, x, sizes=tuple(sizes), dim=dim)  # type: ignore[no-any-return]


def unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    """`x.unbind(dim)`: views along a dimension."""
    return apply(Unbind, x, dim=dim % len(x.shape))  # type: ignore[no-any-return]


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat(tensors, dim)`. Under autocast on the CPU the lower ones of several dtypes are cast first."""
    if state.autocast is not None and state.overrides.get("device") == "cpu":
        tensors = state.autocast.widest(tensors)
    return apply(Cat, *tensors, dim=dim % len(tensors[0].shape))  # type: ignore[no-any-return]


def clone(x: Tensor) -> Tensor:
    """`x.clone()`, which keeps the order of the strides."""
    return apply(Clone, x)  # type: ignore[no-any-return]


def clone_like(x: Tensor, like: Tensor) -> Tensor:
    """A copy of `x` in the layout of `like` (grad_layout_contract.h, `clone_obey_contract`)."""
    return apply(Clone, x, contiguous=True, strides=like.strides if is_dense(like) else None)  # type: ignore[no-any-return]


def contiguous(x: Tensor) -> Tensor:
    """`x.contiguous()`: itself where it already is."""
    if x.strides is None:
        return x
    return apply(Clone, x, contiguous=True)  # type: ignore[no-any-return]


def clone_contiguous(x: Tensor) -> Tensor:
    """`x.clone(memory_format=torch.contiguous_format)`: a copy even where `x` is contiguous."""
    return apply(Clone, x, contiguous=True)  # type: ignore[no-any-return]


def pad(x: Tensor, amount: Size) -> Tensor:
    """`F.pad(x, (0, amount))`: always a copy."""
    return apply(ConstantPad, x, amount=amount)  # type: ignore[no-any-return]
