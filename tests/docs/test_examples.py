"""Every example in a docstring of the installed package is true."""

import doctest
import importlib
import pkgutil

import pytest

import weigh

BESIDE = ("weigh.hooks", "weigh.lab.real", "weigh.measure", "weigh.quant")  # they need torch or numpy
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(weigh.__path__, "weigh.")
    if not module.name.startswith(BESIDE) and not module.name.endswith("__main__")
)
MUST_HAVE = ("weigh.dtypes", "weigh.errors", "weigh.hardware.devices", "weigh.units")


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in MUST_HAVE
