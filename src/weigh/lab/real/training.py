"""One technique on real tensors: its model, its batches, its optimizer, its steps.

The order of what a step makes and drops is that of `weigh.recipes.loop.Loop.step` and of `weigh.lab.loops`.
"""

from __future__ import annotations

from contextlib import nullcontext
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from weigh.errors import UsageError
from weigh.lab.loops import TEMPERATURE
from weigh.lab.real import surgery
from weigh.lab.task import Task
from weigh.measure import training
from weigh.measure.recorder import Recorder
from weigh.measure.watcher import Watcher, local_tensors
from weigh.measure.workload import build, torch_dtype
from weigh.recipes.settings import make
from weigh.recipes.training import Training
from weigh.trace.events import BACKWARD, FORWARD, GRADIENT, STEP

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

WARM_UP, LEAST_RATE = 0.1, 0.1
"""The share of the steps over which the rate rises, and the share of it that is left at the end of a cosine."""
HELD_OUT = 64
"""Sequences on which the loss is measured: those at equal distances in the held-out text."""


class Run:
    """One technique, from its first weights on."""

    def __init__(self, task: Task, mesh: DeviceMesh | None, rank: int) -> None:
        self.task, self.rank = task, rank
        self.recipe = make(Training, task.recipe)
        self.length = int(self.recipe.sequence)  # type: ignore[arg-type]
        self.folder = Path(task.folder)
        self.text, self.held_out = ((self.folder / name).read_bytes() for name in ("training.bin", "held-out.bin"))
        self.where = torch.Generator().manual_seed(task.seed)
        self.teacher: Any = None
        if task.teacher is not None:
            self.teacher = self._model(task.teacher, "teacher").requires_grad_(False)
        self.masks: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.model = self._technique(self._model(task.config, task.begins), mesh)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = training.make_optimizer(parameters, self.recipe)

    def _model(self, config: Any, begins: str | None) -> Any:
        torch.manual_seed(self.task.seed)
        model = build(config, self.recipe.dtype, self.recipe.attention, "cpu", initialise=True).train()
        if begins is not None:
            weights = torch.load(self.folder / f"{begins}.pt", weights_only=True)
            if self.task.surgery == "structured":
                weights = surgery.without_half_of_the_neurons(weights)
            model.load_state_dict(weights)
        return model

    def _technique(self, model: Any, mesh: DeviceMesh | None) -> Any:
        if self.task.surgery in surgery.MASKS:
            self.masks = surgery.masks(model, self.task.surgery)
            self._prune()
        if self.task.int8:
            surgery.to_int8(model)
        if self.recipe.quantization is not None:
            surgery.to_four_bits(model, self.recipe.quantization)
        model = training.apply_techniques(model, self.recipe)
        if mesh is None:
            return model
        from weigh.measure.parallel import distribute

        return distribute(model, self.recipe, mesh)

    def _prune(self) -> None:
        with torch.no_grad():
            for weight, mask in self.masks:
                weight.masked_fill_(mask, 0)

    # -- steps
    def step(self, number: int, watcher: Watcher) -> float:
        """One update, or one batch read; the loss, the mean over the micro-batches."""
        recipe = self.recipe
        starts = torch.randint(len(self.text) - self.length, (self.task.batch,), generator=self.where)
        share = self.task.batch // (1 if recipe.tensor > 1 else recipe.mesh.data)
        mine = starts[self.rank * share :][:share] if recipe.tensor == 1 else starts
        losses = []
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.task.rate * self._rate(number)
        for part in mine.split(recipe.batch):
            batch = _batch(self.text, part, self.length)
            watcher.reads([batch["input_ids"]])
            watcher.mark(FORWARD, number)
            if self.optimizer is None:
                losses.append(self._read(batch))
                continue
            with self._precision():
                loss = self._loss(batch)
            losses.append(loss.item())
            if recipe.accumulation > 1:
                loss = loss / recipe.accumulation
            watcher.mark(BACKWARD, number)
            loss.backward()
            del loss
        if self.optimizer is not None:
            if isinstance(watcher, Recorder):  # FSDP2 sets its shards of the gradients itself
                for parameter in self.model.parameters():
                    watcher.label(parameter.grad, GRADIENT)
            watcher.mark(STEP, number)
            self.optimizer.step()
            watcher.stepped(self.model, self.optimizer)
            self._prune()
            self.optimizer.zero_grad()
        return sum(losses) / len(losses)

    def _rate(self, number: int) -> float:
        """The rate's share of its highest: up in a line, down in a cosine."""
        warm = max(1, round(WARM_UP * self.task.steps))
        if number < warm:
            return (number + 1) / warm
        done = (number - warm) / max(1, self.task.steps - warm)
        return LEAST_RATE + (1 - LEAST_RATE) * (1 + cos(pi * done)) / 2

    def _precision(self) -> Any:
        dtype = self.recipe.autocast
        return nullcontext() if dtype is None else torch.autocast("cpu", torch_dtype(dtype))

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        if self.teacher is None:
            plain: torch.Tensor = self.model(**batch).loss
            return plain
        with torch.no_grad():
            wanted = functional.softmax(self.teacher(batch["input_ids"], use_cache=False).logits / TEMPERATURE, dim=-1)
        out = self.model(**batch)
        found = functional.log_softmax(out.logits / TEMPERATURE, dim=-1)
        apart = -(wanted * found).sum((-1,)).view(-1).mean(0)
        loss: torch.Tensor = out.loss * 0.5 + apart * (0.5 * TEMPERATURE**2)
        return loss

    def _read(self, batch: dict[str, Any]) -> float:
        with torch.no_grad(), self._precision():
            return float(self.model(**batch).loss.item())

    def evaluate(self) -> float:
        """Nats a byte on held-out text; every process reads all of it."""
        starts = torch.arange(HELD_OUT) * ((len(self.held_out) - self.length) // HELD_OUT)
        model = self.model
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            self.model = model.module  # which would synchronise buffers for each batch
        losses = [self._read(_batch(self.held_out, part, self.length)) for part in starts.split(8)]
        self.model = model
        return sum(losses) / len(losses)

    # -- what is left
    def weight_bytes(self) -> int:
        """Bytes that this process keeps of the weights: codes, scales and what stays as it is, but no masks."""
        tensors = [*self.model.parameters(), *surgery.scales(self.model)]
        locals_ = [local for tensor in tensors for local in local_tensors(tensor)]
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in locals_}
        return sum(found.values())

    def save(self) -> None:
        """The weights, for those that begin with them; whole or not at all."""
        if self.recipe.mesh.world > 1:
            raise UsageError("a share of a model is not kept", where=self.task.name)
        path = self.folder / f"{self.task.name}.pt"
        torch.save(self.model.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


def _batch(text: bytes, starts: torch.Tensor, length: int) -> dict[str, Any]:
    """Sequences of bytes that begin at `starts`; the model shifts the labels itself."""
    ids = torch.tensor([list(text[start : start + length]) for start in starts.tolist()])
    return {"input_ids": ids, "labels": ids, "use_cache": False}
