"""LLM.int8() layers beside bitsandbytes' own function, on the CPU: what a product leaves alive, and its gradient."""

from __future__ import annotations

import gc
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from weigh.dtypes import BFLOAT16, FLOAT16
from weigh.ghost import nn, ops
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import state
from weigh.ghost.tensor import empty
from weigh.techniques.int8 import Linear8bitLt

pytestmark = pytest.mark.torch


class Alive(TorchDispatchMode):
    """Every storage that is made under it; those of `beside` were there before."""

    def __init__(self, *beside: torch.Tensor) -> None:
        super().__init__()
        self.beside = {tensor.untyped_storage()._cdata for tensor in beside}
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.beside:
                    self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def num_bytes(self) -> int:
        gc.collect()
        return sum(size for found, size in self.seen.values() if not found.expired())


def real(rows: int, width: int, outputs: int, dtype: torch.dtype) -> tuple[int, int, torch.Size]:
    CB, SCB, _ = bnb.functional.int8_vectorwise_quant(torch.randn(outputs, width, dtype=torch.float16))
    made = MatmulLtState(CB=CB, SCB=SCB)
    made.has_fp16_weights, made.threshold = False, 6.0
    leaf = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    with Alive(CB, SCB, leaf) as alive:
        x = leaf * 1.0
        out = MatMul8bitLt.apply(x, CB, None, None, made)
        del x
        kept = alive.num_bytes()
        out.sum().backward()
        del out
        after = alive.num_bytes()
    assert leaf.grad is not None
    return kept, after, leaf.grad.shape


def ghost(rows: int, width: int, outputs: int, dtype: Any) -> tuple[int, int, tuple[Any, ...]]:
    ledger = state.ledger = Ledger()
    layer = Linear8bitLt(nn.Linear(width, outputs, dtype))
    leaf = empty((rows, width), dtype, "leaf")
    leaf.requires_grad = True

    def live() -> int:
        trace = ledger.trace()
        alive: set[int] = set()
        for event in trace.events:
            (alive.add if event > 0 else alive.discard)(abs(event) - 1)
        return sum(int(trace.allocations[i].num_bytes) for i in alive)  # type: ignore[arg-type]

    before = live()
    x = leaf * 1.0
    out = layer(x)
    del x
    kept = live() - before
    ops.sum(out, (0, 1), False).backward()
    del out
    after = live() - before
    assert leaf.grad is not None
    return kept, after, leaf.grad.shape


@pytest.mark.parametrize(("ours", "theirs"), [(BFLOAT16, torch.bfloat16), (FLOAT16, torch.float16)])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(7, 64, 128), (33, 128, 32)])
def test_a_product_keeps_its_input_and_nothing_else(
    rows: int, width: int, outputs: int, ours: Any, theirs: Any
) -> None:
    found, wanted = ghost(rows, width, outputs, ours), real(rows, width, outputs, theirs)
    assert found[0] == wanted[0] == ours.itemsize * rows * (width + outputs)
    assert found[1] == wanted[1]
    assert tuple(found[2]) == tuple(wanted[2]) == (rows, width)
