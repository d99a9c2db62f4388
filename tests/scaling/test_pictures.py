"""The pictures of scaling laws: well-formed, labelled, and right about where things lie."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from weigh.scaling import LAWS, Optimum, Parametric
from weigh.scaling.picture import KINDS, draw

SVG = "{http://www.w3.org/2000/svg}"
LAW = LAWS["besiroglu-2024"]
assert isinstance(LAW, Parametric)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_whole(kind: str) -> None:
    root = ElementTree.fromstring(draw(LAW, Optimum(7e9, 2e12), kind, "a <model>"))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "a <model>" in texts
    assert any("parameters" in text for text in texts)
    assert any("nats" in text or "FLOP" in text for text in texts)
    assert "prefers-color-scheme: dark" in next(root.iter(f"{SVG}style")).text  # type: ignore[operator]
    for path in root.iter(f"{SVG}path"):
        points = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[-0-9.]+,[-0-9.]+", path.attrib["d"])]
        assert all(80 <= x <= 752 and 70 <= y <= 420 for x, y in points), "a curve leaves its axes"


def test_the_lowest_point_of_a_curve_is_its_best_size() -> None:
    root = ElementTree.fromstring(draw(LAW, LAW.optimum(1e22), "iso-flop"))
    curves = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib.get("fill") == "none"]
    dots = [c for c in root.iter(f"{SVG}circle") if c.attrib.get("class") == "dot"]
    assert len(curves) == len(dots) == 5
    for curve, dot in zip(curves, dots, strict=True):
        points = [tuple(map(float, pair.split(","))) for pair in curve[1:].split("L")]
        lowest = max(points, key=lambda point: point[1])
        assert abs(lowest[1] - float(dot.attrib["cy"])) < 0.2
        assert abs(lowest[0] - float(dot.attrib["cx"])) < 12, "the bottom of a curve is flat"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flops", [1e9, 1e15, 1e30])
def test_budgets_of_any_size_are_drawn(kind: str, flops: float) -> None:
    ElementTree.fromstring(draw(LAW, LAW.optimum(flops), kind))
