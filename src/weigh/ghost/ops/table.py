"""The op table: one row per aten op, and the one way to run a row.

A row is a class with `forward` and `backward`, in the manner of `torch.autograd.Function`: `forward` makes the output
and says what it saves, `backward` makes the gradients by running other rows. The order of the lines in a `backward`
is the order in which PyTorch allocates; local variables live as long as the C++ ones do.

A set of kernels (see `weigh.kernels`) replaces rows by name for the time of a run.
"""

from __future__ import annotations

from typing import Any, ClassVar

from weigh.dims import Size
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor

LOWER = "lower"
"""autocast_mode.h: in the lower precision, on every device."""
FP32 = "fp32"
"""In fp32, on every device."""
CUDA_FP32 = "fp32 on CUDA"
"""In fp32 on CUDA; on the CPU the op takes what it is given."""

TABLE: dict[str, type[Op]] = {}
"""Every row, by name."""


class Op:
    """One row. Subclasses with a `name` enter the table."""

    name: ClassVar[str] = ""
    """aten's name of the op, as traces show it."""
    source: ClassVar[str] = ""
    """Where PyTorch states what is saved and how the gradient is made (`derivatives.yaml` unless it says otherwise)."""
    autocast: ClassVar[str | None] = None
    """The list of autocast_mode.h that the op stands in: `LOWER`, `FP32`, `CUDA_FP32` or None."""
    view: ClassVar[bool] = False
    """The output shares the input's storage, and nothing is moved."""
    composite: ClassVar[bool] = False
    """A function of Python whose parts are rows: what is compiled sees them and not the whole."""
    differentiable: ClassVar[int] = 1
    """How many of the outputs, from the first, carry gradients."""

    def __init_subclass__(cls) -> None:
        if cls.name and cls.__dict__.get("name"):
            TABLE.setdefault(cls.name, cls)

    @staticmethod
    def forward(ctx: Any, *tensors: Any, **attributes: Any) -> Any:
        """Make the output. `ctx` is the new node, or None where nothing wants a gradient."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> list[Any]:
        """The gradients of the tensors that `forward` took, in their order; None for those that want none."""
        raise NotImplementedError

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        """Floating-point operations; one per output element unless a row knows better."""
        return out.numel


def apply(op: type[Op], *tensors: Tensor | None, **attributes: Any) -> Any:
    """Run a row: cast for autocast, put a node on the tape if a gradient is wanted, note the cost."""
    replacement = state.overrides.get(op.name)
    if replacement is not None:
        op = replacement
    if op.autocast is not None and state.autocast is not None:
        tensors = state.autocast.cast(op.autocast, tensors)
    node = None
    if state.grad_enabled and op.differentiable:
        needs = [t is not None and t.requires_grad for t in tensors]
        if True in needs:
            node = Node(op, tensors, needs)
    recorder = state.recorder
    if recorder is None or op.composite:
        result = op.forward(node, *tensors, **attributes)
    else:
        state.recorder = None
        result = op.forward(node, *tensors, **attributes)
        state.recorder = recorder
        recorder(op, tensors, attributes, result)
    out = result if result.__class__ is Tensor else next(t for t in result if t is not None)
    if node is not None:
        if out is result:
            out.node = node
            out.requires_grad = True
        else:
            for number, tensor in enumerate(result[: op.differentiable]):
                tensor.node = node
                tensor.output_nr = number
                tensor.requires_grad = True
    if not op.view:
        read: Size = 0
        for t in tensors:
            if t is not None:
                read = read + t.numel * t.dtype.itemsize
        state.ledger.call(op.name, op.flops(out, *tensors), read, out.numel * out.dtype.itemsize)
    return result


from weigh.ghost.autograd import Node  # noqa: E402  the tape runs rows, and rows stand on the tape
