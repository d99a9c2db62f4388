"""Element by element: arithmetic, activations, casts."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import BOOL, FLOAT32, DType, promote
from weigh.ghost.ops.table import CUDA_FP32, Op, apply
from weigh.ghost.tensor import ShapeError, Tensor, empty, normalise


def broadcast(left: Shape, right: Shape) -> Shape:
    """The shape that two shapes broadcast to.

    >>> broadcast((2, 1, 4), (3, 4))
    (2, 3, 4)
    """
    if left is right or left == right:
        return left
    if len(left) < len(right):
        left, right = right, left
    lead = len(left) - len(right)
    sizes = list(left[:lead])
    for a, b in zip(left[lead:], right, strict=True):
        if a is b:
            sizes.append(a)
        elif a.__class__ is int and a == 1:
            sizes.append(b)
        elif (b.__class__ is int and b == 1) or a == b:
            sizes.append(a)
        elif a == 1:
            sizes.append(b)
        elif b == 1:
            sizes.append(a)
        else:
            raise ShapeError(f"shapes {list(left)} and {list(right)} do not broadcast")
    return tuple(sizes)


def _broadcast_strides(shape: Shape, operand: Tensor) -> list[Size]:
    """The operand's strides in the broadcast shape: zero where it is repeated."""
    lead = len(shape) - len(operand.shape)
    strides: list[Size] = [0] * lead
    for size, stride, wanted in zip(operand.shape, operand.stride(), shape[lead:], strict=True):
        strides.append(stride if size is wanted or size == wanted else 0)
    return strides


def output_strides(shape: Shape, operands: tuple[Tensor, ...]) -> Shape | None:
    """Strides of an elementwise output: dense, in the operands' order (TensorIterator.cpp, `reorder_dimensions`)."""
    if all(t.strides is None for t in operands):
        return None
    rows = [_broadcast_strides(shape, operand) for operand in operands]

    def compare(dim0: int, dim1: int) -> int:
        for row in rows:
            a, b = row[dim0], row[dim1]
            if (a.__class__ is int and a == 0) or (b.__class__ is int and b == 0):
                continue
            if a == b:
                if shape[dim0] > shape[dim1]:
                    return 1
                continue
            return -1 if a < b else 1
        return 0

    order = list(range(len(shape) - 1, -1, -1))
    for i in range(1, len(order)):
        dim1 = i
        for dim0 in range(i - 1, -1, -1):
            comparison = compare(order[dim0], order[dim1])
            if comparison > 0:
                order[dim0], order[dim1] = order[dim1], order[dim0]
                dim1 = dim0
            elif comparison < 0:
                break
    result: list[Size] = [0] * len(shape)
    step: Size = 1
    for dim in order:
        result[dim] = step
        step = step * shape[dim]
    return normalise(shape, tuple(result))


def result_dtype(left: Tensor, right: Tensor) -> DType:
    """Type promotion of two tensors: one without dimensions counts only by its kind."""
    if left.dtype is right.dtype:
        return left.dtype
    if bool(left.shape) != bool(right.shape):
        with_dims, without = (left, right) if left.shape else (right, left)
        if with_dims.dtype.kind == "float" or without.dtype.kind != "float":
            return with_dims.dtype
    return promote(left.dtype, right.dtype)


def elementwise(op: str, left: Tensor, right: Tensor, dtype: DType | None = None) -> Tensor:
    """The output of a binary op."""
    if dtype is None:
        dtype = left.dtype if left.dtype is right.dtype else result_dtype(left, right)
    shape = broadcast(left.shape, right.shape)
    strides = None if left.strides is None and right.strides is None else output_strides(shape, (left, right))
    return empty(shape, dtype, op, strides)


def like(op: str, x: Tensor, dtype: DType | None = None) -> Tensor:
    """The output of a unary op: dense, in the order of the input's strides."""
    return empty(x.shape, dtype or x.dtype, op, None if x.strides is None else output_strides(x.shape, (x,)))


class Add(Op):
    """`a + b`. Both gradients are the incoming one itself."""

    name = "aten::add"
    source = "derivatives.yaml: add.Tensor"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::add", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad if need else None for need in ctx.needs]


class AddInPlace(Add):
    """`a.add_(b)`, where `a` is of the sum's shape and nobody else's: the same storage."""

    name = "aten::add_"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a.alias()


class Sub(Op):
    """`a - b`. The second gradient is `-grad`."""

    name = "aten::sub"
    source = "derivatives.yaml: sub.Tensor"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::sub", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        other = neg(grad) if ctx.needs[1] else None
        return [grad if ctx.needs[0] else None, other]


class Mul(Op):
    """`a * b`. Saves each factor that the other's gradient needs."""

    name = "aten::mul"
    source = "derivatives.yaml: mul.Tensor"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        return elementwise("aten::mul", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        other = mul(grad, a) if ctx.needs[1] else None
        return [mul(grad, b) if ctx.needs[0] else None, other]


class Div(Op):
    """`a / b`. div_tensor_other_backward: `-grad * ((a / b) / b)`."""

    name = "aten::div"
    source = "derivatives.yaml: div.Tensor"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[1] else None, b)
        dtype = result_dtype(a, b)
        return elementwise("aten::div", a, b, dtype if dtype.kind == "float" else FLOAT32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        other = None
        if ctx.needs[1]:
            quotient = div(a, b)
            again = div(quotient, b)
            other = mul(neg(grad), again)
            del quotient, again
        return [div(grad, b) if ctx.needs[0] else None, other]


class _Scalar(Op):
    """A tensor and a Python number. The number keeps the dtype, unless it is a fraction and the tensor is not."""

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, fraction: bool = False) -> Tensor:
        return like(cls.name, x, x.dtype if x.dtype.kind in ("float", "complex") or not fraction else FLOAT32)


class AddScalar(_Scalar):
    """`x + 1`, `x - 1`. The gradient is the incoming one."""

    name = "aten::add.Scalar"
    source = "derivatives.yaml: add.Tensor, with a wrapped number"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad]


class MulScalar(_Scalar):
    """`x * 2`. The gradient is `grad * 2`; nothing on the device is saved."""

    name = "aten::mul.Scalar"
    source = "derivatives.yaml: mul.Tensor, with a wrapped number"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [mul(grad, 1.0)]


class DivScalar(_Scalar):
    """`x / 2`. The gradient is `grad / 2`."""

    name = "aten::div.Scalar"
    source = "derivatives.yaml: div.Tensor, with a wrapped number"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [div(grad, 1.0)]


class PowScalar(Op):
    """`x ** n`. pow_backward: `grad * (n * x.pow(n - 1))`, whose three parts live until the expression ends."""

    name = "aten::pow"
    source = "derivatives.yaml: pow.Tensor_Scalar; FunctionsManual.cpp, pow_backward"
    autocast = CUDA_FP32

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, exponent: float) -> Tensor:
        if ctx:
            ctx.save(x)
            ctx.meta = exponent
        return like("aten::pow", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        power = pow(x, ctx.meta - 1)
        scaled = mul(power, 1.0)
        return [mul(grad, scaled)]


class _Unary(Op):
    """One input, one output of its shape. `saves` says whether the input or the output is kept."""

    saves: str | None = None

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        if ctx and cls.saves == "input":
            ctx.save(x)
        out = like(cls.name, x)
        if ctx and cls.saves == "output":
            ctx.save_output(out)
        return out


class Neg(_Unary):
    """`-x`."""

    name = "aten::neg"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [neg(grad)]


class Rsqrt(_Unary):
    """`rsqrt(x)`: `-0.5 * grad * result.pow(3)`."""

    name = "aten::rsqrt"
    saves = "output"
    autocast = CUDA_FP32

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (result,) = ctx.unpack()
        cube = pow(result, 3)
        scaled = mul(grad, -0.5)
        return [mul(scaled, cube)]


class Sqrt(_Unary):
    """`sqrt(x)`: `grad / (2 * result)`."""

    name = "aten::sqrt"
    saves = "output"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (result,) = ctx.unpack()
        twice = mul(result, 2)
        return [div(grad, twice)]


class Reciprocal(_Unary):
    """`1 / x`: `-grad * (result * result)`."""

    name = "aten::reciprocal"
    saves = "output"
    autocast = CUDA_FP32

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (result,) = ctx.unpack()
        negative = neg(grad)
        square = mul(result, result)
        return [mul(negative, square)]


class Clamp(_Unary):
    """`torch.clamp(x, max=...)`: `where(mask, grad, 0)`."""

    name = "aten::clamp"
    saves = "input"
    differentiable = 0


class Exp(_Unary):
    """`exp(x)`: `grad * result`."""

    name = "aten::exp"
    saves = "output"
    autocast = CUDA_FP32

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (result,) = ctx.unpack()
        return [mul(grad, result)]


class Cos(_Unary):
    """`cos(x)`: `grad * -x.sin()`."""

    name = "aten::cos"
    saves = "input"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        sine = sin(x)
        negative = neg(sine)
        return [mul(grad, negative)]


class Sin(_Unary):
    """`sin(x)`: `grad * x.cos()`."""

    name = "aten::sin"
    saves = "input"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        cosine = cos(x)
        return [mul(grad, cosine)]


class _Fused(_Unary):
    """A unary op whose gradient is one kernel over the gradient and what was saved."""

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        (saved,) = ctx.unpack()
        return [apply(_BACKWARDS[cls.name], grad, saved)]


class Tanh(_Fused):
    """`tanh(x)`."""

    name = "aten::tanh"
    saves = "output"


class Sigmoid(_Fused):
    """`sigmoid(x)`."""

    name = "aten::sigmoid"
    saves = "output"


class Relu(_Fused):
    """`relu(x)`."""

    name = "aten::relu"
    saves = "output"


class Silu(_Fused):
    """`silu(x)`."""

    name = "aten::silu"
    saves = "input"


class Gelu(_Fused):
    """`gelu(x)`, either approximation."""

    name = "aten::gelu"
    saves = "input"


class _Backward(Op):
    """The backward kernel of a unary op."""

    @classmethod
    def forward(cls, ctx: Any, grad: Tensor, saved: Tensor) -> Tensor:
        return elementwise(cls.name, grad, saved)


class TanhBackward(_Backward):
    """`grad * (1 - result**2)`."""

    name = "aten::tanh_backward"


class SigmoidBackward(_Backward):
    """`grad * result * (1 - result)`."""

    name = "aten::sigmoid_backward"


class ThresholdBackward(_Backward):
    """`grad where result > 0`. Its result is laid out as what was saved, before the gradient (Activation.cpp)."""

    name = "aten::threshold_backward"

    @classmethod
    def forward(cls, ctx: Any, grad: Tensor, saved: Tensor) -> Tensor:
        return elementwise(cls.name, saved, grad)


class SiluBackward(_Backward):
    """One kernel on CUDA and on the CPU; fake tensors take the composite formula (see `weigh.kernels.traced`)."""

    name = "aten::silu_backward"


class GeluBackward(_Backward):
    """One kernel."""

    name = "aten::gelu_backward"


_BACKWARDS: dict[str, type[Op]] = {
    "aten::tanh": TanhBackward,
    "aten::sigmoid": SigmoidBackward,
    "aten::relu": ThresholdBackward,
    "aten::silu": SiluBackward,
    "aten::gelu": GeluBackward,
}


class ToCopy(Op):
    """`x.to(dtype)` where the dtype differs. ToCopyBackward0: the gradient cast back."""

    name = "aten::_to_copy"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dtype: DType, contiguous: bool = False) -> Tensor:
        from weigh.ghost.ops.creation import new_like

        if ctx:
            ctx.meta = x.dtype
        if contiguous:
            return empty(x.shape, dtype, "aten::_to_copy")
        return new_like(x, "aten::_to_copy", dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [to(grad, ctx.meta)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class LessEqual(Op):
    """`a <= b`: booleans, no gradient."""

    name = "aten::le"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::le", a, b, BOOL)


class BitwiseAnd(Op):
    """`a & b` of booleans, no gradient."""

    name = "aten::bitwise_and"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::bitwise_and", a, b, BOOL)


class Tril(Op):
    """`torch.tril(x)`."""

    name = "aten::tril"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape, x.dtype, "aten::tril")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [tril(grad)]


def add(a: Tensor, b: Tensor | float) -> Tensor:
    """`a + b`."""
    if b.__class__ is Tensor:
        return apply(Add, a, b)  # type: ignore[no-any-return]
    return apply(AddScalar, a, fraction=b.__class__ is float)  # type: ignore[no-any-return]


def add_(a: Tensor, b: Tensor) -> Tensor:
    """`a.add_(b)`: `a` must not be used again."""
    return apply(AddInPlace, a, b)  # type: ignore[no-any-return]


def sub(a: Tensor, b: Tensor | float) -> Tensor:
    """`a - b`."""
    if b.__class__ is Tensor:
        return apply(Sub, a, b)  # type: ignore[no-any-return]
    return apply(AddScalar, a, fraction=b.__class__ is float)  # type: ignore[no-any-return]


def mul(a: Tensor, b: Tensor | float) -> Tensor:
    """`a * b`."""
    if b.__class__ is Tensor:
        return apply(Mul, a, b)  # type: ignore[no-any-return]
    return apply(MulScalar, a, fraction=b.__class__ is float)  # type: ignore[no-any-return]


def div(a: Tensor, b: Tensor | float) -> Tensor:
    """`a / b`."""
    if b.__class__ is Tensor:
        return apply(Div, a, b)  # type: ignore[no-any-return]
    return apply(DivScalar, a, fraction=True)  # type: ignore[no-any-return]


def pow(x: Tensor, exponent: float) -> Tensor:
    """`x ** exponent`."""
    return apply(PowScalar, x, exponent=exponent)  # type: ignore[no-any-return]


def neg(x: Tensor) -> Tensor:
    """`-x`."""
    return apply(Neg, x)  # type: ignore[no-any-return]


def rsqrt(x: Tensor) -> Tensor:
    """`torch.rsqrt(x)`."""
    return apply(Rsqrt, x)  # type: ignore[no-any-return]


def sqrt(x: Tensor) -> Tensor:
    """`torch.sqrt(x)`."""
    return apply(Sqrt, x)  # type: ignore[no-any-return]


def reciprocal(x: Tensor) -> Tensor:
    """`torch.reciprocal(x)`."""
    return apply(Reciprocal, x)  # type: ignore[no-any-return]


def clamp(x: Tensor) -> Tensor:
    """`torch.clamp(x, max=...)`, outside autograd."""
    return apply(Clamp, x.alias())  # type: ignore[no-any-return]


def exp(x: Tensor) -> Tensor:
    """`torch.exp(x)`."""
    return apply(Exp, x)  # type: ignore[no-any-return]


def cos(x: Tensor) -> Tensor:
    """`torch.cos(x)`."""
    return apply(Cos, x)  # type: ignore[no-any-return]


def sin(x: Tensor) -> Tensor:
    """`torch.sin(x)`."""
    return apply(Sin, x)  # type: ignore[no-any-return]


def tanh(x: Tensor) -> Tensor:
    """`torch.tanh(x)`."""
    return apply(Tanh, x)  # type: ignore[no-any-return]


def sigmoid(x: Tensor) -> Tensor:
    """`torch.sigmoid(x)`."""
    return apply(Sigmoid, x)  # type: ignore[no-any-return]


def relu(x: Tensor) -> Tensor:
    """`F.relu(x)`."""
    return apply(Relu, x)  # type: ignore[no-any-return]


def silu(x: Tensor) -> Tensor:
    """`F.silu(x)`."""
    return apply(Silu, x)  # type: ignore[no-any-return]


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x)`."""
    return apply(Gelu, x)  # type: ignore[no-any-return]


def to(x: Tensor, dtype: DType) -> Tensor:
    """`x.to(dtype)`: itself where it already is."""
    if x.dtype is dtype:
        return x
    return apply(ToCopy, x, dtype=dtype)  # type: ignore[no-any-return]


def to_contiguous(x: Tensor, dtype: DType) -> Tensor:
    """`x.to(dtype, memory_format=torch.contiguous_format)`: itself where it has the dtype, in whatever order it lies.

    (`to_will_alias` asks for the format that `x` suggests, which is contiguous unless it is an image with its channels
    last.)
    """
    if x.dtype is dtype:
        return x
    return apply(ToCopy, x, dtype=dtype, contiguous=True)  # type: ignore[no-any-return]


def copy_to(x: Tensor, dtype: DType) -> Tensor:
    """`x.to(dtype, copy=True)`: a copy even where the dtype is the same."""
    return apply(ToCopy, x, dtype=dtype)  # type: ignore[no-any-return]


def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """`a & b`."""
    return apply(BitwiseAnd, a, b)  # type: ignore[no-any-return]


def less_equal(a: Tensor, b: Tensor) -> Tensor:
    """`a <= b`."""
    return apply(LessEqual, a, b)  # type: ignore[no-any-return]


def tril(x: Tensor) -> Tensor:
    """`torch.tril(x)`."""
    return apply(Tril, x)  # type: ignore[no-any-return]
