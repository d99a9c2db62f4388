"""From a size to something that can be trained."""

from __future__ import annotations

import pytest

from weigh import api
from weigh.hardware import get_device
from weigh.scaling import Question, ask
from weigh.scaling.shapes import machines, nearest, shape


@pytest.mark.parametrize("size", [5e7, 1e9, 2.9e9, 3.1e9, 7e10, 1e12])
def test_a_shape_has_its_size(size: float) -> None:
    assert api.params(shape(size)).total == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("size", [1, 1e5, 1e17])
def test_no_shape_of_sizes_that_no_model_has(size: float) -> None:
    assert shape(size) is None
    report = ask(Question(parameters=size, device=get_device("h100"), mfu=0.4))
    assert report.machines() is None
    assert "No Llama of whole heads and layers has that size" in report.text()


def test_nearest_models_are_the_catalogues() -> None:
    assert "gpt2" in {entry.name for entry in nearest(124_439_808)}


def test_as_few_devices_as_hold_it() -> None:
    config, h100 = shape(3e9), get_device("h100")
    found = machines(config, 1e21, h100, 0.4, None)
    assert found is not None
    assert found.sequence == 4096
    assert found.days == pytest.approx(1e21 / (0.4 * 989e12 * found.count * 86_400))
    many = machines(config, 1e21, h100, 0.4, 8)
    assert many is not None
    assert many.days == pytest.approx(found.days * found.count / 8)
    assert many.peak < found.peak or found.count == 8


def test_hours_and_days_agree() -> None:
    h100 = get_device("h100")
    report = ask(Question(flops=1000 * 3600 * 0.4 * 989e12, device=h100, mfu=0.4, gpus=2))
    found = report.machines()
    assert found is not None
    assert found.days * 24 * found.count == pytest.approx(1000)


def test_a_model_is_counted_as_a_law_counts() -> None:
    counted = api.params("gpt2")
    q = Question(
        parameters=float(counted.total),
        counted_without_embeddings=float(counted.without_embeddings),
        source=counted.source,
    )
    best = {a.law.name: a.best.parameters for a in ask(q).answers}
    assert best["besiroglu-2024"] == 124_439_808
    assert best["kaplan-2020"] == 85_056_000
