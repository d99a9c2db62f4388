"""Published examples of the scaling laws, within the rounding of what is published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weigh.errors import UsageError
from weigh.scaling import LAWS, Kaplan, Parametric, law
from weigh.scaling.laws import PF_DAY
from weigh.scaling.solve import overtraining, price, with_inference

KAPLAN = LAWS["kaplan-2020"]
PARAMETRIC = [found for found in LAWS.values() if isinstance(found, Parametric)]
GOPHER = 5.76e23
TABLES = {  # Hoffmann et al. 2022: size, FLOP, tokens
    "chinchilla-1": [
        (400e6, 1.92e19, 8.0e9),
        (1e9, 1.21e20, 20.2e9),
        (10e9, 1.23e22, 205.1e9),
        (67e9, 5.76e23, 1.5e12),
        (175e9, 3.85e24, 3.7e12),
        (280e9, 9.90e24, 5.9e12),
        (520e9, 3.43e25, 11.0e12),
        (1e12, 1.27e26, 21.2e12),
        (1e13, 1.30e28, 216.2e12),
    ],
    "chinchilla-2": [
        (400e6, 1.84e19, 7.7e9),
        (1e9, 1.20e20, 20.0e9),
        (10e9, 1.32e22, 219.5e9),
        (67e9, 6.88e23, 1.7e12),
        (175e9, 4.54e24, 4.3e12),
        (280e9, 1.18e25, 7.1e12),
        (520e9, 4.19e25, 13.4e12),
        (1e12, 1.59e26, 26.5e12),
        (1e13, 1.75e28, 292.0e12),
    ],
}
THIRD = [  # its table A3; 175e9 is printed with 1.26e+24: see docs/errata.md
    *((400e6, 2.21e19), (1e9, 1.62e20), (10e9, 2.46e22), (67e9, 1.71e24), (175e9, 1.26e25), (280e9, 3.52e25)),
    *((520e9, 1.36e26), (1e12, 5.65e26), (1e13, 8.55e28)),
]
POINTS = given(n=st.floats(1e6, 1e13), d=st.floats(1e8, 1e15))


@pytest.mark.parametrize(
    ("name", "size", "flops", "tokens"), [(name, *row) for name, rows in TABLES.items() for row in rows]
)
def test_chinchillas_tables(name: str, size: float, flops: float, tokens: float) -> None:
    best = LAWS[name].optimum(flops)
    assert best.parameters == pytest.approx(size, rel=0.05)
    assert best.tokens == pytest.approx(tokens, rel=0.08), "the tables round, and count FLOP a little above 6*N*D"
    assert LAWS[name].for_parameters(size).flops == pytest.approx(flops, rel=0.1)


@pytest.mark.parametrize(("size", "flops"), THIRD)
def test_chinchillas_third_table_follows_the_exponents_before_rounding(size: float, flops: float) -> None:
    assert LAWS["chinchilla-3-tex"].optimum(flops).parameters == pytest.approx(size, rel=0.08)
    assert LAWS["chinchilla-3"].optimum(flops).parameters < 0.82 * size


def test_twenty_tokens_a_parameter_follow_from_the_replication_alone() -> None:
    found = {name: LAWS[name].optimum(GOPHER) for name in ("chinchilla-3", "chinchilla-3-tex", "besiroglu-2024")}
    printed, tex, replicated = found.values()
    assert (printed.parameters, printed.tokens) == (pytest.approx(3.22e10, rel=2e-3), pytest.approx(2.98e12, rel=2e-3))
    assert printed.tokens_per_parameter == pytest.approx(92.6, abs=0.05)
    assert tex.tokens_per_parameter == pytest.approx(59.1, abs=0.05)
    assert (replicated.parameters, replicated.tokens) == (
        pytest.approx(7.22e10, rel=2e-3),
        pytest.approx(1.33e12, rel=2e-3),
    )
    assert replicated.tokens_per_parameter == pytest.approx(18.4, abs=0.05)


def test_losses_of_chinchilla() -> None:
    assert LAWS["chinchilla-3"].loss(70e9, 1.4e12) == pytest.approx(1.937, abs=5e-4)
    assert LAWS["besiroglu-2024"].loss(70e9, 1.4e12) == pytest.approx(1.974, abs=5e-4)


def test_kaplans_examples() -> None:
    assert isinstance(KAPLAN, Kaplan)
    assert KAPLAN.loss_of_parameters(1.5e9) == pytest.approx(2.304, abs=5e-4)
    assert KAPLAN.optimum(PF_DAY).parameters == pytest.approx(1.3e9)
    assert KAPLAN.batch(PF_DAY) == pytest.approx(2e6)
    assert KAPLAN.steps(PF_DAY) == pytest.approx(5.4e3)
    assert KAPLAN.loss_of_compute(3.1e8 * PF_DAY) == pytest.approx(1)
    assert KAPLAN.loss_of_tokens(5.4e13) == pytest.approx(1)
    assert KAPLAN.critical_batch(1) == pytest.approx(2e8)
    ten_times = KAPLAN.optimum(10 * PF_DAY)
    assert ten_times.parameters / 1.3e9 == pytest.approx(5.37, abs=0.01), "Hoffmann et al. quote it as 5.5"
    assert KAPLAN.loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076), "with endless data L(N, D) is L(N)"
    assert KAPLAN.tokens_against_overfitting(1e9) == pytest.approx(5e3 * 1e9**0.74)


def test_the_ten_per_cent_question() -> None:
    found = price(KAPLAN, 1e9, 1e10, 0.9)
    assert found is not None
    assert found.parameters == pytest.approx(4.0, abs=0.01)
    chinchilla = price(LAWS["besiroglu-2024"], 70e9, 1.4e12, 0.9)
    assert chinchilla is not None
    assert chinchilla.parameters is None, "no size has 1.777 nats: the floor is 1.8172"
    assert chinchilla.flops is None
    one = price(LAWS["besiroglu-2024"], 70e9, 1.4e12, 0.98)
    assert one is not None
    assert one.parameters is not None
    assert one.parameters > 3


@pytest.mark.parametrize("found", PARAMETRIC, ids=lambda found: found.name)
@POINTS
def test_an_optimum_is_one(found: Parametric, n: float, d: float) -> None:
    budget = 6 * n * d
    best = found.optimum(budget)
    assert best.flops == pytest.approx(budget)
    least = found.loss(*best)
    for factor in (0.5, 0.9, 1.1, 2):
        assert found.loss(best.parameters * factor, best.tokens / factor) > least
    assert found.for_parameters(best.parameters).tokens == pytest.approx(best.tokens)
    assert found.for_tokens(best.tokens).parameters == pytest.approx(best.parameters)
    cheapest = found.cheapest(least)
    assert cheapest is not None
    assert cheapest.flops == pytest.approx(budget, rel=1e-6)


@POINTS
def test_a_loss_is_solved_for_either_side(n: float, d: float) -> None:
    found = LAWS["besiroglu-2024"]
    assert isinstance(found, Parametric)
    loss = found.loss(n, d)
    assert found.parameters_for(loss, d) == pytest.approx(n, rel=1e-4)
    assert found.tokens_for(loss, n) == pytest.approx(d, rel=1e-4)
    over = overtraining(found, n, d)
    assert over is not None
    assert over.flops >= 1 - 1e-9


def test_answers_make_smaller_models_better() -> None:
    found = LAWS["besiroglu-2024"]
    assert isinstance(found, Parametric)
    loss = found.loss(70e9, 1.4e12)

    def total(n: float, d: float, answered: float) -> float:
        return n * (6 * d + 2 * answered)

    sizes = []
    for answered in (0, 1e11, 1e12, 1e13, 1e14):
        best = with_inference(found, loss, answered)
        assert best is not None
        assert found.loss(*best) == pytest.approx(loss)
        for factor in (0.97, 1.03):
            tokens = found.tokens_for(loss, best.parameters * factor)
            assert tokens is not None
            assert total(best.parameters * factor, tokens, answered) > total(*best, answered)
        sizes.append(best.parameters)
    assert sizes == sorted(sizes, reverse=True)
    assert with_inference(found, 1.8, 1e12) is None


def test_points_outside_are_said() -> None:
    assert LAWS["besiroglu-2024"].warnings(1e9, 2e10) == []
    assert LAWS["besiroglu-2024"].warnings(70e9, 1.4e12) == [
        "7e+10 parameters are outside of 7e+07 to 1.6e+10",
        "1.4e+12 tokens are outside of 5e+09 to 5e+11",
    ]


def test_intervals_hold_the_optimum() -> None:
    low, high = LAWS["chinchilla-2"].interval(GOPHER)  # type: ignore[misc]
    assert low < LAWS["chinchilla-2"].optimum(GOPHER).parameters < high
    assert LAWS["besiroglu-2024"].interval(GOPHER) is None


def test_an_unknown_law() -> None:
    with pytest.raises(UsageError, match="unknown law 'chinchila'"):
        law("chinchila")
