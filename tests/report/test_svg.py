import re
from xml.etree import ElementTree

import weigh
from weigh.report.svg import COLOURS
from weigh.report.text import PLURAL

TINY = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
SVG = weigh.train({**TINY, "model_type": "gpt2"}).svg()


def test_it_stands_alone() -> None:
    root = ElementTree.fromstring(SVG)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert set(re.findall(r"https?://[^\"\s]+", SVG)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in SVG


def test_it_names_what_it_shows() -> None:
    for word in (
        "forward",
        "backward",
        "step",
        "weights",
        "gradients",
        "optimizer state",
        "at the peak",
        "allocations and",
    ):
        assert word in SVG


def test_everything_lies_on_the_page() -> None:
    for path in re.findall(r' d="([^"]+)"', SVG):
        for x, y in re.findall(r"([\d.]+),([\d.]+)", path):
            assert 0 <= float(x) <= 900
            assert 0 <= float(y) <= 440


def test_its_style_touches_nothing_else() -> None:
    style = SVG[SVG.index("<style>") + 7 : SVG.index("</style>")]
    rules = [line for line in style.splitlines() if "{" in line and not line.startswith("@media")]
    assert len(rules) > 15
    assert all(line.startswith(".weigh ") for line in rules)


def test_names_are_escaped() -> None:
    from weigh.sources.source import Source

    ElementTree.fromstring(weigh.train(Source("<a & b>", TINY, "a test")).svg())


def test_every_purpose_has_a_colour() -> None:
    assert set(COLOURS) == set(PLURAL)


def test_a_limit_near_the_peak_is_drawn() -> None:
    assert 'class="limit"' in weigh.train("llama-2-7b", dtype="bf16", device="a100-80gb").svg()
    assert 'class="limit"' not in weigh.train(TINY, device="a100-80gb").svg()
