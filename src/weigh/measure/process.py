"""A process of PyTorch, asked from outside: it may end in C++ at any moment, and must not take us with it.

Loads no PyTorch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from weigh.errors import InputError, UsageError
from weigh.measure.job import ANSWER, FAKE, REAL, Answer, Job, rank_file

TIMEOUT = 1800.0
"""Seconds that a run may take."""
WORKER = "weigh.measure.worker"
"""What is run; another module may serve by the same protocol."""
Heard = Callable[[str], None]
"""Told of every line that a worker prints and that is no answer."""
_TAIL = 12
"""Lines of standard error that are shown of a process that died."""


class Process:
    """A running worker; started at the first job, ended by `close`."""

    def __init__(self, timeout: float = TIMEOUT, module: str = WORKER, heard: Heard | None = None) -> None:
        self.timeout, self.module, self.heard = timeout, module, heard
        self._process: subprocess.Popen[str] | None = None
        self._lines: Queue[str | None] = Queue()
        self._errors: Any = None
        self._fake_cuda: bool | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, job: Job) -> Answer:
        """Have a job done.

        Raises:
            UsageError: the worker says that the job cannot be.
            InputError: it says what is wrong with the model; or it died, or took too long.
        """
        if job.world > 1 and job.tensors == REAL:
            raise ValueError("several real processes are started by torchrun")
        fake_cuda = (job.tensors, job.device) == (FAKE, "cuda")
        if fake_cuda is not self._fake_cuda:
            self.close()  # PyTorch's engine counts the devices at its first backward pass, and never again
            self._fake_cuda = fake_cuda
        return read_answer(self.exchange(job.as_dict()))

    def exchange(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """What the worker answers to a document; an error of its own is in the answer.

        Raises:
            InputError: it died, or took too long.
        """
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(document) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._death() from None
        while True:
            try:
                line = self._lines.get(timeout=self.timeout)
            except Empty:
                self.close()
                raise _too_slow(self.timeout) from None
            if line is None:
                raise self._death()
            if line.startswith(ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
            if self.heard is not None:
                self.heard(line)

    def close(self) -> None:
        """End the worker."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._errors.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the process
            self._lines = Queue()
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment(),
            )
            threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _death(self) -> InputError:
        """What became of a process that answers no more."""
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        self.close()
        return death(code, said)


def _read(stream: Any, lines: Queue[str | None]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:
        pass  # closed meanwhile
    lines.put(None)


def read_answer(document: dict[str, Any]) -> Answer:
    """The answer in a worker's JSON.

    Raises:
        UsageError, InputError: it is an error.
    """
    error = document.get("error")
    if error is None:
        return Answer(**document)
    kind = UsageError if error.get("code") == UsageError.exit_code else InputError
    raise kind(error["what"], where=error["where"], hint=error["hint"])


def death(code: int, said: str) -> InputError:
    """A process that ended without an answer, in words."""
    how = f"with exit code {code}"
    if code < 0:
        how = f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"
    aborted = "; it was ended inside PyTorch's C++" if -code in (signal.SIGABRT, signal.SIGSEGV) else ""
    killed = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
    tail = "\n".join(f"  {line}" for line in said.strip().splitlines()[-_TAIL:])
    return InputError(
        f"the process that ran PyTorch ended {how}{aborted}{killed}",
        hint=f"Its last words:\n{tail}" if tail else "It said nothing.",
    )


def run_ranks(job: Job, timeout: float = TIMEOUT) -> list[Answer]:
    """Do a job in several real processes on this machine; the answers by rank.

    Raises:
        UsageError: a rank says that the job cannot be.
        InputError: it says what is wrong with the model; or a rank died, or they took too long.
    """
    return [read_answer(document) for document in exchange_ranks(job.as_dict(), job.world, timeout)]


def exchange_ranks(
    document: Mapping[str, Any],
    world: int,
    timeout: float = TIMEOUT,
    module: str = WORKER,
    heard: Heard | None = None,
) -> list[dict[str, Any]]:
    """What real processes answer to a document, by rank; torchrun starts them.

    Raises:
        UsageError: a rank says that the job cannot be.
        InputError: it says what is wrong with the model; or a rank died, or they took too long.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        question, reply = Path(folder) / "job.json", str(Path(folder) / "answer.json")
        question.write_text(json.dumps(document), encoding="utf-8")
        launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        launch += [f"--nproc-per-node={world}", "-m", module, str(question), reply]
        with subprocess.Popen(launch, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True) as started:
            code = _follow(started, timeout, heard)
        files = [Path(rank_file(reply, rank)) for rank in range(world)]
        answers = [json.loads(file.read_text()) for file in files if file.exists()]
        for answer in answers:
            if "error" in answer:
                read_answer(answer)
        if len(answers) < len(files):
            errors.seek(0)
            raise death(code, errors.read())
        return answers


def _follow(started: subprocess.Popen[str], timeout: float, heard: Heard | None) -> int:
    """Listen to a process until it ends; its exit code."""
    lines: Queue[str | None] = Queue()
    threading.Thread(target=_read, args=(started.stdout, lines), daemon=True).start()
    until = time.monotonic() + timeout
    while True:
        try:
            line = lines.get(timeout=max(until - time.monotonic(), 0))
        except Empty:
            started.terminate()  # torchrun ends its ranks
            raise _too_slow(timeout) from None
        if line is None:
            return started.wait()
        if heard is not None:
            heard(line)


def _too_slow(timeout: float) -> InputError:
    hint = "Make the run smaller, or give it more time: --timeout."
    return InputError(f"the run took more than {timeout:g} seconds", hint=hint)


def environment() -> dict[str, str]:
    """For PyTorch: one thread for sums, sets in one order, nothing from the network but the Hub's own cache."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **os.environ, **quiet}
