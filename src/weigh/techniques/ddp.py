"""DistributedDataParallel: every rank has everything, and gradients are averaged in buckets.

Read: torch/nn/parallel/distributed.py and torch/csrc/distributed/c10d/reducer.cpp (2.13). With its defaults
(`gradient_as_bucket_view=False`) buckets stand beside the gradients from the wrapping on: a finished gradient is copied
into its bucket, the bucket is averaged, and copied back. They are made anew after the first backward pass, in the
order in which gradients came, the old ones dropped first; only the order of the parameters in them differs.
Left out: the broadcast of buffers before every forward pass, a copy of them for a moment.
"""

from __future__ import annotations

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.errors import WeighError
from weigh.ghost.nn import Module
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.trace.events import COMMUNICATION

FIRST_BUCKET = 1 << 20
"""Bytes from which on the first bucket is full (`_DEFAULT_FIRST_BUCKET_BYTES`)."""
BUCKET = 25 << 20
"""And every other (`bucket_cap_mb`)."""


@dataclass(frozen=True, slots=True)
class DataParallel(Technique):
    """Buckets for the gradients of all parameters that are trained."""

    def apply(self, model: Module) -> None:
        """Make the buckets.

        Raises:
            WeighError: no parameter is trained.
        """
        trained = [p for p in model.parameters() if p.tensor.requires_grad]
        if not trained:
            raise WeighError("data parallelism found no parameters that are trained", hint="Freeze less.")
        filled: dict[DType, list[Size]] = {}
        for parameter in trained:
            buckets = filled.setdefault(parameter.tensor.dtype, [])
            for _ in range(parameter.count):
                if not buckets or _full(buckets, parameter.tensor.dtype):
                    buckets.append(0)
                buckets[-1] += parameter.numel
        with inside_unit(None):
            model.gradient_buckets = [  # type: ignore[attr-defined]
                empty((elements,), dtype, "aten::empty", purpose=COMMUNICATION)
                for dtype, buckets in filled.items()
                for elements in buckets
            ]


def _full(buckets: list[Size], dtype: DType) -> bool:
    limit = FIRST_BUCKET if len(buckets) == 1 else BUCKET
    return bool(buckets[-1] * dtype.itemsize >= limit)
