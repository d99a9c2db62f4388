"""Asks a witness: real PyTorch in a process of its own (`support.witness`, `support.real_generation`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent


class Witness:
    """A running module that answers a line of JSON with another, started at the first question."""

    def __init__(self, module: str = "support.witness") -> None:
        self.module = module
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> Any:
        """What real PyTorch allocates for a request."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", self.module],
                cwd=FOLDER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.process = None
            raise AssertionError(f"the witness ended with {code} over {request}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None
