"""docs/architectures.md says what the code knows now."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_architectures_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "tools/architectures.py"))["page"]()
    assert page == (ROOT / "docs/architectures.md").read_text(encoding="utf-8"), "run: python tools/architectures.py"
