"""What llama.cpp printed of its buffers as it started, predicted from the settings that it printed.

`tests/data/measured/llama_cpp.jsonl` holds published logs. What builds whose sources were read print of models that the
quantizer made is met within the rounding of what is printed; the rest is in `MISSED`, with notes in `notes.json`.
"""

from functools import cache
from pathlib import Path
from statistics import median

import pytest

from weigh.validate import Line, validate

FILE = Path(__file__).parents[1] / "data/measured/llama_cpp.jsonl"
BUFFERS = ("parameters", "model_size", "model_buffer", "compute_buffer", "output_buffer")
MISSED = {"lc-014", "lc-016", "lc-020", "lc-046"}
"""Cases with a buffer that is not met: a later build, another back end, an older build, an embedding chosen by hand."""


@cache
def lines(kind: str) -> list[Line]:
    """Of all cases."""
    return [line for line in validate(str(FILE)).lines if line.metric.startswith(kind)]


def errors(kind: str) -> list[float]:
    return [abs(line.relative_error) for line in lines(kind) if line.relative_error is not None]


@pytest.mark.parametrize("kind", BUFFERS)
def test_figures_are_within_what_is_printed(kind: str) -> None:
    far = {x.id for x in lines(kind) if x.predicted is not None and not x.rounds_to_reference}
    assert far <= MISSED


@pytest.mark.parametrize(
    ("kind", "figures", "at_most"),
    [
        ("parameters", 19, 0.001),
        ("model_size", 18, 0.0005),
        ("model_buffer", 25, 0.00001),
        ("compute_buffer", 29, 0.0001),
        ("output_buffer", 20, 0.001),
    ],
)
def test_medians(kind: str, figures: int, at_most: float) -> None:
    found = errors(kind)
    assert len(found) >= figures
    assert median(found) <= at_most


def test_what_is_missed_is_still_near() -> None:
    compute = [x for x in lines("compute_buffer") if x.relative_error is not None and x.id != "lc-016"]
    assert max(abs(x.relative_error or 0) for x in compute) < 0.031


def test_what_is_not_predicted_says_why() -> None:
    for kind in BUFFERS:
        for line in lines(kind):
            assert line.predicted is not None or (line.reason and "does not know" not in line.reason), line
