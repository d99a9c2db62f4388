"""bitsandbytes' paged AdamW: states in fp32, in memory that the driver moves between host and device.

Read: bitsandbytes 0.42.0, `optim/optimizer.py` (`get_state_buffer`) and `optim/adamw.py` (`PagedAdamW`). The states of
a parameter with 100,000 elements or more are managed memory, which PyTorch's allocator does not see; smaller ones are
tensors. The update is one kernel a parameter and allocates nothing.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE

PAGED = 100_000
"""Elements from which on a state is paged."""


class PagedAdamW(Optimizer):
    """`bnb.optim.PagedAdamW`."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """Both moments of a small parameter."""
        if not param.numel < PAGED:
            return []
        return [ops.zeros_like(param, OPTIMIZER_STATE, FLOAT32) for _ in range(2)]

    def step(self) -> None:
        """In place."""
        for param in self.with_gradients():
            if id(param) not in self.state:
                self.state[id(param)] = self.new_state(param)
            ops.in_place("bitsandbytes::optimizer_update_32bit", [param], reads=4, flops=12)
