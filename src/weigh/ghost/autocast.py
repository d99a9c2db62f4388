"""Autocast: which inputs are cast, and how long the casts live.

The weight cache belongs to the outermost autocast. It keeps the cast of every fp32 leaf that requires a gradient until
that autocast exits, with the cast's place on the tape (autocast_mode.cpp, `cached_cast`). Other casts live as long as
whoever uses them: an activation is cast anew for every op that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from weigh.dtypes import FLOAT32, FLOAT64, DType
from weigh.ghost import ops
from weigh.ghost.ops.table import CUDA_FP32, FP32, LOWER
from weigh.ghost.state import by_owner, enable_grad, state
from weigh.ghost.tensor import Tensor


class Autocast:
    """The casts that one autocast region makes, and the cache it keeps."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}

    def cast(self, policy: str, tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The inputs of an op under the policy of its list (see `weigh.ghost.ops.table`).

        The last is cast first: the casts are the arguments of one C++ call, which GCC evaluates from the right.
        """
        if policy == CUDA_FP32 and state.overrides.get("device") == "cpu":
            return tensors
        dtype = self.dtype if policy == LOWER else FLOAT32
        cast = [self._cast(t, dtype) for t in reversed(tensors)]
        return tuple(reversed(cast))

    def widest(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inputs of an op that wants them all in the widest of their dtypes (`promote_type`)."""
        if any(t.dtype is FLOAT32 for t in tensors):
            return self.cast(FP32, tuple(tensors))  # type: ignore[return-value]
        return tuple(tensors)

    def _cast(self, tensor: Tensor | None, dtype: DType) -> Tensor | None:
        if tensor is None or tensor.dtype is dtype or tensor.dtype.kind != "float" or tensor.dtype is FLOAT64:
            return tensor
        if (
            dtype is not self.dtype
            or tensor.dtype is not FLOAT32
            or not tensor.requires_grad
            or tensor.node is not None
        ):
            return ops.to(tensor, dtype)
        found = self.cache.get(id(tensor))
        if found is None:
            with enable_grad():  # a region without gradients may be the first to want the weight, not the last
                found = self.cache[id(tensor)] = (tensor, ops.to(tensor, dtype))
        return found[1]


@contextmanager
def autocast(dtype: DType | None) -> Iterator[None]:
    """As `torch.autocast(device, dtype)`; None switches autocast off inside.

    A region inside another of the same dtype shares the outermost one's cache, which is emptied when that one exits.
    """
    before = state.autocast
    if dtype is None:
        state.autocast = None
    elif before is None or before.dtype is not dtype:
        state.autocast = Autocast(dtype)
    mine = state.autocast if state.autocast is not before else None
    try:
        yield
    finally:
        state.autocast = before
        if mine is not None:
            with by_owner():
                mine.cache.clear()
