"""bitsandbytes' Adam, AdamW, Lion and SGD with states in 8 or 32 bits, as `optim/optimizer.py` (0.50) does it.

Keeps one or two states in fp32, or in 8 bits with an fp32 number for every 256 values, and two tables of 256 numbers
for all of them. Tensors of less than 4,096 values keep states in fp32, and so do embeddings made by
`bnb.nn.StableEmbedding` or registered by transformers' Trainer, which is not done here. The kernels work in place.
Paged states of 100,000 values and more stand in managed memory, which is not PyTorch's.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from weigh.dims import product
from weigh.dtypes import FLOAT32, UINT8
from weigh.ghost import ops
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE

BLOCK = 256
"""Values that share a scale (2,048 before release 0.44)."""
LEAST = 4096
"""Values of a tensor from which on its states are in 8 bits (`min_8bit_size`)."""
PAGED_FROM = 100_000
"""Values of a tensor from which on its states are paged (`get_state_buffer`)."""
PAGED = "optimizer states in managed memory, which moves to the device while a parameter is updated"
CODES = 256
"""Numbers in a table."""


class BitsAndBytes(Optimizer):
    """`bnb.optim.AdamW8bit` and its likes."""

    implementations = ("forloop",)
    states_first = False
    keeps_norm: ClassVar[bool] = False
    """A number is kept for the norm of each update (`max_unorm`)."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.paged = choice.name.startswith("paged_")
        self.eight = choice.name.endswith("_8bit")
        self.states_kept = 1 if any(kind in choice.name for kind in ("lion", "rmsprop", "sgd")) else 2
        self.block = choice.block or BLOCK
        self.averages = 2 if "ademamix" in choice.name else 1
        self.tables: list[Tensor] = []

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`state1` and `state2`, then `absmax1` and `absmax2`."""
        return self.states_beside(param, param)

    def states_beside(self, param: Tensor, seen: Tensor) -> list[Tensor]:
        """The states of a parameter of which the kernel sees `seen`."""
        eight = self.eight and seen.numel >= LEAST
        if eight and not self.tables:
            with inside_unit(param.storage.unit if len(self.parameters) == 1 else None):
                self.tables = [empty((CODES,), FLOAT32, "aten::_to_copy") for _ in range(self.states_kept)]
            for table in self.tables:
                table.storage.relabel(OPTIMIZER_STATE, "")
        dtype = UINT8 if eight else FLOAT32
        shapes = [(self.averages, *seen.shape) if self.averages > 1 else seen.shape, seen.shape][: self.states_kept]
        blocks = -(-seen.numel // self.block)
        scales = [
            partial(ops.kept_beside, param, (*shape[: -seen.ndim], blocks), FLOAT32, OPTIMIZER_STATE)
            for shape in (shapes if eight else ())
        ]
        kept = [make() for make in scales] if self.averages > 1 else []
        for shape in shapes:
            if self.paged and seen.numel >= PAGED_FROM:
                copies = sum(p.count for p in self.parameters if p.tensor is param)
                paged = copies * product(shape) * dtype.itemsize
                self.elsewhere[PAGED] = self.elsewhere.get(PAGED, 0) + paged
            else:
                kept.append(ops.kept_beside(param, shape, dtype, OPTIMIZER_STATE, "aten::zeros_like"))
        kept += [make() for make in scales] if self.averages == 1 else []
        if self.keeps_norm:
            kept.append(ops.kept_beside(param, (1,), FLOAT32, OPTIMIZER_STATE))
        return kept

    def update(self, param: Tensor, seen: Tensor) -> None:
        """`init_state` where there is none, and `update_step`."""
        if id(param) not in self.state:
            self.state[id(param)] = self.states_beside(param, seen)
        ops.in_place("bitsandbytes::optimizer_update", [seen], reads=4, flops=12)

    def forloop(self) -> None:
        for param, _ in self.gradients_one_by_one():
            self.update(param, param)


OPTIMIZER = BitsAndBytes
