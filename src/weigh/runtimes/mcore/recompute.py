"""Selective recomputation in Megatron Core: what is run again in the backward pass instead of being kept.

Mirrors `tensor_parallel/random.py` (`CheckpointWithoutOutput`, 0.17): a part whose output others keep is run without a
graph, and its output's memory is given back once they have used it. When the gradient of a later tensor comes, the part
is run again with a graph, its result stays for its own backward, and a copy of it fills the memory that was given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weigh.dtypes import get as dtype_named
from weigh.ghost.autograd import backward
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import enable_grad, no_grad, recomputing, state
from weigh.ghost.tensor import Tensor
from weigh.techniques.hooks import when_gradients_come

MODULES = ("core_attn", "layernorm", "mla_up_proj", "mlp", "moe", "moe_act", "shared_experts")
"""`--recompute-modules`."""


class WithoutOutput:
    """A part of a layer, its outputs until they are dropped, and its second run."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.again: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> Any:
        """Run it without a graph."""
        if not state.grad_enabled:
            return self.run(*inputs)
        made = apply(_Part, *inputs, part=self)
        self.outputs = [made] if made.__class__ is Tensor else list(made)
        return made

    def drop(self, later: Tensor) -> Tensor:
        """Give the outputs' memory back until a gradient of `later` comes; returns `later`."""
        if not self.outputs:
            return later
        held = {id(t.storage): t.storage for t in self.outputs}.values()
        claims = [(s, s.ledger.allocations[s.number - 1]) for s in held if s.number]
        for storage, _ in claims:
            storage.release()
        self.outputs = []

        def recompute() -> None:
            with recomputing(), enable_grad():
                made = self.run(*self.inputs)
            self.again = [made] if made.__class__ is Tensor else list(made)
            for storage, was in claims:
                storage.claim("aten::resize_", was.shape, dtype_named(was.dtype), was.purpose, was.path)

        return when_gradients_come(later, recompute)  # type: ignore[no-any-return]


class _Part(Op):
    name = "CheckpointWithoutOutputFunction"
    source = "megatron/core/tensor_parallel/random.py"
    view = True
    differentiable = 3

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor, part: WithoutOutput) -> Any:
        with no_grad():
            made = part.run(*tensors)
        if ctx:
            ctx.save(*tensors)
            ctx.meta = part
            part.inputs = []
            for tensor, need in zip(tensors, ctx.needs, strict=True):
                alias = tensor.alias()
                alias.requires_grad = need
                part.inputs.append(alias)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> list[Any]:
        part: WithoutOutput = ctx.meta
        inputs, roots = part.inputs, part.again
        part.inputs, part.again = [], []
        backward(roots, list(gradients))
        return [t.grad for t in inputs]
