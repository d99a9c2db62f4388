"""What the real `torch.compile` keeps, asked again, beside the prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
ROWS = [json.loads(line) for line in (ROOT / "tests/data/compiled.jsonl").read_text().splitlines()]
AGAIN = ("gpt2", "qwen3")

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_the_partitioner_keeps_what_was_recorded(tmp_path: Path) -> None:
    asked = [next(r for r in ROWS if r["config"]["model_type"] == family) for family in AGAIN]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "kept"}) + "\n" for r in asked))
    script = [sys.executable, str(ROOT / "tools/record_compiled.py"), str(rows)]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    answered: list[dict[str, Any]] = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [a.get("kept") for a in answered] == [r["kept"] for r in asked], ran.stderr[-2000:]
