"""A table over contexts, users and devices: every cell is what a report on it alone says."""

import csv
import io
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from weigh import api
from weigh.errors import UsageError
from weigh.plan.serving import AS_ASKED
from weigh.report.serving_grid import COLUMNS

CONTEXTS, USERS = ("1k", 3000, "8k"), (1, 7, 64)
JOBS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-3-8b", "h100,rtx-4090,a100-80gbx2,l4x2", {}),
    ("llama-3-8b", "mi300x,l4x4", {"kv_dtype": "fp8", "data": 2}),
    ("deepseek-v2-lite", "h100,a100-40gb", {"runtime": "sglang"}),
    ("qwen3-30b-a3b", "l40sx2,h200", {"runtime": "tensorrt-llm"}),
    ("gpt-oss-20b", "b200,l4", {"gpu_memory_utilization": 0.8}),
    ("qwen3-8b", "rtx-3090,m4-max", {"runtime": "llama.cpp", "quantization": "Q4_K_M"}),
    ("llama-3-8b", "rtx-4090", {"runtime": "ollama", "quantization": "Q8_0"}),
]


@pytest.mark.parametrize(("model", "devices", "settings"), JOBS)
def test_each_cell_is_the_single_answer(model: str, devices: str, settings: dict[str, Any]) -> None:
    grid = api.serve_grid(model, devices.split(","), CONTEXTS, USERS, **settings)
    seen = set()
    for device, one in zip(devices.split(","), grid.devices, strict=True):
        for line, row in enumerate(one.rows):
            for cell in row[line % 2 :: 2]:  # the corners and the middle
                report = api.serve(model, device, context=cell.context, concurrency=cell.users, **settings)
                single = report.as_dict()
                seen.add(cell.fits)
                assert cell.fits == (single["verdict"] == "yes"), (device, cell)
                need = single["cache"]["demand_bytes"]
                most = need * 1.005 if one.report.engine in AS_ASKED else need
                assert need <= cell.cache_bytes <= most, (device, cell)
                assert one.room == single["cache"]["supply_bytes"]
                assert one.unsaid == single["speed"]["unsaid"] is None
                first = single["speed"]["prefill"][-1]
                assert one.prefills[cell.context].pace.seconds == first["seconds"]
                if cell.decode is None:
                    assert not cell.fits
                    continue
                (alone,) = (d for d in single["speed"]["decode"] if d["users"] == cell.decode.users)
                assert cell.decode.each == alone["tokens_per_second"]["each"]
                assert cell.range == pytest.approx((1 / alone["most_seconds"], 1 / alone["least_seconds"]))
    assert seen == {True, False}


def test_the_server_is_started_for_the_longest() -> None:
    """Which only vLLM before its version 1 makes larger steps for."""
    (one,) = api.serve_grid("llama-3-8b", ["h100"], CONTEXTS, USERS, runtime="vllm@0.6.4").devices
    alone = [api.serve("llama-3-8b", "h100", runtime="vllm@0.6.4", context=c).launch.supply for c in CONTEXTS]
    assert one.room == alone[-1] < alone[0]


def test_all_forms_say_the_same() -> None:
    grid = api.serve_grid("llama-3-8b", ["h100", "l4"], CONTEXTS, USERS)
    rows = list(csv.DictReader(io.StringIO(grid.csv())))
    cells = [(one["device"], cell) for one in grid.as_dict()["devices"] for cell in one["cells"]]
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(cells) == 18
    fast = []
    for row, (device, cell) in zip(rows, cells, strict=True):
        figures = (device, cell["context"], cell["users"], cell["fits"], cell["cache_bytes"])
        assert (row["device"], int(row["context"]), int(row["users"]), row["fits"] == "true") == figures[:4]
        assert int(row["cache_bytes"]) == figures[4]
        speed = cell["tokens_per_second"]
        assert (speed is None) == (row["tokens_per_second_each"] == "") == (not cell["fits"])
        if speed is not None:
            assert float(row["tokens_per_second_each"]) == pytest.approx(speed["each"], rel=1e-5)
            assert speed["together"] == pytest.approx(cell["users"] * speed["each"])
            assert speed["least_each"] <= speed["each"] <= speed["most_each"]
            fast.append(speed["each"])
    drawn = [node.text for node in ET.fromstring(grid.svg()).iter("{http://www.w3.org/2000/svg}text")]
    assert sum(text is not None and text.endswith("%") and text != "" for text in drawn) == len(fast)
    assert f"{sum(c['fits'] for d, c in cells if d == 'l4')} fit" in grid.text()
    assert f"{fast[0]:.0f}" in drawn


def test_where_nothing_is_known_of_the_speed_the_memory_is_still_said() -> None:
    grid = api.serve_grid("llama-3-8b", ["h20"], ["1k", "8k"], [1, 8])
    assert grid.fits
    assert "How fast is not said" in grid.text()
    assert grid.as_dict()["devices"][0]["cells"][0]["tokens_per_second"] is None
    assert "all of the cache" in grid.svg()


def test_weights_that_do_not_fit_leave_no_room() -> None:
    grid = api.serve_grid("llama-3-70b", ["rtx-4090"], ["1k", "8k"], [1, 8])
    assert not grid.fits
    assert "no room for a cache" in grid.text()
    assert "short" in grid.svg()


def test_one_cell_is_one_line() -> None:
    text = api.serve_grid("llama-3-8b", ["h100", "l4"], ["8k"], [4]).text()
    assert text.count("fits") == 2
    assert "%" not in text.partition("Assumed")[0]


def test_a_table_needs_a_device() -> None:
    with pytest.raises(UsageError, match="no device is named"):
        api.serve_grid("llama-3-8b", [], ["1k"])
