"""Where tasks run: here, in processes of their own, or on a Dask cluster. The tasks are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from weigh.errors import InputError, UsageError, WeighError

if TYPE_CHECKING:
    from weigh.quant.checkpoint.journal import Hashes
    from weigh.quant.checkpoint.running import Task

Results = Iterator[dict[str, Any]]


class Executor(Protocol):
    """Runs tasks, and hands on what they did, in whatever order."""

    def run(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> Iterator[dict[str, Hashes]]:
        """The hashes of what every task has written; `tick` is told the bytes that were handled."""


class Here:
    """One after the other, in this process."""

    def run(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> Results:
        for task in tasks:
            yield task.run(tick)


class Processes:
    """Several processes, started anew so that they share nothing."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> Results:
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from concurrent.futures.process import BrokenProcessPool
        from multiprocessing import get_context

        pool = ProcessPoolExecutor(min(self.count, max(len(tasks), 1)), get_context("spawn"), _quiet)
        try:
            sizes = {pool.submit(_run, task): task.source_bytes for task in tasks}
            for future in as_completed(sizes):
                try:
                    finished = future.result()
                except BrokenProcessPool:
                    hint = "Was it out of memory? Give a smaller --memory, and run it again: what is finished is kept."
                    raise InputError("a worker was killed", hint=hint) from None
                tick(sizes.pop(future))
                yield finished
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Cluster:
    """A Dask cluster whose workers see source and output under the same paths."""

    def __init__(self, address: str, seconds: float = 10) -> None:
        """Connect, within so many seconds.

        Raises:
            UsageError: Dask is not installed.
            InputError: nothing answers at the address.
        """
        try:
            from distributed import Client
        except ImportError:
            raise UsageError("needs Dask", where="--cluster", hint="pip install 'weigh[cluster]'") from None
        try:
            self.client = Client(address, timeout=seconds)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be reached: {error}", where=address, hint="Is the scheduler running?") from None

    def run(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> Results:
        from distributed import as_completed

        sizes = {future: t.source_bytes for t in tasks for future in [self.client.submit(_run, t, pure=False)]}
        try:
            for future, finished in as_completed(sizes, with_results=True):
                tick(sizes[future])
                yield finished
        except WeighError:
            raise
        except Exception as error:  # of whatever kind: it comes from another machine
            hint = "Scheduler and workers need weigh[cluster], of this version, and see the same folders."
            raise InputError(f"failed: {error}".partition("\n")[0], where="--cluster", hint=hint) from error
        finally:
            with suppress(Exception):
                self.client.cancel(list(sizes))
            self.client.close()


def _run(task: Task) -> dict[str, Hashes]:
    return task.run()


def _quiet() -> None:
    """Ctrl-C is the coordinator's matter; and there are threads enough where there are processes."""
    import os
    import signal

    os.environ.setdefault("WEIGH_THREADS", "1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
