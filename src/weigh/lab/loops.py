"""What the lab's trainings do, on ghost tensors: `weigh.lab.real` does the same on real ones.

Most techniques are settings of a training and need nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weigh import models
from weigh.dtypes import BOOL, FLOAT32, INT8
from weigh.ghost import nn, ops
from weigh.ghost.state import inside_unit, no_grad, state
from weigh.recipes.loop import Loop
from weigh.recipes.trained import run as train
from weigh.recipes.training import Training
from weigh.trace.events import FORWARD, LOAD, Trace
from weigh.trace.peak import breakdown, phase_peaks

if TYPE_CHECKING:
    from weigh.ghost.tensor import Tensor
    from weigh.lab.bench import Bench
    from weigh.lab.techniques import Technique
    from weigh.models.common import CausalModel
    from weigh.optimizers import Optimizer

TEMPERATURE = 2.0
"""Softens the probabilities that are compared in distillation."""


class Distilled(Loop):
    """A larger model says what it thinks of each next byte, and the loss is half of how far the smaller is from it."""

    def __init__(self, bench: Bench) -> None:
        self.teacher = bench.larger().config()

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        model = super().build(config, recipe, where)
        teacher = models.build(self.teacher, recipe.dtype, where, to_run=True)
        for parameter in teacher.parameters():
            parameter.tensor.requires_grad = False
        model.teacher = teacher  # type: ignore[attr-defined]
        return model

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        with no_grad():
            wanted = ops.softmax(model.teacher(input_ids).logits / TEMPERATURE)  # type: ignore[attr-defined]
        out = model(input_ids, labels)
        found = ops.log_softmax(out.logits / TEMPERATURE)
        apart = -ops.mean(ops.sum(wanted * found, (-1,)).view(-1), 0)
        loss: Tensor = out.loss * 0.5 + apart * (0.5 * TEMPERATURE**2)
        return loss


class Pruned(Loop):
    """A mask of booleans beside every matrix of the blocks; after an update it makes the pruned weights zero again."""

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        model = super().build(config, recipe, where)
        for _, _, layer in matrices(model):
            with inside_unit(layer.weight.storage.unit):
                layer.pruned = nn.buffer(layer.weight.shape, BOOL)
        return model


class Evaluated(Loop):
    """No training: batches are read, without anything kept for a backward pass."""

    def step(
        self,
        model: CausalModel,
        recipe: Training,
        chosen: Optimizer,
        input_ids: Tensor,
        labels: Tensor,
        number: int,
        scaler: Any = None,
    ) -> None:
        state.ledger.mark(FORWARD, number)
        with no_grad():
            self.loss(model, recipe, input_ids, labels)


class RowWise(Evaluated):
    """The matrices of the blocks in int8, made fp32 again for every product."""

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        model = super().build(config, recipe, where)
        for parent, name, layer in list(matrices(model)):
            with inside_unit(layer.weight.storage.unit):
                setattr(parent, name, Int8(layer))
        nn.name_modules(model)
        return model


class Int8(nn.Module):
    """A layer whose weight is codes and a scale for every row."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.codes = nn.buffer(layer.weight.shape, INT8)
        self.scales = nn.buffer((layer.weight.shape[0], 1), FLOAT32)
        layer.weight = None
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight = self.codes.to(FLOAT32) * self.scales
        out: Tensor = self.layer(x)
        self.layer.weight = None
        return out


def matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The linear layers of the blocks, each with the module that has it and its name there."""
    for block in [m for m in model.modules() if m.role == nn.BLOCK]:
        for parent in block.modules():
            for name, child in parent.children():
                if child.__class__ in (nn.Linear, nn.Conv1D):
                    yield parent, name, child


Made = Callable[["Bench"], Loop]
"""A loop is made for a bench: one needs to know the teacher."""


def _whatever(kind: type[Loop]) -> Made:
    return lambda _: kind()


PLAIN, PRUNED, EVALUATED, ROW_WISE = map(_whatever, (Loop, Pruned, Evaluated, RowWise))
DISTILLED: Made = Distilled


def predict(bench: Bench, technique: Technique) -> Trace:
    """The technique's first two steps on ghost tensors.

    Raises:
        WeighError: it is none that can be predicted.
    """
    return train(technique.config(bench), technique.recipe(bench), loop=technique.loop(bench)).trace


def peak(trace: Trace) -> tuple[int, str, dict[str, int]]:
    """Bytes at the highest moment after loading, its phase, and what they are for."""
    phases = [p for p in phase_peaks(trace) if p.mark.phase != LOAD]
    highest = max(reversed(phases), key=lambda p: int(p.peak))  # type: ignore[arg-type]
    assert highest.moment is not None
    purposes = breakdown(trace, highest.moment, lambda a: a.purpose)
    return int(highest.peak), highest.mark.phase, {name: int(size) for name, size in purposes.items()}  # type: ignore[arg-type]
