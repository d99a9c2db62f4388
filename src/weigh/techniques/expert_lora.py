"""LoRA on a parameter that is no layer's weight, as the experts of a mixture in one tensor (`target_parameters`).

Read: peft (0.21), tuners/lora/layer.py (`ParamWrapper`, `_LoraFactorsProxy`); torch/nn/utils/parametrize.py. For every
pass the whole parameter is made anew with the adapters in it, once to check it and once to use it. What was used stays
until its backward pass, and has a gradient as large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weigh.ghost import nn, ops
from weigh.ghost.autocast import autocast
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor

if TYPE_CHECKING:
    from weigh.techniques.lora import Lora


class ParamWrapper(Module):
    """`lora.ParamWrapper` around a module, or around another wrapper of it."""

    def __init__(self, base_layer: Module, name: str, settings: Lora) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        owner = base_layer
        while isinstance(owner, ParamWrapper):
            owner = owner.base_layer
        self.owner = [owner]  # in a list: it stands elsewhere
        shape = self.parameter.shape
        experts, rows, columns = shape if len(shape) == 3 else (1, *shape)
        self.experts, self.transposed = (
            experts,
            len(shape) == 3 and bool(getattr(self.owner[0], "is_transposed", False)),
        )
        width_in, width_out = (rows, columns) if self.transposed else (columns, rows)
        dtype = settings.dtype_of(self.parameter.dtype)
        self.lora_A = nn.Linear(width_in, settings.rank * experts, dtype)
        self.lora_B = nn.Linear(settings.rank * experts, width_out, dtype)

    @property
    def parameter(self) -> Tensor:
        """What is adapted."""
        return self.owner[0].__dict__[self.name]  # type: ignore[no-any-return]

    def forward(self, *args: Any) -> Any:
        with self._activated():
            return self.base_layer(*args)

    @contextmanager
    def _activated(self) -> Iterator[None]:
        """`_activate_lora`: in the body the owner's parameter is the one with the adapters in it."""
        held = [*self._factors()]  # emptied in the end, since classes go with the cycle collector alone
        owner = self.owner[0]
        before = owner.__class__

        def fold() -> Tensor:
            with autocast(None):
                return ops.baddbmm(self.parameter, held[0], held[1])

        def folded(_: Module) -> Tensor:
            if len(held) == 2:
                held.append(fold())
            return held[2]

        fold()  # `register_parametrization` looks at its shape
        owner.__class__ = type(before.__name__, (before,), {self.name: property(folded)})
        try:
            yield
        finally:
            owner.__class__ = before
            held.clear()

    def _factors(self) -> tuple[Tensor, Tensor]:
        """`get_delta_factors`: (experts, out, rank) and (experts, rank, in), or both turned."""
        weight_A, weight_B = self.lora_A.weight, self.lora_B.weight
        weight_A = weight_A.reshape(self.experts, -1, weight_A.shape[-1])
        weight_B = weight_B.reshape(weight_B.shape[0], -1, self.experts).permute(2, 0, 1)
        if self.transposed:
            lhs, rhs = weight_A.transpose(-2, -1), weight_B.transpose(-2, -1)
        else:
            lhs, rhs = weight_B, weight_A
        dtype = self.parameter.dtype
        return lhs.to(dtype), rhs.to(dtype)
