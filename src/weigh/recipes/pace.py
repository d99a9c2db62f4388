"""How long a pass takes: the roofline over its operations, the kernels' own time, and what ranks send each other.

A step of decoding reads every weight and every key and value of its sequences once, whatever the batch; a prefill
multiplies each weight with every token. Which of the two an operation waits for is decided operation by operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.hardware.roofline import PEAK, Efficiency, all_reduce_seconds, bandwidth, rate
from weigh.recipes.work import AS_RUN
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.hardware import Device
    from weigh.recipes.work import Pass, Weights


@dataclass(frozen=True, slots=True)
class Pace:
    """Where the seconds of a pass go; an operation's count for what it waits for."""

    arithmetic: float
    weights: float
    """Reading weights (and activations beside them)."""
    cache: float
    """Reading keys, values and states."""
    kernels: float
    """What each kernel costs whatever its size."""
    links: float
    """Ranks summing up their shares."""

    @property
    def seconds(self) -> float:
        """All together."""
        return self.arithmetic + self.weights + self.cache + self.kernels + self.links

    @property
    def waits_for(self) -> str:
        """What most of the time goes to."""
        return max(("arithmetic", "weights", "cache", "kernels", "links"), key=lambda name: getattr(self, name))


@dataclass(frozen=True, slots=True)
class Machine:
    """A device with a program on it."""

    device: Device
    dtype: DType
    """Of the arithmetic."""
    reached: Efficiency = PEAK
    tensor: int = 1
    """Ranks that share every layer."""

    def pace(self, work: Pass, cache_bytes: float = 0.0, stored: Weights = AS_RUN) -> Pace:
        """How long a pass takes.

        `cache_bytes` are the keys, values and states that one rank reads. `stored` says how many times the bytes of
        the run's format the weights are, where they are stored in another.

        Raises:
            NotModelledError: a figure of the device that it needs has no source.
        """
        flops_per_second = rate(self.device, self.dtype)[0] * self.reached.compute * self.tensor
        bytes_per_second = bandwidth(self.device) * self.reached.bandwidth * self.tensor
        arithmetic = weights = 0.0
        for op in work.ops:
            computed = op.flops / flops_per_second
            moved = (op.weights * (stored.routed if op.routed else stored.shared) + op.other) / bytes_per_second
            if computed > moved:
                arithmetic += computed * op.count
            else:
                weights += moved * op.count
        sums = 0.0
        if self.tensor > 1:  # after attention and after the MLP
            waits = (self.tensor - 1) * self.reached.per_message
            sums = 2 * (all_reduce_seconds(work.hidden, self.tensor, self.device) + waits)
        return Pace(
            arithmetic,
            weights,
            cache_bytes * self.tensor / bytes_per_second,
            work.kernels * self.reached.per_kernel,
            work.layers * sums,
        )
