"""GGML's graphs: tensors that are sizes, strides and operands, and the operations that llama.cpp's graphs are made of.

Read: `ggml/src/ggml.c` (shapes of results, `ggml_build_forward_expand`) of llama.cpp 4227c9be (August 2025) to
af6528e6d (2026). A tensor's sizes are GGML's, `ne[0]` first. Nothing is computed and no value is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32, INT32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weigh.dtypes import DType
    from weigh.runtimes.llama_cpp.allocator import Lives

Ne = tuple[int, int, int, int]

IN_PLACE = frozenset(
    "FILL SCALE DIAG_MASK_ZERO DIAG_MASK_INF ADD ADD_ID ADD1 SUB MUL DIV SQR SQRT LOG UNARY ROPE RMS_NORM CLAMP "
    "SOFT_MAX".split()
)
"""Operations that may write over an operand (`ggml_op_can_inplace`)."""
VIEWS = frozenset(("NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"))
"""Operations that do nothing (`ggml_is_view_op`)."""


class Tensor:
    """A node or a leaf."""

    name = ""
    """Of a weight, or of a copy of one."""
    is_input = is_output = is_weight = False
    buffer: str | None = None
    """The buffer that it lies in, if it is none of the graph's own."""
    backend: int | None = None
    """The backend that it was put on by hand."""
    on = -1
    """The backend that the scheduler chose; -1 while there is none."""
    layer = -1
    """The place of its layer among those that were built; -1 for what comes before them."""
    is_there = False
    """It is in the graph."""
    wanted = -1
    """Of a copy: the layer that reads it first, by its place as `layer`."""
    slot: tuple[Lives, int] | None = None
    """Where the allocator has put it."""
    children = views = 0
    """Readers and views that are still to come, as the allocator counts them."""

    def __init__(
        self,
        op: str,
        ne: Ne,
        dtype: DType,
        src: tuple[Tensor, ...] = (),
        view: Tensor | None = None,
        nb: Ne | None = None,
    ) -> None:
        self.op = op
        self.ne = ne
        self.dtype = dtype
        self.nb = strides(ne, dtype) if nb is None else nb
        self.src = src
        self.view: Tensor | None = None if view is None else (view.view or view)
        """Whose memory it is, if not its own."""

    @property
    def num_bytes(self) -> int:
        """From its first byte to its last (`ggml_nbytes`)."""
        ne, nb, block = self.ne, self.nb, self.dtype.elements_per_block
        if 0 in ne:
            return 0
        first = self.dtype.bytes_per_block + (ne[0] - 1) * nb[0] if block == 1 else ne[0] * nb[0] // block
        return first + (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]

    @property
    def elements(self) -> int:
        """How many numbers."""
        a, b, c, d = self.ne
        return a * b * c * d

    @property
    def is_contiguous(self) -> bool:
        """Laid end to end."""
        return self.nb == strides(self.ne, self.dtype)


def strides(ne: Ne, dtype: DType) -> Ne:
    """Bytes from an element to the next along each dimension, laid end to end."""
    first = dtype.bytes_per_block
    second = first * (ne[0] // dtype.elements_per_block)
    return first, second, second * ne[1], second * ne[1] * ne[2]


def row(dtype: DType, elements: int) -> int:
    """Bytes of a row (`ggml_row_size`)."""
    return elements // dtype.elements_per_block * dtype.bytes_per_block


def new(ne: Iterable[int], dtype: DType = FLOAT32) -> Tensor:
    """A leaf."""
    return Tensor("NONE", four(ne), dtype)


def given(ne: Iterable[int], dtype: DType = FLOAT32) -> Tensor:
    """A leaf that is written before the graph is computed (`ggml_set_input`)."""
    made = new(ne, dtype)
    made.is_input = True
    return made


def four(ne: Iterable[int]) -> Ne:
    """Four sizes, 1 where fewer are given."""
    a, b, c, d = (*ne, 1, 1, 1, 1)[:4]
    return a, b, c, d


def like(op: str, a: Tensor, *more: Tensor | None) -> Tensor:
    """Of `a`'s sizes and format: sums, products, norms, activations, softmax, rotations, sorting."""
    return Tensor(op, a.ne, a.dtype, (a, *(t for t in more if t is not None)))


def mul_mat(a: Tensor, b: Tensor) -> Tensor:
    """A row of the result for each of `b`'s: `a`'s rows times it."""
    return Tensor("MUL_MAT", (a.ne[1], b.ne[1], b.ne[2], b.ne[3]), FLOAT32, (a, b))


def mul_mat_id(experts: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    """Each token's rows through the experts that were chosen for it."""
    return Tensor("MUL_MAT_ID", (experts.ne[1], ids.ne[0], b.ne[2], 1), FLOAT32, (experts, b, ids))


def get_rows(a: Tensor, rows: Tensor) -> Tensor:
    """Rows by number, in fp32."""
    dtype = INT32 if a.dtype is INT32 else FLOAT32
    return Tensor("GET_ROWS", (a.ne[0], rows.ne[0], rows.ne[1], rows.ne[2]), dtype, (a, rows))


def set_rows(into: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """Rows written into a tensor, of which the result is a view."""
    return Tensor("SET_ROWS", into.ne, into.dtype, (rows, numbers, into), view=into, nb=into.nb)


def copy_into(a: Tensor, into: Tensor) -> Tensor:
    """`ggml_cpy`: the result is a view of where it was copied to."""
    return Tensor("CPY", into.ne, into.dtype, (a, into), view=into, nb=into.nb)


def cast(a: Tensor, dtype: DType) -> Tensor:
    """Another format, in memory of its own."""
    return Tensor("CPY", a.ne, dtype, (a,))


def cont(a: Tensor, ne: Iterable[int] | None = None) -> Tensor:
    """Laid end to end."""
    return Tensor("CONT", a.ne if ne is None else four(ne), a.dtype, (a,))


def view(a: Tensor, ne: Iterable[int], nb: Iterable[int] = ()) -> Tensor:
    """A part of it; `nb` are the strides from the second dimension on, laid end to end where none are given."""
    sizes = four(ne)
    first, second, third, fourth = strides(sizes, a.dtype)
    given_strides = tuple(nb)
    if given_strides:
        second = given_strides[0]
        third = given_strides[1] if len(given_strides) > 1 else second * sizes[1]
        fourth = given_strides[2] if len(given_strides) > 2 else third * sizes[2]
    return Tensor("VIEW", sizes, a.dtype, (a,), view=a, nb=(first, second, third, fourth))


def reshape(a: Tensor, *ne: int) -> Tensor:
    """Other sizes of a tensor that is laid end to end."""
    return Tensor("RESHAPE", four(ne), a.dtype, (a,), view=a)


def permute(a: Tensor, *axes: int) -> Tensor:
    """Its dimensions, each in the place that `axes` says."""
    ne, nb = [0] * 4, [0] * 4
    for index, axis in enumerate(axes):
        ne[axis], nb[axis] = a.ne[index], a.nb[index]
    return Tensor("PERMUTE", four(ne), a.dtype, (a,), view=a, nb=four(nb))


def transpose(a: Tensor) -> Tensor:
    """Rows and columns exchanged."""
    (a0, a1, a2, a3), (b0, b1, b2, b3) = a.ne, a.nb
    return Tensor("TRANSPOSE", (a1, a0, a2, a3), a.dtype, (a,), view=a, nb=(b1, b0, b2, b3))


def sum_rows(a: Tensor) -> Tensor:
    """One number a row."""
    return Tensor("SUM_ROWS", (1, *a.ne[1:]), a.dtype, (a,))


def repeat(a: Tensor, *ne: int) -> Tensor:
    """It, as often as fits."""
    return Tensor("REPEAT", four(ne), a.dtype, (a,))


def concat(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """One after the other."""
    ne = tuple(x + y if i == axis else x for i, (x, y) in enumerate(zip(a.ne, b.ne, strict=True)))
    return Tensor("CONCAT", four(ne), a.dtype, (a, b))


def pad(a: Tensor, columns: int) -> Tensor:
    """Longer rows."""
    return Tensor("PAD", (a.ne[0] + columns, *a.ne[1:]), a.dtype, (a,))


def top_k(a: Tensor, k: int) -> Tensor:
    """The numbers of the `k` largest of each row: the first of all of them sorted (`ggml_argsort_top_k`)."""
    sorted_rows = Tensor("ARGSORT", a.ne, INT32, (a,))
    return view(sorted_rows, (k, *a.ne[1:]), sorted_rows.nb[1:])


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None = None) -> Tensor:
    """Attention in one operation."""
    src = tuple(t for t in (q, k, v, mask, sinks) if t is not None)
    return Tensor("FLASH_ATTN_EXT", (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), FLOAT32, src)


class Graph:
    """Nodes in the order in which they are computed, and leaves."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.outputs: list[Tensor] = []
        """What the first layer reads, and what each layer hands on."""

    def expand(self, tensor: Tensor) -> None:
        """Operands first, from left to right, then the tensor itself, each once (`ggml_build_forward_expand`)."""
        if tensor.is_there:
            return
        tensor.is_there = True
        for operand in tensor.src:
            if not operand.is_there:
                self.expand(operand)
        (self.leaves if tensor.op == "NONE" else self.nodes).append(tensor)

    def number_layers(self) -> None:
        """Every node is told which of the layers that were built it is in; what follows the last is in that."""
        ends, number = [id(tensor) for tensor in self.outputs[:-1]], -1
        for node in self.nodes:
            node.layer = number
            if number + 1 < len(ends) and id(node) == ends[number + 1]:
                number += 1
