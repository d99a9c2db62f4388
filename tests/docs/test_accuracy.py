"""docs/accuracy.md says what the code predicts now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_accuracy_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "tools/accuracy.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python tools/accuracy.py"
