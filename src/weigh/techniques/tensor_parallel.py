"""Tensor parallelism: linear layers cut over ranks, as `parallelize_module` of PyTorch's DTensor does it (2.13).

A column-parallel layer (`ColwiseParallel`) has a share of the outputs: every rank reads the whole input, and the
input's gradient, of which each rank has a part, is summed over the ranks. A row-parallel layer (`RowwiseParallel`) has
a share of the inputs: its output is summed. Sums are functional collectives, into new tensors
(`_functional_collectives.py`). Which layers are cut is said by transformers' plans (`tensor_plans`); everything else is
on every rank. Where a plan wants whole outputs, or cuts a whole input, each rank gathers or cuts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from weigh.dims import Shape
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.tensor_plans import COLUMN, COLUMN_WHOLE, PLANS, ROW, ROW_WHOLE
from weigh.trace.events import WEIGHT


@dataclass(frozen=True, slots=True)
class TensorParallel(Technique):
    """Linear layers cut over ranks; each micro-batch is on all of them."""

    world: int = 2
    """Ranks that share each layer."""

    @property
    def divides(self) -> bool:
        """A rank holds its rows or columns."""
        return True

    @property
    def materialises(self) -> bool:
        """The pieces are all that a rank needs: `from_pretrained(tp_plan="auto")` loads no others."""
        return True

    def apply(self, model: Module) -> None:
        """Cut the layers of the family's plan.

        Raises:
            NotModelledError: the family has no plan.
            UsageError: the ranks do not divide the heads or a layer's width.
        """
        plan = PLANS.get(getattr(model, "model_type", ""))
        if plan is None:
            raise NotModelledError(f"tensor parallelism of {type(model).__name__}", where="tensor")
        for block in [m for m in model.modules() if m.role == nn.BLOCK]:
            for path, style in plan.items():
                *parents, name = path.split(".")
                parent: Any = block
                for part in parents:
                    parent = getattr(parent, part)
                layer = getattr(parent, name)
                if style in (COLUMN, ROW):
                    _check_heads(parent, layer, style, self.world)
                with inside_unit(block.unit):
                    _cut(layer, style, self.world)
                layer.wrap_in(partial(_FORMS[style], layer=layer, world=self.world))


def _check_heads(attention: Module, layer: nn.Linear, style: str, world: int) -> None:
    """What is computed on a rank before outputs are gathered is computed of whole heads: views ask for them."""
    width = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    size = layer.weight.shape[0 if style == COLUMN else 1]
    if width is None or not isinstance(size, int) or size % (width * world) == 0:
        return
    what = f"{world} ranks do not divide the {size // width} heads of {layer.path}"
    raise UsageError(what, where="tensor", hint="Give a divisor.")


def _cut(layer: nn.Linear, style: str, world: int) -> None:
    """`distribute_tensor` of the layer's parameters: every rank's piece, of which this rank keeps a copy."""
    axis = 0 if style in (COLUMN, COLUMN_WHOLE) else 1
    size = layer.weight.shape[axis]
    if not isinstance(size, int) or size % world:
        raise UsageError(
            f"{world} ranks do not divide the {size} {'outputs' if axis == 0 else 'inputs'} of {layer.path}",
            where="tensor",
            hint="Give a divisor.",
        )
    layer.weight = _piece(layer.weight, axis, world)
    if layer.bias is not None and axis == 0:
        layer.bias = _piece(layer.bias, 0, world)


def _piece(whole: Tensor, axis: int, world: int) -> Tensor:
    shape: Shape = tuple(s // world if i == axis else s for i, s in enumerate(whole.shape))
    scatter_list = []
    if axis:  # pieces of columns are not contiguous, and are copied to be
        scatter_list = [empty(shape, whole.dtype, "aten::clone", purpose=WEIGHT) for _ in range(world)]
    mine = empty(shape, whole.dtype, "aten::empty_like", purpose=WEIGHT)
    mine.storage.relabel(WEIGHT, whole.storage.path)
    mine.requires_grad = whole.requires_grad
    del scatter_list
    return mine


def _column(forward: Any, x: Tensor, layer: nn.Linear, world: int) -> Tensor:  # noqa: ARG001  as the others are called
    out: Tensor = forward(apply(CopyToRanks, x))
    return out


def _row(forward: Any, x: Tensor, layer: nn.Linear, world: int) -> Tensor:  # noqa: ARG001
    """The bias would be summed too: every rank adds its part of it."""
    whole = layer.bias
    if whole is not None:
        layer.bias = apply(PartOfBias, whole)
    out: Tensor = forward(x)
    layer.bias = whole
    return apply(ReduceFromRanks, out)  # type: ignore[no-any-return]


def _column_whole(forward: Any, x: Tensor, layer: nn.Linear, world: int) -> Tensor:
    out: Tensor = apply(GatherFromRanks, _column(forward, x, layer, world), ranks=world)
    return out


def _row_whole(forward: Any, x: Tensor, layer: nn.Linear, world: int) -> Tensor:
    return _row(forward, apply(SplitToRanks, x, ranks=world), layer, world)


_FORMS = {COLUMN: _column, ROW: _row, COLUMN_WHOLE: _column_whole, ROW_WHOLE: _row_whole}


def all_reduce(x: Tensor) -> Tensor:
    """The sum over the ranks, in a new tensor."""
    out = empty(x.shape, x.dtype, "_c10d_functional::all_reduce")
    state.ledger.call("_c10d_functional::all_reduce", x.numel, x.num_bytes, x.num_bytes)
    return out


class CopyToRanks(Op):
    """The same tensor on every rank; its gradient is the sum of what the ranks have of it."""

    name = "copy_to_ranks"
    source = "torch/distributed/tensor/_api.py, class _FromTorchTensor"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [all_reduce(grad)]


class PartOfBias(Op):
    """`bias / ranks`, which summed over the ranks is the bias; its gradient is the same on every rank."""

    name = "part_of_bias"
    source = "torch/distributed/tensor/placement_types.py, Partial._partition_value"

    @staticmethod
    def forward(ctx: Any, bias: Tensor) -> Tensor:
        return empty(bias.shape, bias.dtype, "aten::div")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad]


class ReduceFromRanks(Op):
    """The sum of what the ranks have; its gradient is the same on every rank."""

    name = "reduce_from_ranks"
    source = "torch/distributed/tensor/_redistribute.py: a partial tensor made whole"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad]


def _all_gather(x: Tensor, ranks: int) -> Tensor:
    """All ranks' pieces of the last dimension: gathered one after the other, and put side by side."""
    whole: Shape = (*x.shape[:-1], x.shape[-1] * ranks)
    gathered = empty((x.shape[0] * ranks, *x.shape[1:]), x.dtype, "_c10d_functional::all_gather_into_tensor")
    state.ledger.call("_c10d_functional::all_gather_into_tensor", 0, x.num_bytes, gathered.num_bytes)
    out = empty(whole, x.dtype, "aten::cat")
    del gathered
    return out


def _own_piece(x: Tensor, ranks: int) -> Tensor:
    """A rank's piece of the last dimension, made contiguous."""
    return empty((*x.shape[:-1], x.shape[-1] // ranks), x.dtype, "aten::clone")


class GatherFromRanks(Op):
    """Pieces made whole; of the gradient each rank takes its piece."""

    name = "gather_from_ranks"
    source = "torch/distributed/tensor/_redistribute.py: Shard(-1) to Replicate()"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, ranks: int) -> Tensor:
        if ctx:
            ctx.meta = ranks
        return _all_gather(x, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [_own_piece(grad, ctx.meta)]


class SplitToRanks(Op):
    """A rank's piece; the gradients are made whole."""

    name = "split_to_ranks"
    source = "torch/distributed/tensor/_redistribute.py: Replicate() to Shard(-1)"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, ranks: int) -> Tensor:
        if ctx:
            ctx.meta = ranks
        return _own_piece(x, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [_all_gather(grad, ctx.meta)]
