"""PyTorch's ring attention, asked again, beside what was recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORDED = (ROOT / "data/ring_attention.jsonl").read_text()

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_the_ring_allocates_what_was_recorded() -> None:
    rows = [json.loads(line) for line in RECORDED.splitlines()]
    asked = "".join(json.dumps({k: v for k, v in r.items() if k not in ("forward", "backward")}) + "\n" for r in rows)
    paths = os.pathsep.join([str(ROOT / "torch"), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "support.ring_attention"],
        input=asked,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert ran.stdout == RECORDED, ran.stderr[-2000:]
