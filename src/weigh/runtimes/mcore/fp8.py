"""Linear layers in FP8 as Transformer Engine runs them: what is quantized, kept in which direction, and for how long.

Read: Transformer Engine 2.11 (`pytorch/module/linear.py`, `layernorm_linear.py`, `grouped_linear.py`, `base.py`,
`pytorch/tensor`). Products want both operands with the summed dimension last, so what is used in two products has its
data in rows and in columns, one byte an element each; with scaling by tensors GPUs from compute capability 10 on take
rows for both. An input keeps the columns for its weight's gradient; where it is one share of a sequence that is
gathered again, scaling by tensors keeps the rows. Weights of 16 bits have both as a workspace that stays (the first
micro-batch fills it); weights that are FP8 themselves have their columns from the first backward pass on.

Scales: one number a tensor ("delayed", "tensorwise"), one byte for 32 elements ("mxfp8"), one fp32 for 128 of a row and
for 128 x 128 of a weight ("blockwise"). Left out: FP8 inside of attention, NVFP4.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size, product, round_up
from weigh.dtypes import FLOAT32, UINT8, DType
from weigh.ghost.ops.table import Op
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.runtimes.mcore import rows
from weigh.trace.events import BUFFER, WEIGHT, WORKSPACE

RECIPES = ("delayed", "tensorwise", "mxfp8", "blockwise")
"""`--fp8-recipe`."""
BY_TENSOR = ("delayed", "tensorwise")
SECOND_LAYOUT = 10
"""From this compute capability on products take FP8 data in any order, where a tensor has one scale."""


@dataclass(frozen=True, slots=True)
class Fp8:
    """How layers compute in FP8."""

    recipe: str = "delayed"
    capability: int = 9
    """Major compute capability."""
    params: bool = False
    """Weights are FP8 themselves (`--fp8-param-gather`)."""
    amax_history: int = 1
    """Steps whose largest values "delayed" remembers (`--fp8-amax-history-len`)."""

    @property
    def columns_apart(self) -> bool:
        """Columns are data of their own."""
        return self.recipe not in BY_TENSOR or self.capability < SECOND_LAYOUT

    def quantized(self, shape: Shape, columns: bool = False, weight: bool = False) -> list[Tensor]:
        """The data of a tensor in one direction, and its scales."""
        width = shape[-1]
        length = product(shape) // width
        op = f"te::quantize_{self.recipe}"
        return [empty(shape, UINT8, op), *self._scales(length, width, columns, weight, op)]

    def _scales(self, length: Size, width: Size, columns: bool, weight: bool, op: str) -> list[Tensor]:
        if self.recipe == "mxfp8":
            across = (round_up(-(-length // 32), 4), round_up(width, 128))
            along = (round_up(length, 128), round_up(-(-width // 32), 4))
            return [empty(across if columns else along, UINT8, op)]
        if self.recipe == "blockwise":
            if columns:
                length, width = width, length
            every = -(-length // 128) if weight else length
            return [empty((-(-width // 128), round_up(every, 4)), FLOAT32, op)]
        return [] if columns else [empty((1,), FLOAT32, op)]


class Weight:
    """A weight's data in rows and in columns, as far as they are not the parameter itself."""

    def __init__(self, fp8: Fp8) -> None:
        self.fp8 = fp8
        self.rows: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.made = False
        self.amax: list[Tensor] = []
        if fp8.recipe == "delayed":
            self.amax = [empty((fp8.amax_history, n), FLOAT32, "te::fp8_meta", purpose=BUFFER) for n in (3, 2)]

    def forward(self, weight: Tensor) -> None:
        """Workspaces, with the first micro-batch."""
        if not self.made and not self.fp8.params:
            self.rows = self._kept(weight, False)
            if self.fp8.columns_apart:
                self.columns = self._kept(weight, True)
        self.made = True

    def backward(self, weight: Tensor) -> None:
        """The columns of a weight that is FP8 itself."""
        if self.fp8.params and self.fp8.columns_apart and not self.columns:
            self.columns = self._kept(weight, True)

    def _kept(self, weight: Tensor, columns: bool) -> list[Tensor]:
        made = self.fp8.quantized(weight.shape, columns, weight=True)
        for each in made:
            each.storage.relabel(WORKSPACE)
        return made


def parameter(shape: Shape, dtype: DType) -> Tensor:
    """A weight of one byte an element that autograd sees in `dtype` (`Float8Tensor`)."""
    data = empty(shape, UINT8, "parameter", purpose=WEIGHT)
    made = Tensor(data.storage, shape, None, dtype, product(shape))
    made.requires_grad = True
    return made


def is_fp8(weight: Tensor) -> bool:
    """Whether a parameter is FP8 itself."""
    return weight.dtype.itemsize > 1 and weight.storage.num_bytes == weight.numel


class Fp8Linear(Op):
    """`rows.Linear` in FP8: saves its input's columns, or the rows of its share of the sequence."""

    name = "te::fp8_linear"
    source = "transformer_engine/pytorch/module/linear.py, layernorm_linear.py, grouped_linear.py"

    @classmethod
    def forward(
        cls,
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        *,
        fp8: Fp8,
        held: Weight,
        gathers: int,
        scatters: int,
        fused: bool,
        overlapped: bool,
        scratch: rows.Scratch,
    ) -> Tensor:
        row = fp8.quantized(x.shape)
        again = gathers > 1 and fp8.recipe in BY_TENSOR
        column = fp8.quantized(x.shape, columns=True) if ctx and fp8.columns_apart and not again else []
        total = _gathered(fp8, x.shape, gathers, overlapped)
        held.forward(weight)
        if ctx:
            ctx.meta = x.shape, x.dtype, fp8, held, gathers, scatters, fused, overlapped, scratch
            ctx.save(weight)
            for each in column or row:
                ctx.save_output(each)
        shape = (x.shape[0] * gathers, *x.shape[1:-1], weight.shape[-2])
        out = None if scatters > 1 and overlapped else empty(shape, x.dtype, cls.name)
        del total, row, column
        if out is not None and scatters == 1:
            return out
        return empty((shape[0] // scatters, *shape[1:]), x.dtype, "nccl::reduce_scatter")

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        shape, dtype, fp8, held, gathers, scatters, fused, overlapped, scratch = ctx.meta
        weight = ctx.unpack()[0]
        whole = (grad.shape[0] * scatters, *grad.shape[1:])
        row = fp8.quantized(grad.shape)
        total_row = _gathered(fp8, grad.shape, scatters, overlapped)
        column = fp8.quantized(whole, columns=True) if fp8.columns_apart else []
        x_row = _gathered(fp8, shape, gathers, overlapped)
        held.backward(weight)
        x_total = (shape[0] * gathers, *shape[1:])
        for needed in ctx.needs[:2]:
            if needed:
                rows.note(cls.name, 2 * product(whole) * weight.shape[-1], grad, weight)
        dgrad = None
        if ctx.needs[0]:
            dgrad = None if gathers > 1 and overlapped else empty(x_total, dtype, cls.name)
            if gathers > 1:
                dgrad = empty(shape, dtype, "nccl::reduce_scatter")
        x_column = fp8.quantized(x_total, columns=True) if gathers > 1 and fp8.columns_apart else []
        wgrad = None
        if ctx.needs[1]:
            wgrad = cls.stand_in(weight, scratch) if fused else empty(weight.shape, dtype, cls.name)
        del row, total_row, column, x_row, x_column
        return [dgrad, wgrad]

    @staticmethod
    def stand_in(weight: Tensor, scratch: rows.Scratch) -> Tensor:
        """What autograd is handed for a gradient that was added elsewhere: of one expert, where there are many."""
        one = rows.stand_in(weight.shape[-2:], weight, scratch)
        return Tensor(one.storage, weight.shape, None, weight.dtype, weight.numel)

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[0].shape[-1])  # type: ignore[no-any-return]


def _gathered(fp8: Fp8, shape: Shape, ranks: int, overlapped: bool) -> list[Tensor]:
    """The whole sequence in FP8; overlapped with a product, it is in a user buffer outside of PyTorch's allocator."""
    if ranks == 1 or overlapped:
        return []
    return fp8.quantized((shape[0] * ranks, *shape[1:]))
