import re
from xml.etree import ElementTree

import pytest

from weigh.report.segments import draw_segments
from weigh.report.svg import COLOURS
from weigh.trace.allocator_settings import AllocatorSettings
from weigh.trace.events import ACTIVATION, FORWARD, WEIGHT, Allocation, Mark, Trace
from weigh.trace.replay import Replay, replay

MIB = 1 << 20


def run(*sizes: tuple[str, int], freed: tuple[int, ...] = (), expandable: bool = False) -> Replay:
    allocations = [Allocation(n * MIB, "op", "<path>", purpose, FORWARD, (), "fp32", None) for purpose, n in sizes]
    events = [*range(1, len(sizes)), *(-n for n in freed), len(sizes)]
    trace = Trace(allocations, events, [Mark(0, FORWARD, 0)])
    return replay(trace, AllocatorSettings(expandable_segments=expandable))


RUN = run((WEIGHT, 30), (ACTIVATION, 10), (WEIGHT, 40), (ACTIVATION, 20), freed=(2,))
SVG = draw_segments(RUN)


def widths(svg: str) -> dict[str, float]:
    result: dict[str, float] = {}
    for fill, width in re.findall(r'<rect fill="([^"]+)" x="[\d.]+" y="\d+" width="([\d.]+)" height="15">', svg):
        result[fill] = result.get(fill, 0) + float(width)
    return result


def test_it_stands_alone() -> None:
    assert ElementTree.fromstring(SVG).tag == "{http://www.w3.org/2000/svg}svg"
    assert set(re.findall(r"https?://[^\"\s]+", SVG)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in SVG


def test_everything_has_the_width_of_its_bytes() -> None:
    assert (RUN.reserved, RUN.idle) == (100 * MIB, 10 * MIB)
    scale = 24 * 852 / 100
    assert widths(SVG) == pytest.approx(
        {COLOURS[WEIGHT]: 70 * scale, COLOURS[ACTIVATION]: 20 * scale, "url(#weigh-free)": 10 * scale}, rel=1e-3
    )


@pytest.mark.parametrize("expandable", [False, True])
def test_it_says_what_it_shows(expandable: bool) -> None:
    svg = draw_segments(run((WEIGHT, 30), (ACTIVATION, 10), (WEIGHT, 50), freed=(2,), expandable=expandable))
    for word in ("reserved,", "weights", "free", "forward 0", "segment", "a row"):
        assert word in svg
    edges = re.search(r'class="edge" d="([^"]+)"', svg)
    assert edges is not None
    assert edges[1].count("M") == (1 if expandable else 3)


def test_everything_lies_on_the_page() -> None:
    height = int(re.search(r'height="(\d+)"', SVG)[1])  # type: ignore[index]
    for x, y, width, tall in re.findall(r'x="([\d.]+)" y="(\d+)" width="([\d.]+)" height="(\d+)"', SVG):
        assert 0 <= float(x) <= float(x) + float(width) <= 900
        assert 0 <= int(y) <= int(y) + int(tall) <= height


def test_many_small_blocks_stay_a_small_picture() -> None:
    many = run(*((WEIGHT if n % 2 else ACTIVATION, 1) for n in range(3000)), (WEIGHT, 60_000))
    assert len(draw_segments(many)) < 100_000


def test_its_style_touches_nothing_else() -> None:
    style = SVG[SVG.index("<style>") + 7 : SVG.index("</style>")]
    rules = [line for line in style.splitlines() if "{" in line and not line.startswith("@media")]
    assert len(rules) > 10
    assert all(line.startswith(".weigh-segments ") for line in rules)


def test_nothing_reserved_is_no_error() -> None:
    ElementTree.fromstring(draw_segments(replay(Trace([], [], [Mark(0, FORWARD, 0)]))))
