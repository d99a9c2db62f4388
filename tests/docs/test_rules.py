"""docs/rules.md says what the rules and the code answer now."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_rules_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "tools/rules.py"))["page"]()
    assert page == (ROOT / "docs/rules.md").read_text(encoding="utf-8"), "run: python tools/rules.py"
