"""The commands that README shows and that need PyTorch, one after the other in one folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    """Lines that begin with `weigh` in blocks marked `sh`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("weigh ")]


def test_documented_commands_run(tmp_path: Path) -> None:
    shown = commands()
    assert {"trace", "measure", "compare"} <= {command.split()[1] for command in shown}
    for command in shown:
        words = [sys.executable, "-m", *command.split()]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "gpt2.trace").exists()
