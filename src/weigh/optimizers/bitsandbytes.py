"""bitsandbytes' Adam, AdamW, Lion and SGD with states in 8 or 32 bits, as `optim/optimizer.py` (0.50) does it.

Keeps one or two states in fp32, or in 8 bits with an fp32 number for every 256 values, and two tables of 256 numbers
for all of them. Tensors of less than 4,096 values keep states in fp32, and so do embeddings made by
`bnb.nn.StableEmbedding` or registered by transformers' Trainer, which is not done here. The kernels work in place.
Paged states of 100,000 values and more stand in managed memory, which is not PyTorch's.
"""

from __future__ import annotations

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

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        *paged, kind, bits = choice.name.split("_")
        self.paged = bool(paged)
        self.eight = bits == "8bit"
        self.states_kept = 2 if kind in ("adam", "adamw") else 1
        self.tables: list[Tensor] = []

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`state1` and `state2`, then `absmax1` and `absmax2`."""
        eight = self.eight and param.numel >= LEAST
        if eight and not self.tables:
            with inside_unit(param.storage.unit if len(self.parameters) == 1 else None):
                self.tables = [empty((CODES,), FLOAT32, "aten::_to_copy") for _ in range(self.states_kept)]
            for table in self.tables:
                table.storage.relabel(OPTIMIZER_STATE, "")
        dtype = UINT8 if eight else FLOAT32
        if self.paged and param.numel >= PAGED_FROM:
            copies = sum(p.count for p in self.parameters if p.tensor is param)
            paged = copies * self.states_kept * param.numel * dtype.itemsize
            self.elsewhere[PAGED] = self.elsewhere.get(PAGED, 0) + paged
            kept = []
        else:
            kept = [ops.zeros_like(param, OPTIMIZER_STATE, dtype) for _ in range(self.states_kept)]
        if eight:
            blocks = -(-param.numel // BLOCK)
            kept += [ops.kept_beside(param, (blocks,), FLOAT32, OPTIMIZER_STATE) for _ in range(self.states_kept)]
        return kept

    def forloop(self) -> None:
        for param, _, _ in self.one_by_one():
            ops.in_place("bitsandbytes::optimizer_update", [param], reads=4, flops=12)


OPTIMIZER = BitsAndBytes
