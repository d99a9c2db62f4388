"""docs/errata.md: its examples are true, and every figure in bold is what one of them prints."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs/errata.md"


def test_every_example_is_true() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.failed == 0
    assert result.attempted > 30


def test_every_figure_in_bold_is_computed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = text.split("\n### ")[1:]
    figures = 0
    for section in sections:
        printed = "\n".join(example.want for example in doctest.DocTestParser().get_examples(section))
        for figure in re.findall(r"\*\*([0-9][^*]*)\*\*", section):
            assert re.search(rf"(?<![0-9.,]){re.escape(figure)}(?![0-9,])", printed), f"{figure} in: {section[:60]}"
            figures += 1
    assert figures > 35
