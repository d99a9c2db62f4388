"""Where Megatron-LM keeps parameters, gradients and optimizer states: contiguous buffers, and shares of them.

Mirrors `distributed/param_and_grad_buffer.py`, `optimizer/distrib_optimizer.py` and `optimizer/optimizer.py` (0.17).
Per parameter: 2 bytes and a gradient of 4 (bf16; of 2 in fp16) on every rank; 4 for the main copy and 8 for Adam's
moments, of which the distributed optimizer keeps a share of the ranks that hold the same parameters: those of data and
context, or for experts their own. In its buffers parameters start at multiples of 64 elements, and buckets end at
multiples of 128 and of the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import lcm
from typing import Any
from weakref import ref

from weigh.dtypes import BFLOAT16, FLOAT32, INT16, UINT8, DType
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.records import dataclass
from weigh.runtimes.mcore.fp8 import is_fp8
from weigh.trace.events import GRADIENT, OPTIMIZER_STATE, WEIGHT

ALIGNMENT = 64
"""Elements, of where a parameter starts."""
DIVISOR = 128
"""Elements, of where a bucket ends."""
BUCKET, BUCKET_PER_RANK = 40_000_000, 1_000_000
"""Elements of a bucket, at least, where gradients are reduced while the backward pass runs."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the ranks that hold the same parameters share what stands beside them."""

    ranks: int = 1
    rank: int = 0
    distributed: bool = False
    """The distributed optimizer."""
    bucket_size: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A buffer: its elements with padding, and the elements of each parameter whose states this rank has."""

    numel: int
    shares: tuple[int, ...]


def layout(sizes: list[int], alone: list[bool], sharing: Sharing) -> Layout:
    """The buffer of parameters of these sizes, given in the model's order; `alone` ones have buckets of their own.

    >>> layout([100, 60], [False, False], Sharing(2, 0, True))
    Layout(numel=256, shares=(60, 64))
    """
    if not sharing.distributed:
        return Layout(sum(sizes), tuple(sizes))
    divisor = lcm(sharing.ranks, DIVISOR)
    buckets: list[tuple[int, int, list[tuple[int, int]]]] = []
    start, position, held = 0, 0, list[tuple[int, int]]()
    for size, single in zip(reversed(sizes), reversed(alone), strict=True):
        position = _round_up(position, ALIGNMENT)
        if single and held:
            end = _round_up(position, divisor)
            buckets.append((start, end, held))
            start, position, held = end, end, []
        held.append((position, position + size))
        position += size
        if single or (sharing.bucket_size is not None and position - start >= sharing.bucket_size):
            end = _round_up(position, divisor)
            buckets.append((start, end, held))
            start, position, held = end, end, []
    if held:
        buckets.append((start, _round_up(position, divisor), held))
    shares = []
    for start, end, held in buckets:
        width = (end - start) // sharing.ranks
        low = start + sharing.rank * width
        for begin, stop in held:
            part = min(stop, low + width) - max(begin, low)
            if part > 0:
                shares.append(part)
    return Layout(buckets[-1][1] if buckets else 0, tuple(shares))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def expanded(parameters: list[Parameter]) -> Iterator[Parameter]:
    """Every parameter of the model in its order: those of a block that stands for many come once for each."""
    for blocks, same in groupby(
        parameters, lambda p: next((part for part in p.place if isinstance(part, range)), None)
    ):
        group = list(same)
        for _ in range(len(blocks) if blocks is not None else 1):
            yield from group


class GradBuffer:
    """The gradients of one chunk's parameters (experts and others have one each), and the parameters' own buffer."""

    def __init__(self, parameters: list[Parameter], alone: set[int], dtype: DType, sharing: Sharing) -> None:
        every = list(expanded(parameters))
        sizes = [_whole(p) for p in every]
        self.layout = layout(sizes, [id(p.tensor) in alone for p in every], sharing)
        self.matrices = tuple(_is_matrix(p) for p in every)
        """Which of the parameters Muon orthogonalises."""
        self.grad_data = empty((self.layout.numel,), dtype, "aten::zeros", purpose=GRADIENT)
        self.grad_data.storage.relabel(GRADIENT, "grad_data")
        if sharing.distributed:
            first = parameters[0].tensor
            data = empty((self.layout.numel,), UINT8 if is_fp8(first) else first.dtype, "aten::zeros", purpose=WEIGHT)
            data.storage.relabel(WEIGHT, "param_data")
            for parameter in parameters:
                parameter.tensor.storage = data.storage
        for parameter in parameters:
            parameter.tensor.on_accumulated = Drop(parameter.tensor, self)

    def beside(self, name: str, purpose: str, dtype: DType = FLOAT32) -> list[Tensor]:
        """A tensor beside the share of each parameter that this rank has."""
        return beside(self.layout.shares, name, purpose, dtype)


def beside(shares: tuple[int, ...], name: str, purpose: str, dtype: DType = FLOAT32) -> list[Tensor]:
    """A tensor for each share."""
    made = [empty((share,), dtype, "aten::empty_like", purpose=purpose) for share in shares]
    for each in made:
        each.storage.relabel(purpose, name)
    return made


def _whole(parameter: Parameter) -> int:
    numel = parameter.numel
    assert isinstance(numel, int)
    return numel


def _is_matrix(parameter: Parameter) -> bool:
    """`is_managed_by_layer_wise_optimizer`: two dimensions (of one expert), and no `is_embedding_or_output_parameter`.

    Learned positions have no such mark, and are orthogonalised.
    """
    return parameter.tensor.ndim >= 2 and {"word_embeddings", "output_layer"}.isdisjoint(parameter.place)


class Drop:
    """The hook of `DistributedDataParallel`: add the gradient to the main one, and let go of it."""

    def __init__(self, tensor: Tensor, buffer: Any) -> None:
        self.tensor = ref(tensor)
        self.buffer = buffer

    def __call__(self) -> None:
        tensor = self.tensor()
        assert tensor is not None
        tensor.grad = None


def _hook(parameter: Parameter) -> Drop:
    hook = parameter.tensor.on_accumulated
    assert isinstance(hook, Drop)
    return hook


class MixedPrecisionOptimizer(Optimizer):
    """fp32 copies of this rank's share of the parameters, and Adam's two moments from the first step on."""

    def __init__(self, copies_gradients: bool, scales_loss: bool, moments: int) -> None:
        super().__init__(Choice("adamw", "fused"))
        self.buffers: list[Any] = []
        self.copies_gradients = copies_gradients
        self.scale_is_initial = scales_loss
        self.moments = moments
        self.main_params: list[Tensor] = []
        self.main_grads: list[Tensor] = []
        self.adam_states: list[Tensor] = []

    def own(self, parameters: list[Parameter]) -> None:
        """Make the main parameters, as the constructor does."""
        self.parameters = parameters
        self.buffers = list({id(hook.buffer): hook.buffer for hook in map(_hook, parameters)}.values())
        self.main_params = self.copies()

    def copies(self) -> list[Tensor]:
        """fp32 copies of the parameters."""
        return [t for b in self.buffers for t in b.beside("main_params", OPTIMIZER_STATE)]

    def prepare(self) -> None:
        """Adam's moments."""
        names = ("exp_avg", "exp_avg_sq")[: self.moments]
        self.adam_states = [t for b in self.buffers for name in names for t in b.beside(name, OPTIMIZER_STATE)]

    def step(self) -> None:
        """Gradients of 16 bits are copied to fp32; the update itself makes nothing.

        With fp16 the first step is skipped: at the initial loss scale of 2^32 its gradients overflow.
        """
        if self.copies_gradients:
            self.main_grads = [t for b in self.buffers for t in b.beside("main_grads", GRADIENT)]
        overflows, self.scale_is_initial = self.scale_is_initial, False
        if not self.adam_states and not overflows:
            self.prepare()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Fill the buffers with zeros; drop the fp32 copies."""
        self.main_grads = []


class Muon(MixedPrecisionOptimizer):
    """One momentum for matrices, Adam's two moments for the rest; every rank has all of its parameters' states.

    Left out: what orthogonalising makes for one matrix at a time.
    """

    def __init__(self, copies_gradients: bool) -> None:
        super().__init__(copies_gradients, scales_loss=False, moments=2)

    def prepare(self) -> None:
        """The momentum of each matrix, and the moments of the rest."""
        self.adam_states = []
        for buffer in self.buffers:
            sizes = list(zip(buffer.layout.shares, buffer.matrices, strict=True))
            rest = tuple(size for size, matrix in sizes if not matrix)
            self.adam_states += beside(
                tuple(size for size, matrix in sizes if matrix), "momentum_buffer", OPTIMIZER_STATE
            )
            for name in ("exp_avg", "exp_avg_sq"):
                self.adam_states += beside(rest, name, OPTIMIZER_STATE)


class PrecisionAwareOptimizer(MixedPrecisionOptimizer):
    """Transformer Engine's Adam with moments in any dtype, which takes gradients as the buffer has them.

    Of fp32 parameters it holds what their bf16 lacks (`store_param_remainders`).
    """

    def __init__(self, exp_avg: DType, exp_avg_sq: DType) -> None:
        super().__init__(copies_gradients=False, scales_loss=False, moments=2)
        self.dtypes = {"master_param": INT16, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    def copies(self) -> list[Tensor]:
        """None: what they would add comes with the first step."""
        return []

    def prepare(self) -> None:
        """The remainders, and Adam's moments."""
        self.adam_states = [
            t
            for b in self.buffers
            for name, dtype in self.dtypes.items()
            for t in b.beside(name, OPTIMIZER_STATE, dtype)
        ]


def main_grad_dtype(dtype: DType, reduced_in_bf16: bool) -> DType:
    """`accumulate_allreduce_grads_in_fp32`: with bf16, unless `--grad-reduce-in-bf16` says otherwise."""
    return FLOAT32 if dtype is BFLOAT16 and not reduced_in_bf16 else dtype
