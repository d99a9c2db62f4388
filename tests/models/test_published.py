"""Published models: the parameter counts that their makers state.

`tests/data/published.jsonl` holds configs rebuilt from general knowledge; a row is there only if building it with
transformers on the meta device gives the published count too.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import weigh

LINES = (Path(__file__).parents[1] / "data/published.jsonl").read_text(encoding="utf-8").splitlines()
PUBLISHED: dict[str, dict[str, Any]] = {row["name"]: row for row in map(json.loads, LINES)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_number_of_parameters(name: str) -> None:
    report = weigh.params(PUBLISHED[name]["config"])
    assert report.total == PUBLISHED[name]["parameters"]
    assert sum(report.by_component().values()) == report.total
    assert sum(report.by_layer().values()) == report.total


def test_names_are_unique_and_families_many() -> None:
    assert len(PUBLISHED) == len(LINES) >= 80
    assert len({row["config"]["model_type"] for row in PUBLISHED.values()}) >= 18
