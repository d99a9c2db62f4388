"""The graph that `torch.compile` makes of a forward pass and its backward pass, after decompositions.

A node is one operation of aten or prims on whole tensors, with what AOTAutograd's partitioner and TorchInductor need to
know of it: what it reads, the size of what it makes, and the class of its operation.
"""

from __future__ import annotations

from collections.abc import Sequence

from weigh.dims import Shape, product
from weigh.dtypes import DType

VIEW, FUSIBLE, CONCATENATION, OTHER = "view", "fusible", "concatenation", "other"
"""What the partitioner tells apart (`get_default_op_list`): views; operations that it may run again and that fuse with
what is around them; `cat`, into which others fuse and which fuses into none; the rest."""

VIEWS = frozenset(("view", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "alias"))
REDUCTIONS = frozenset(("sum", "mean", "amax", "var", "any"))
ALIASES = frozenset(("view_as_complex", "view_as_real"))
"""Views that the partitioner does not know, and TorchInductor calls as it calls a library."""
FUSIBLES = REDUCTIONS | {
    *("add", "sub", "mul", "div", "pow", "neg", "rsqrt", "sqrt", "reciprocal", "exp", "log", "log1p", "cos", "sin"),
    *("tanh", "sigmoid", "relu", "erf", "where", "eq", "ne", "ge", "gt", "le", "lt", "bitwise_and", "bitwise_not"),
    *("abs", "clamp", "floor", "minimum", "expm1", "logical_or"),
    *("convert", "clone", "full", "iota", "gather", "var_mean", "part", "index"),
}
"""Operations that the partitioner may run again, and its fusible ones (it has a list, and all that are pointwise)."""
LOWERED = FUSIBLES | {
    *("embedding", "constant_pad", "slice_scatter", "select_scatter", "random", "seed", "fma", "cat", "tril"),
}
"""Operations that TorchInductor writes code for, where it can fuse them; it calls libraries for the rest."""

SOURCES = frozenset(("full", "iota", "seed"))
"""Operations that make something of nothing."""


class Node:
    """One operation, or an input (`op` is "input" or "tangent")."""

    __slots__ = ("dtype", "flops", "inputs", "number", "op", "path", "reduced", "shape", "users", "workspace")

    def __init__(self, number: int, op: str, inputs: tuple[Node, ...], shape: tuple[int, ...], dtype: DType | None):
        self.number = number
        """Its place in the graph."""
        self.op = op
        self.inputs = inputs
        self.shape = shape
        self.dtype = dtype
        """None for what returns several tensors."""
        self.users: list[Node] = []
        self.path = ""
        """The module that ran it."""
        self.flops: int | float = 0
        self.workspace: list[tuple[Shape, DType]] = []
        """What a library takes for itself while it runs: shapes and dtypes."""
        self.reduced: tuple[int, ...] = ()
        """The dimensions over which a reduction runs."""

    @property
    def num_bytes(self) -> int:
        """Of all its elements; nothing for what returns several tensors."""
        return product(self.shape) * self.dtype.itemsize if self.dtype is not None else 0  # type: ignore[return-value]

    @property
    def kind(self) -> str:
        """`VIEW`, `FUSIBLE`, `CONCATENATION` or `OTHER`."""
        if self.op in VIEWS:
            return VIEW
        if self.op == "cat":
            return CONCATENATION
        return FUSIBLE if self.op in FUSIBLES else OTHER

    def __repr__(self) -> str:
        return f"%{self.number} {self.op}{list(self.shape)}"


def is_fusible(first: Node, second: Node) -> bool:
    """The partitioner's `is_fusible`: `second`, which reads `first`, can be made in the same kernel."""
    if second.op == "cat":
        return True
    return first.kind in (VIEW, FUSIBLE) and second.kind in (VIEW, FUSIBLE)


DISTINCT = object()
"""The key of a node that is like no other."""


class Graph:
    """Nodes in the order in which they ran; equal ones are one (`fx_graph_cse`)."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._made: dict[object, Node] = {}
        self.path = ""
        self._within = "", 0

    def begin(self, name: str) -> None:
        """What is added from here on is what an operation is made of."""
        self._within = name, 0

    def add(
        self,
        op: str,
        inputs: Sequence[Node],
        shape: Shape | Sequence[int],
        dtype: DType | None,
        key: object = None,
        reduced: tuple[int, ...] = (),
    ) -> Node:
        """A node, or an equal one that is there already. Sizes are numbers: nothing compiled is run for many at once.

        The `key` stands for what inputs and shape do not say, constants above all. Without one it is the node's place
        in what its operation is made of.
        """
        name, place = self._within
        self._within = name, place + 1
        shape = tuple(int(size) for size in shape)  # type: ignore[arg-type]
        whole = op, tuple(n.number for n in inputs), shape, dtype, self._within if key is None else key, reduced
        if key is not DISTINCT and whole in self._made:
            return self._made[whole]
        node = Node(len(self.nodes), op, tuple(inputs), shape, dtype)
        node.path, node.reduced = self.path, reduced
        for one in dict.fromkeys(inputs):
            one.users.append(node)
        self.nodes.append(node)
        self._made[whole] = node
        return node
