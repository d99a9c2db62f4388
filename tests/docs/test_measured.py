"""docs/measured.md and docs/serving.md say what the code predicts now, on a sample of its cases."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STEP = 15
"""Every so-manieth case is predicted again; all of them would take a minute."""


@pytest.mark.parametrize("kind", ["training", "serving"])
def test_measured_page_is_up_to_date(kind: str) -> None:
    tool = runpy.run_path(str(ROOT / "tools/measured.py"))
    chosen = list(tool["cases"](kind).values())[::STEP]
    page = (ROOT / tool["PAGES"][kind]).read_text(encoding="utf-8").splitlines()
    missing = [row for row in map(tool["row_of"], tool["predicted"](chosen)) if row not in page]
    assert not missing, "run: python tools/measured.py"
