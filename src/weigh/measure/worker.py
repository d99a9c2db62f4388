"""The process that runs PyTorch: reads one job a line as JSON, answers each with one line.

`python -m weigh.measure.worker` serves until its input ends; with `JOB ANSWER` it reads one job from a file and writes
the answer to another, once for each rank that torchrun starts. It leaves with `os._exit`: what `fake_cuda` has changed
inside PyTorch is not to be destroyed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from weigh.errors import UsageError, WeighError
from weigh.measure import faithful
from weigh.measure.attention import Attention
from weigh.measure.counters import Counters, Profiled
from weigh.measure.job import ANSWER, FAKE, Answer, Job, check, rank_file
from weigh.measure.recorder import Recorder
from weigh.measure.watcher import Watcher, Watchers
from weigh.measure.workload import Workload, from_function
from weigh.recipes.settings import make
from weigh.trace.events import LOAD
from weigh.trace.file import save

if TYPE_CHECKING:
    from weigh.recipes.generation import Generation
    from weigh.recipes.training import Training

Doing = Callable[[dict[str, Any]], dict[str, Any]]
"""What a worker does with a document; its errors become answers."""


def run(job: Job) -> Answer:
    """Do a job: trace it on fake tensors, or run it for real and count.

    Raises:
        WeighError: the model cannot be built or traced.
    """
    started = time.monotonic()
    recipe = _recipe(job)
    check(recipe)
    fake = job.tensors == FAKE
    if fake and job.device == "cuda":
        _install_fake_cuda(job)
    elif job.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch sees no GPU", where="kernels", hint="Use --kernels cpu, or `weigh trace`.")
    mesh = None
    if job.world > 1:
        from weigh.measure import parallel

        mesh = parallel.start(recipe, fake)
    try:
        return _run(job, recipe, fake, mesh, started)
    finally:
        if mesh is not None:
            parallel.stop()
        gc.collect()


def _recipe(job: Job) -> Any:
    if job.task == "train":
        from weigh.recipes.training import Training

        return make(Training, job.recipe)
    from weigh.recipes.generation import Generation

    return make(Generation, job.recipe)


def _install_fake_cuda(job: Job) -> None:
    from weigh.measure import fake_cuda, streams

    fake_cuda.install()
    if job.world > 1:
        streams.install(job.world)


def _run(job: Job, recipe: Training | Generation, fake: bool, mesh: Any, started: float) -> Answer:
    attention = Attention(recipe.attention_kernel)
    recorder = None if job.profiled else Recorder(job.device)
    counted = _counter(job)
    history = job.snapshot is not None and job.device == "cuda" and not fake
    if history:
        torch.cuda.memory._record_memory_history(max_entries=1_000_000)
    with ExitStack() as stack:
        if fake:
            stack.enter_context(faithful.as_real(attention))
        for watcher in (counted, recorder):
            if isinstance(watcher, Recorder | Profiled):
                stack.enter_context(watcher)
        watchers = Watchers(*(w for w in (recorder, counted) if w is not None))
        if recorder is not None:
            recorder.mark(LOAD)
        work = _workload(job, recipe, mesh)
        watchers.loaded(work.model, work.inputs())
        _loop(job, recipe, work, watchers)
        trace = recorder.trace() if recorder is not None else None
    if history:
        torch.cuda.memory._dump_snapshot(job.snapshot)
    if recorder is not None and fake:
        foreach = job.device == "cuda" and _default_foreach(recipe) and work.optimizer is None
        faithful.check_run(recorder, attention, bool(getattr(recipe, "autocast", None)), foreach)
    if trace is not None and job.output is not None:
        save(trace, _of_rank(job.output, job), {"job": job.as_dict()})
    return _answer(work, recorder, counted, attention, started)


def _counter(job: Job) -> Profiled | Counters | None:
    if job.profiled and job.device == "cpu":
        return Profiled()
    if job.tensors != FAKE and job.device == "cuda":
        return Counters()
    return None


def _workload(job: Job, recipe: Any, mesh: Any) -> Workload:
    prepare: Callable[[Any], Any] = lambda model: model  # noqa: E731
    if mesh is not None:
        from weigh.measure.parallel import distribute

        prepare = lambda model: distribute(model, recipe, mesh)  # noqa: E731
    if job.task == "train":
        from weigh.measure import training

        if job.function is None:
            assert job.config is not None
            return training.workload(job.config, recipe, job.device, job.tensors != FAKE, prepare)
        work = from_function(job.function, job.device)
        work.model = prepare(training.apply_techniques(work.model, recipe))
        return work
    from weigh.measure import generation

    assert job.config is not None
    return generation.workload(job.config, recipe, job.device, job.tensors != FAKE)


def _loop(job: Job, recipe: Any, work: Workload, watcher: Watcher) -> None:
    if job.task == "train":
        from weigh.measure.training import train

        train(work, recipe, job.device, watcher)
    else:
        from weigh.measure.generation import generate

        generate(work, recipe, watcher)


def _default_foreach(recipe: Any) -> bool:
    if getattr(recipe, "offload_parameters", False):
        return False  # the optimizer's tensors are on the host
    return getattr(recipe, "optimizer", None) is not None and recipe.implementation in (None, "foreach")


def _of_rank(path: str, job: Job) -> str:
    if job.world == 1 or job.tensors == FAKE:
        return path
    from weigh.measure.parallel import rank

    return rank_file(path, rank())


def _answer(
    work: Workload, recorder: Recorder | None, counted: Profiled | Counters | None, attention: Attention, started: float
) -> Answer:
    parameters = list(work.model.parameters())
    on_gpu = isinstance(counted, Counters)
    return Answer(
        peaks=counted.peaks() if counted is not None else [],
        opaque=dict(recorder.opaque) if recorder is not None else {},
        collectives=dict(recorder.collectives) if recorder is not None else {},
        attention=dict(attention.calls),
        versions=faithful.versions(),
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        device_name=torch.cuda.get_device_name() if on_gpu else None,
        device_bytes=torch.cuda.mem_get_info()[1] if on_gpu else None,
        seconds=round(time.monotonic() - started, 2),
    )


def do(document: dict[str, Any]) -> dict[str, Any]:
    """Do a job in JSON."""
    return asdict(run(Job.of(document)))


def answer(document: dict[str, Any], do: Doing = do) -> dict[str, Any]:
    """What comes of a document: the answer's fields, or an error's."""
    try:
        return do(document)
    except WeighError as error:
        return {"error": {"what": error.what, "where": error.where, "hint": error.hint, "code": error.exit_code}}
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        hint = "It cannot be traced without values: run it for real with `weigh measure`."
        return {
            "error": {"what": f"has shapes that depend on values ({error.func})", "where": "the model", "hint": hint}
        }
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        where = f"{Path(last.filename).name}:{last.lineno} {last.name}"
        return {"error": {"what": what[:600], "where": where, "hint": "The whole traceback is on standard error."}}


def serve(arguments: list[str], do: Doing = do) -> None:
    """Answer documents from standard input, or the one in a file."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments:
        from weigh.measure.parallel import rank

        document = json.loads(Path(arguments[0]).read_text())
        made = json.dumps(answer(document, do))
        Path(rank_file(arguments[1], rank())).write_text(made)
        return
    for line in sys.stdin:
        print(ANSWER + json.dumps(answer(json.loads(line), do)), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
