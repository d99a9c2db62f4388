"""A plan carried out: tensors become tasks, tasks run here, in other processes or on a cluster, results are noted.

A task says where to read, what to make and where to write; it can be run anywhere that sees both places, and twice
without harm, because every byte has its place and its value beforehand. The coordinator notes what is finished.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weigh import __version__
from weigh.errors import InputError, UsageError
from weigh.quant.checkpoint.journal import NAME as JOURNAL
from weigh.quant.checkpoint.journal import Hashes, Journal, guarded
from weigh.quant.checkpoint.layout import index
from weigh.quant.checkpoint.plan import MANIFEST
from weigh.records import dataclass, replace
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from weigh.quant.checkpoint.executors import Executor
    from weigh.quant.checkpoint.layout import File
    from weigh.quant.checkpoint.plan import Decision, Plan
    from weigh.quant.checkpoint.targets.base import Encoder, Target
    from weigh.sources.weights import Weights

    Tick = Callable[[int], None]
    """Told how many bytes of the source were handled."""

TASK = 64 << 20
"""Bytes of source in a task of small tensors: each costs one fsync."""


@dataclass(frozen=True)
class Task:
    """Some tensors of a plan."""

    weights: Weights
    target: Target
    decisions: tuple[Decision, ...]
    places: dict[str, tuple[str, int]]
    """File and first byte of every output."""

    @property
    def source_bytes(self) -> int:
        """How much is read."""
        return sum(d.tensor.num_bytes for d in self.decisions)

    def run(self, tick: Tick | None = None) -> dict[str, Hashes]:
        """Write these tensors; their hashes, when all their bytes are on the disk."""
        opened: dict[str, int] = {}
        try:
            done = {d.tensor.name: self._write(d, opened, tick) for d in self.decisions}
            for path, descriptor in opened.items():
                guarded(path, lambda d=descriptor: os.fsync(d))  # type: ignore[misc]
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        return done

    def _write(self, decision: Decision, opened: dict[str, int], tick: Tick | None) -> Hashes:
        hashes = {o.name: sha256() for o in decision.outputs}
        ends = {o.name: 0 for o in decision.outputs}
        for name, data in _contents(self.weights, self.target, decision, tick):
            path, start = self.places[name]
            if path not in opened:
                opened[path] = os.open(path, os.O_WRONLY)
            _write_all(opened[path], data, start + ends[name], path)
            hashes[name].update(data)
            ends[name] += len(data)
        for output in decision.outputs:
            assert ends[output.name] == output.num_bytes, (output, ends[output.name])
        return {name: found.hexdigest() for name, found in hashes.items()}


def _contents(weights: Weights, target: Target, d: Decision, tick: Tick | None) -> Iterator[tuple[str, memoryview]]:
    """The bytes of every output, in order, in pieces."""
    from weigh.quant.checkpoint.reading import raw

    if not d.outputs or d.is_copied:
        for data in raw(weights, d.tensor, max(d.slab, 1)) if d.outputs else ():
            yield d.outputs[0].name, memoryview(data)
        if tick is not None:
            tick(d.tensor.num_bytes)
        return
    encoder = target.encoder(d.tensor) if d.kept is None else target.caster(d.tensor, d.outputs[0])
    stem = len(d.tensor.name.removesuffix("weight"))
    names = {"" if len(d.outputs) == 1 else o.name[stem:]: o.name for o in d.outputs}
    try:
        for suffix, array in _encoded(encoder, weights, d, tick):
            yield names[suffix], _bytes(array)
    except InputError as error:
        if error.where is not None:
            raise
        hint = f"Leave it as it is (--keep {d.tensor.name.removesuffix('.weight')!r}), or mend it."
        raise InputError(error.what, where=d.tensor.name, hint=hint) from None


def _encoded(encoder: Encoder, weights: Weights, d: Decision, tick: Tick | None) -> Iterator[tuple[str, Any]]:
    from weigh.quant.checkpoint.reading import slabs

    if encoder.surveys:
        for slab in slabs(weights, d):
            encoder.survey(slab)
    for slab in slabs(weights, d):
        yield from encoder.encode(slab).items()
        if tick is not None:
            tick(slab.nbytes)
    yield from encoder.finish().items()


def _bytes(array: Any) -> memoryview:
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    return memoryview(flat.view(np.uint8))


def _write_all(descriptor: int, data: memoryview, at: int, path: str) -> None:
    while len(data):
        written = guarded(path, lambda d=data, a=at: os.pwrite(descriptor, d, a))  # type: ignore[misc]
        data, at = data[written:], at + written


def quantize(plan: Plan, out: Path, executor: Executor, progress: Callable[[int, int], None]) -> Path:
    """Carry a plan out, or on; the finished folder. `progress` is told bytes of the source: handled, and all.

    Raises:
        UsageError: `out` holds something.
        InputError: there is no room, a file cannot be read or written, a tensor has a value that spoils it, or
            `OUT.partial` belongs to another plan. What was finished is kept, and the next run goes on with it.
    """
    unfinished = out.with_name(f"{out.name}.partial")
    if _is_finished(out, plan):
        return out
    check_out(out)
    check_room(plan, unfinished)
    guarded(unfinished, lambda: unfinished.mkdir(parents=True, exist_ok=True))
    about = f"{plan.source} to {plan.target.name}"
    with Journal(unfinished, plan.fingerprint, about) as journal:
        _forget_damaged(plan, unfinished, journal)
        _begin_files(plan, unfinished)
        total = plan.source_bytes
        handled = sum(d.tensor.num_bytes for d in plan.decisions if d.tensor.name in journal.done)
        progress(handled, total)

        def tick(size: int) -> None:
            nonlocal handled
            handled += size
            progress(handled, total)

        for finished in executor.run(tasks(plan, unfinished, journal), tick):
            journal.add(finished)
        _write_rest(plan, unfinished, journal)
        _sync(unfinished)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
        (out / JOURNAL).unlink()
    _sync(out.parent)
    return out


def check_out(out: Path) -> None:
    """Raise `UsageError` where a folder is not empty, or is none."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("is not empty", where=str(out), hint="Give a new folder: nothing is ever overwritten.")


def check_room(plan: Plan, unfinished: Path) -> None:
    """Raise `InputError` where the disk has too little room for what is still to be written."""
    place = next(p for p in (unfinished, *unfinished.absolute().parents) if p.exists())
    there = sum(f.stat().st_blocks * 512 for f in unfinished.iterdir()) if unfinished.exists() else 0
    needed, free = plan.file_bytes - there + (1 << 20), shutil.disk_usage(place).free
    if free < needed:
        what = f"has {format_bytes(free)} left, and {format_bytes(needed)} are needed"
        raise InputError(what, where=str(place), hint="Make room, or give another --out.")


def _is_finished(out: Path, plan: Plan) -> bool:
    """Whether the last run was stopped between its last two steps."""
    if not (out / JOURNAL).exists() or not (out / MANIFEST).exists():
        return False
    if json.loads((out / MANIFEST).read_bytes())["plan"] != plan.fingerprint:
        return False
    (out / JOURNAL).unlink()
    return True


def tasks(plan: Plan, folder: Path, journal: Journal) -> list[Task]:
    """What is left to do; the largest first, so that the last ones end together."""
    places = {name: (str(folder / f.name), start) for f in plan.files for name, start in f.starts.items()}
    weights = plan.weights._replace(checkpoint=replace(plan.weights.checkpoint, tensors={}))  # a task has its own

    def task(decisions: Sequence[Decision]) -> Task:
        outputs = [o for d in decisions for o in d.outputs]
        return Task(weights, plan.target, tuple(decisions), {o.name: places[o.name] for o in outputs})

    groups: list[list[Decision]] = []
    size = TASK
    for d in plan.decisions:
        if d.tensor.name in journal.done:
            continue
        if size + d.tensor.num_bytes > TASK:
            groups.append([])
            size = 0
        groups[-1].append(d)
        size += d.tensor.num_bytes
    return sorted(map(task, groups), key=lambda t: -t.source_bytes)


def _begin_files(plan: Plan, folder: Path) -> None:
    """Make the files in their full size, with their headers; their room on the disk is theirs from here on."""
    for file in plan.files:
        path = folder / file.name
        if not path.exists() or path.stat().st_size != file.size or not _begins(path, file.header):
            guarded(path, partial(_begin, path, file))


def _begin(path: Path, file: File) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.ftruncate(descriptor, file.size)
        try:
            os.posix_fallocate(descriptor, 0, file.size)
        except AttributeError:  # not on every system
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not on every file system
                raise
        os.pwrite(descriptor, file.header, 0)
    finally:
        os.close(descriptor)


def _begins(path: Path, header: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _forget_damaged(plan: Plan, folder: Path, journal: Journal) -> None:
    """Read again what was finished: what a crash of the machine spoiled is done again."""
    by_name = {d.tensor.name: d for d in plan.decisions}
    places = {name: (folder / f.name, start) for f in plan.files for name, start in f.starts.items()}
    for tensor, hashes in list(journal.done.items()):
        sizes = {o.name: o.num_bytes for o in by_name[tensor].outputs}
        if any(_hash(*places[name], size) != hashes.get(name) for name, size in sizes.items()):
            del journal.done[tensor]


def _hash(path: Path, start: int, size: int) -> str:
    found = sha256()
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(start)
        while size and (data := file.read(min(size, 1 << 20))):
            found.update(data)
            size -= len(data)
    return found.hexdigest()


def _write_rest(plan: Plan, folder: Path, journal: Journal) -> None:
    """The files beside the weights."""
    contents: dict[str, bytes] = {}
    for name in plan.copies:
        file = plan.weights.folder.open(name)
        contents[name] = file.read(0, file.size)
    if plan.config is not None:
        contents["config.json"] = _json(plan.config)
    if len(plan.files) > 1:
        contents["model.safetensors.index.json"] = _json(index(plan.files, plan.num_bytes))
    hashes = {name: digest for d in plan.decisions for name, digest in journal.done[d.tensor.name].items()}
    contents[MANIFEST] = _json(
        {
            "schema": "weigh/manifest/1",
            "version": __version__,
            "plan": plan.fingerprint,
            "target": repr(plan.target),
            "tensors": {
                name: {"file": file.name, "sha256": hashes[name]} for file in plan.files for name in file.starts
            },
        }
    )
    for name, data in contents.items():

        def write(path: Path = folder / name, data: bytes = data) -> None:
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        guarded(folder / name, write)


def _json(what: Any) -> bytes:
    return (json.dumps(what, indent=2, ensure_ascii=False) + "\n").encode()


def _sync(folder: Path) -> None:
    """Put the names of a folder on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
