"""Ghost tensors: PyTorch's shapes, strides, storages and lifetimes, without values.

A `Storage` is what costs bytes: it tells its ledger when it is born and when the last tensor on it is gone. A `Tensor`
is a view of a storage. Offsets are not kept, since no byte count depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dims import Shape, Size, product
from weigh.dtypes import DType
from weigh.errors import WeighError
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import state

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.ghost.autograd import Node


Number = float
"""The built-in `float`, by a name that the method `Tensor.float` does not hide."""


class ShapeError(WeighError):
    """Shapes or dtypes that an op cannot take. In a bundled model this is a fault of ours, not of the user's input."""


class Storage:
    """Bytes on the device. Born into the ledger of the run that makes it, and reported dead to the same one."""

    __slots__ = ("handles", "ledger", "num_bytes", "number")

    def __init__(
        self, num_bytes: Size, op: str, shape: Shape, dtype: DType, purpose: str | None = None, unit: int | None = None
    ) -> None:
        self.num_bytes = num_bytes
        self.ledger: Ledger = state.ledger
        self.handles = 0
        """How many of the autograd engine's input buffers hold a tensor on this storage."""
        self.number = 0  # what costs nothing has no number; nor has, yet, what the ledger refuses
        if num_bytes.__class__ is not int or num_bytes:
            self.number = self.ledger.allocate(num_bytes, op, shape, dtype.name, purpose, unit)

    def __del__(self) -> None:
        if self.number:
            self.ledger.free(self.number)

    def move_to(self, ledger: Ledger) -> None:
        """Be on the device of another ledger from now on."""
        if self.ledger is ledger or not self.number:
            return
        old = self.ledger.allocations[self.number - 1]
        self.ledger.free(self.number)
        self.ledger = ledger
        self.number = ledger.allocate(self.num_bytes, old.op, old.shape, old.dtype, old.purpose, old.unit)
        self.relabel(old.purpose, old.path)

    def release(self) -> None:
        """`untyped_storage().resize_(0)`: the bytes go, the tensors on the storage stay."""
        if self.number:
            self.ledger.free(self.number)
            self.number = 0

    def claim(self, op: str, shape: Shape, dtype: DType, purpose: str, path: str) -> None:
        """`untyped_storage().resize_(n)`: the bytes come back, where they are gone."""
        if not self.number:
            self.number = self.ledger.allocate(self.num_bytes, op, shape, dtype.name, purpose, None)
            self.relabel(purpose, path)

    @property
    def unit(self) -> int | None:
        """The repeated block that owns the storage."""
        return self.ledger.allocations[self.number - 1].unit if self.number else None

    @property
    def path(self) -> str:
        """The parameter's name, or the module in which the storage was made."""
        return self.ledger.allocations[self.number - 1].path if self.number else ""

    @property
    def purpose(self) -> str:
        """What the storage is for; nothing, where it costs nothing."""
        return self.ledger.allocations[self.number - 1].purpose if self.number else ""

    def relabel(self, purpose: str, path: str | None = None) -> None:
        """Say what the storage has become."""
        if self.number:
            self.ledger.relabel(self.number, purpose, path)


class Tensor:
    """A view of a storage: shape, strides in elements (None where contiguous) and dtype; and its place in the graph.

    Methods are PyTorch's, and do what PyTorch's do to memory.
    """

    __slots__ = (
        "__weakref__",
        "dtype",
        "grad",
        "handles",
        "is_view",
        "node",
        "numel",
        "on_accumulated",
        "on_gradient",
        "output_nr",
        "requires_grad",
        "shape",
        "storage",
        "strides",
    )

    def __init__(self, storage: Storage, shape: Shape, strides: Shape | None, dtype: DType, numel: Size) -> None:
        self.storage = storage
        self.shape = shape
        self.strides = strides
        self.dtype = dtype
        self.numel = numel
        self.requires_grad = False
        self.node: Node | None = None
        self.output_nr = 0
        self.grad: Tensor | None = None
        self.handles = 0
        self.on_accumulated: Callable[[], None] | None = None
        """Called when a gradient has been accumulated into this leaf (`register_post_accumulate_grad_hook`)."""
        self.on_gradient: Callable[[], None] | None = None
        """Called when this leaf's gradient is complete, before it is accumulated (`register_hook`)."""
        self.is_view = False
        """Made by a view op. It keeps the tensor that it was made from, so that the storage never has one owner."""

    # -- facts
    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def num_bytes(self) -> Size:
        """Elements times the size of one. The storage can be larger (a slice) or smaller (an expanded view)."""
        return self.numel * self.dtype.itemsize

    @property
    def is_leaf(self) -> bool:
        """No op made it, as far as autograd knows."""
        return self.node is None

    def size(self, dim: int) -> Size:
        """The size of one dimension."""
        return self.shape[dim]

    def stride(self) -> Shape:
        """Strides in elements."""
        return self.strides if self.strides is not None else contiguous_strides(self.shape)

    def alias(self) -> Tensor:
        """The same view without its place in the graph (`detach()`)."""
        return Tensor(self.storage, self.shape, self.strides, self.dtype, self.numel)

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype.name})"

    # -- views and copies
    def detach(self) -> Tensor:
        return self.alias()

    def view(self, *shape: Size) -> Tensor:
        return ops.view(self, shape)

    def reshape(self, *shape: Size) -> Tensor:
        return ops.reshape(self, shape)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        return ops.transpose(self, dim0, dim1)

    def permute(self, *dims: int) -> Tensor:
        return ops.permute(self, dims)

    def t(self) -> Tensor:
        return ops.transpose(self, 0, 1)

    def expand(self, *shape: Size) -> Tensor:
        return ops.expand(self, shape)

    def unsqueeze(self, dim: int) -> Tensor:
        return ops.unsqueeze(self, dim)

    def squeeze(self, dim: int) -> Tensor:
        return ops.squeeze(self, dim)

    def narrow(self, dim: int, length: Size, start: Size = 0) -> Tensor:
        return ops.narrow(self, dim, length, start)

    def split(self, sizes: list[Size] | Size, dim: int = 0) -> list[Tensor]:
        return ops.split(self, sizes, dim)

    def contiguous(self) -> Tensor:
        return ops.contiguous(self)

    def clone(self) -> Tensor:
        return ops.clone(self)

    def to(self, dtype: DType) -> Tensor:
        return ops.to(self, dtype)

    def float(self) -> Tensor:
        from weigh.dtypes import FLOAT32

        return ops.to(self, FLOAT32)

    # -- arithmetic
    def __add__(self, other: Tensor | Number) -> Tensor:
        return ops.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Tensor | Number) -> Tensor:
        return ops.sub(self, other)

    def __mul__(self, other: Tensor | Number) -> Tensor:
        return ops.mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Tensor | Number) -> Tensor:
        return ops.div(self, other)

    def __neg__(self) -> Tensor:
        return ops.neg(self)

    def pow(self, exponent: Number) -> Tensor:
        return ops.pow(self, exponent)

    def mean(self, dim: int, keepdim: bool = False) -> Tensor:
        return ops.mean(self, dim, keepdim)

    def matmul(self, other: Tensor) -> Tensor:
        return ops.matmul(self, other)

    def backward(self, gradient: Tensor | None = None) -> None:
        """As `torch.Tensor.backward`; frees the graph as it goes."""
        from weigh.ghost.autograd import backward

        backward([self], [gradient])


def contiguous_strides(shape: Shape) -> Shape:
    """The strides of a contiguous tensor.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def normalise(shape: Shape, strides: Shape) -> Shape | None:
    """None where these strides make a contiguous tensor (sizes of one do not count), else the strides themselves."""
    expected: Size = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride == expected:
            expected = expected * size
        elif size != 1:
            return strides
    return None


def is_dense(tensor: Tensor) -> bool:
    """Non-overlapping and dense: some order of the dimensions makes it contiguous."""
    if tensor.strides is None:
        return True
    pairs = [(stride, size) for stride, size in zip(tensor.strides, tensor.shape, strict=True) if size != 1]
    expected: Size = 1
    while pairs:
        found = next((p for p in pairs if p[0] == expected), None)
        if found is None:
            return False
        pairs.remove(found)
        expected = expected * found[1]
    return True


def empty(
    shape: Shape,
    dtype: DType,
    op: str,
    strides: Shape | None = None,
    purpose: str | None = None,
    unit: int | None = None,
) -> Tensor:
    """A new tensor on a new storage. Only ops call this; model code may not allocate."""
    numel = product(shape)
    return Tensor(Storage(numel * dtype.itemsize, op, shape, dtype, purpose, unit), shape, strides, dtype, numel)


from weigh.ghost import ops  # noqa: E402  the methods above are thin names for the ops, which need the class

__all__ = ["ShapeError", "Storage", "Tensor", "contiguous_strides", "empty", "is_dense", "normalise", "product"]
