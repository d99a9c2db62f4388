"""Published bytes per parameter, out of the optimizers' own rules."""

import pytest
from steps import levels

from weigh.errors import NotModelledError
from weigh.optimizers import ALIASES, OPTIMIZERS, REFUSED
from weigh.recipes.settings import make
from weigh.recipes.training import Training

BIG = [([4096, 4096], "bfloat16")]


@pytest.mark.parametrize(
    ("name", "per_parameter"),
    [
        ("adamw", 4.0),  # two averages in the parameter's bf16
        ("adamw_apex", 8.0),  # in fp32
        ("adamw_32bit", 8.0),
        ("adamw_8bit", 2.0 + 2 * 4 / 256),  # 2.03: two codes, and two fp32 numbers for every block of 256
        ("lion_8bit", 1.0 + 4 / 256),
        ("torchao_adamw_4bit", 1.0 + 2 * 4 / 128),
        ("adafactor", 2 * 4 / 4096),  # a row and a column in fp32
    ],
)
def test_states(name: str, per_parameter: float) -> None:
    implementation = {"adamw": "foreach", "adamw_apex": "fused"}.get(name, "forloop")
    numel = 4096 * 4096
    held = levels({"name": name, "implementation": implementation}, BIG, 1)[0][-1]
    # What does not grow with the parameter: tables of numbers, flags, roots of mean squares.
    assert 0 <= held - numel * per_parameter <= 2 * 1024


def test_paged_states_are_elsewhere() -> None:
    held = levels({"name": "paged_adamw_8bit", "implementation": "forloop"}, BIG, 1)[0][-1]
    assert held == 2 * 4096 * 4096 // 256 * 4 + 2 * 1024  # the blocks' numbers and the tables stay on the device


def test_names_of_transformers_are_the_same_optimizers() -> None:
    assert set(ALIASES.values()) <= set(OPTIMIZERS)
    assert not set(ALIASES) & set(OPTIMIZERS)
    assert make(Training, {"optimizer": "galore-adamw"}).optimizer == "galore"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_known_and_not_run_says_why(name: str) -> None:
    with pytest.raises(NotModelledError, match=REFUSED[name][:20]):
        make(Training, {"optimizer": name})
