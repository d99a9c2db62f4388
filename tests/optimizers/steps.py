"""Steps of an optimizer over parameters alone, on ghost tensors."""

from typing import Any

from weigh import dtypes
from weigh.dims import Size
from weigh.ghost import nn, ops
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import by_owner, recording
from weigh.kernels import kernels
from weigh.optimizers import Choice, optimizer
from weigh.optimizers.scaler import GradScaler
from weigh.trace.events import STEP


def levels(choice: dict[str, Any], parameters: list[Any], steps: int, scaler: bool = False) -> list[list[int]]:
    """Of every step: the live bytes above parameters and gradients after each birth, and at its end."""
    with recording(kernels("cuda", traced=True), traced=True) as ledger:
        owned = []
        for number, (shape, dtype) in enumerate(parameters):
            tensor = nn.parameter(tuple(shape), dtypes.get(dtype))
            tensor.grad = ops.zeros_like(tensor, "gradient")
            owned.append(nn.Parameter(tensor, (f"mlp{number}",), nn.Module()))
        base, read = 0, len(ledger.events)
        chosen = optimizer(Choice(**choice))
        chosen.own(owned)
        scaling, loss = GradScaler() if scaler else None, ops.zeros(())
        base, _ = _read(ledger, read, base)
        ledger.mark(STEP, 0)
        answer, live = [], base
        for _ in range(steps):
            read = len(ledger.events)
            with by_owner():
                if scaling is not None:
                    scaling.scale(loss)
                    scaling.unscale(chosen)
                chosen.step()
                if scaling is not None:
                    scaling.update()
            live, births = _read(ledger, read, live)
            answer.append([int(level) - int(base) for level in (*births, live)])
            read = len(ledger.events)
            for parameter in owned:
                tensor = parameter.tensor
                if tensor.grad is None or tensor.grad.shape != tensor.shape:
                    tensor.grad = ops.zeros_like(tensor, "gradient")
            live, _ = _read(ledger, read, live)
        return answer


def _read(ledger: Ledger, start: int, live: Size) -> tuple[Size, list[Size]]:
    births = []
    for event in ledger.events[start:]:
        size = ledger.allocations[abs(event) - 1].num_bytes
        live = live + size if event > 0 else live - size
        if event > 0:
            births.append(live)
    return live, births
