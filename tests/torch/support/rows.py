"""Recorded rows and event lists, and the jobs that record them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weigh.measure.job import Job, words
from weigh.validate.witnesses import generation_recipe, training_recipe

WITNESS = Path(__file__).parents[2] / "data" / "witness"


def rows() -> dict[str, dict[str, Any]]:
    """Every recorded row by its id."""
    files = (WITNESS / "rows.jsonl", WITNESS / "parallel.jsonl")
    found = (json.loads(line) for file in files for line in file.read_text().splitlines())
    return {row["id"]: row for row in found}


def job(row: dict[str, Any], output: str) -> Job:
    """The same run again, recorded by the package."""
    if row["kind"] == "infer":
        return Job("generate", words(generation_recipe(row)), config=row["config"], output=output)
    return Job("train", words(training_recipe(row)), config=row["config"], output=output)
