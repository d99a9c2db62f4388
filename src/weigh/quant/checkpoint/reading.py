"""The values of a tensor, slab by slab: what is in memory is one slab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from weigh import dtypes
from weigh.quant.arrays import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.quant.checkpoint.plan import Decision
    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.weights import Weights

PIECE = 16 << 20
"""Bytes that are asked for at once."""


def slabs(weights: Weights, decision: Decision) -> Iterator[Any]:
    """The values of a tensor in its own number format, flat, a slab at a time.

    Raises:
        InputError: the file ends too early, or cannot be read.
    """
    tensor = decision.tensor
    if decision.matrix is not None:
        yield from decision.matrix.slabs(weights, decision.slab, decision.cut)
        return
    kind = numpy_dtype(dtypes.get(tensor.dtype))
    for data in raw(weights, tensor, decision.slab):
        yield np.frombuffer(data, kind)


def raw(weights: Weights, tensor: StoredTensor, size: int) -> Iterator[bytearray | bytes]:
    """The bytes of a tensor, `size` at a time; what is read from elsewhere comes in smaller pieces."""
    client = getattr(weights.folder, "client", None)
    if client is not None:
        client.stream()
    file = weights.folder.open(tensor.file)
    for start in range(0, tensor.num_bytes, max(size, 1)):
        wanted = min(size, tensor.num_bytes - start)
        assert tensor.start is not None
        if wanted <= PIECE or client is None:
            yield file.read(tensor.start + start, wanted)
            continue
        slab = bytearray(wanted)
        for at in range(0, wanted, PIECE):
            end = min(at + PIECE, wanted)
            slab[at:end] = file.read(tensor.start + start + at, end - at)
        yield slab
