"""The process that trains: reads one task a line as JSON, answers each with one line, and tells how far it has come.

It is started as `weigh.measure.worker` is: it serves, or does one task for each rank that torchrun starts.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from statistics import median
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from weigh.lab.real.training import Run
from weigh.lab.task import LOOKS, PROGRESS, Task
from weigh.measure import faithful
from weigh.measure.counters import Profiled
from weigh.measure.recorder import Recorder
from weigh.measure.watcher import Watcher
from weigh.measure.worker import serve
from weigh.recipes.settings import make
from weigh.recipes.training import Training
from weigh.trace.events import BUFFER, COMMUNICATION, LOAD, WEIGHT
from weigh.trace.file import save

WATCHED = 2
"""Steps whose memory is measured: the first makes the optimizer's state, the second is as all that follow."""


def do(document: dict[str, Any]) -> dict[str, Any]:
    """Record two steps, then train, the first two steps under the profiler.

    Raises:
        WeighError: the technique cannot be applied to this model.
    """
    task = Task.of(document)
    mesh, rank = None, 0
    recipe = make(Training, task.recipe)
    if recipe.mesh.world > 1:
        from weigh.measure import parallel

        mesh, rank = parallel.start(recipe, fake=False), parallel.rank()
    try:
        recorder = _record(task, mesh, rank)
        gc.collect()  # what is profiled begins with nothing that could die meanwhile
        return {**_train(task, mesh, rank), "opaque": dict(recorder.opaque), "versions": faithful.versions()}
    finally:
        if mesh is not None:
            parallel.stop()
        gc.collect()


def _record(task: Task, mesh: Any, rank: int) -> Recorder:
    """Every storage of two steps, as a trace in the folder."""
    recorder = Recorder("cpu")
    with recorder:
        recorder.mark(LOAD)
        run = Run(task, mesh, rank)
        recorder.loaded(run.model, [])
        if run.teacher is not None:
            for name, parameter in run.teacher.named_parameters():
                recorder.label(parameter, WEIGHT, f"teacher.{name}")
        for _, mask in run.masks:
            recorder.label(mask, BUFFER)
        if isinstance(run.model, DistributedDataParallel):
            run.model.register_comm_hook(recorder, _labelled)
        for number in range(WATCHED):
            run.step(number, recorder)
        recorder.end()
    if rank == 0:
        save(recorder.trace(), str(run.folder / f"{task.name}.trace"), {})
    return recorder


def _labelled(recorder: Recorder, bucket: Any) -> Any:
    """What the reducer does without a hook, and the bucket named."""
    recorder.label(bucket.buffer(), COMMUNICATION)
    return allreduce_hook(None, bucket)


_labelled.__annotations__ = {}  # PyTorch checks them, and refuses those that are text, as all are here


def _train(task: Task, mesh: Any, rank: int) -> dict[str, Any]:
    with Profiled() as counted:
        run = Run(task, mesh, rank)
        before = run.evaluate()
        losses = [run.step(number, counted) for number in range(WATCHED)]
        counted.end()
    quiet = Watcher()
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    looks = {round(task.steps * look / LOOKS) for look in range(1, LOOKS + 1)}
    held_out = [(0, before)]
    for number in range(WATCHED, task.steps):
        if number in looks:
            held_out.append((number, run.evaluate()))
        started, cpu_started = time.perf_counter(), time.process_time()
        losses.append(run.step(number, quiet))
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
        if rank == 0:
            print(PROGRESS + json.dumps([number + 1, losses[-1]]), flush=True)
    if task.steps:
        held_out.append((task.steps, run.evaluate()))
    if task.keeps:
        run.save()
    return {
        "peaks": counted.peaks(),
        "losses": losses[: task.steps],
        "held_out": held_out,
        "seconds_per_step": median(seconds) if seconds else None,
        "cpu_seconds_per_step": median(cpu_seconds) if cpu_seconds else None,
        "weight_bytes": run.weight_bytes(),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "trained_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
    }


if __name__ == "__main__":
    serve(sys.argv[1:], do)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
