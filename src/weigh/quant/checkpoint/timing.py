"""How long a plan will take: one slab is quantized and timed."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from weigh.sources.checkpoint import StoredTensor

if TYPE_CHECKING:
    from weigh.quant.checkpoint.plan import Plan

SAMPLE = 1 << 20
"""Values that are quantized."""


def seconds(plan: Plan) -> float | None:
    """Seconds of arithmetic, as a slab of random numbers of the largest matrix's width takes them here.

    None where numpy is missing. Reading, hashing and writing come on top, and are mostly the disk's.
    """
    try:
        import numpy as np

        from weigh import dtypes
        from weigh.quant.arrays import numpy_dtype
    except ImportError:
        return None
    matrices = [d for d in plan.decisions if d.kept is None]
    largest = max(matrices, key=lambda d: d.tensor.num_bytes).tensor
    columns = largest.shape[-1]
    rows = max(1, min(SAMPLE // columns, largest.shape[0]))
    sample = StoredTensor(largest.name, (rows, columns), largest.dtype, 0, "")
    values = np.random.default_rng(0).normal(0, 0.02, rows * columns).astype(numpy_dtype(dtypes.get(largest.dtype)))
    took = []
    for _ in range(2):  # the first one makes tables
        encoder = plan.target.encoder(sample)
        start = perf_counter()
        if encoder.surveys:
            encoder.survey(values)
        encoder.encode(values)
        took.append(perf_counter() - start)
    elements = sum(d.tensor.num_elements for d in matrices)
    return min(took) / values.size * elements / plan.workers
