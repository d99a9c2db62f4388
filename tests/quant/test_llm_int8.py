"""LLM.int8(): bitsandbytes' results bit for bit, and the order of errors that the paper claims."""

import numpy as np
import pytest
from golden import params, same

from weigh.errors import InputError, UsageError
from weigh.quant import llm_int8
from weigh.quant.llm_int8 import METHODS, WEIGHT, linear, multiply, outliers, product, split

BITSANDBYTES = np.float32(6.200124e-05)
"""What its CPU back end takes for 1 / 127^2."""


def hidden_states(columns, rows=96, width=1536, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((rows, width)).astype(np.float32)
    at = rng.choice(width, columns, replace=False)
    hidden[:, at] = rng.choice((-1, 1), columns) * rng.uniform(20, 60, (rows, columns))
    weight = (rng.standard_normal((64, width)) * 0.02).astype(np.float32)
    return hidden, weight, at


@pytest.mark.parametrize(**params("bnb_int8_vectorwise", "input", "dtype", "threshold"))
def test_hidden_states_are_split_as_bitsandbytes_does(case):
    found = split(case["A"], case["threshold"])
    assert same(found.codes, case["q"])
    assert same(found.absmax, case["row_stats"])
    assert found.outliers.tolist() == ([] if case["outlier_cols"] is None else np.ravel(case["outlier_cols"]).tolist())


@pytest.mark.parametrize(**params("bnb_linear8bitlt", "threshold"))
def test_linear_is_bitsandbytes_with_its_constant(case, monkeypatch):
    weight = WEIGHT.quantize(case["W"])
    exact = linear(case["A"], weight, case["bias"], case["threshold"])
    monkeypatch.setattr(llm_int8, "SCALE", BITSANDBYTES)
    assert np.allclose(linear(case["A"], weight, case["bias"], case["threshold"]), case["y"], rtol=0, atol=2e-7)
    assert 0 < np.abs(exact - case["y"]).max() < 5e-5


def error(found, true):
    return float(np.sqrt(np.mean((found.astype(np.float64) - true) ** 2)))


@pytest.mark.parametrize("columns", [1, 4, 12])
def test_each_method_errs_less_than_the_one_before(columns):
    hidden, weight, _ = hidden_states(columns)
    true = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    absmax, row, vector, decomposed = (error(product(hidden, weight, m), true) for m in METHODS)
    assert absmax > row > decomposed * 5
    assert absmax > vector > decomposed * 5


@pytest.mark.parametrize("columns", [1, 4, 12])
def test_the_decomposition_errs_as_if_there_were_no_outliers(columns):
    hidden, weight, at = hidden_states(columns)
    hidden, weight = (x.astype(np.float16).astype(np.float32) for x in (hidden, weight))
    without = hidden.copy()
    without[:, at] = 0
    wide, narrow = (product(x, weight, "llm_int8") for x in (hidden, without))
    errors = [f - x.astype(np.float64) @ weight.T.astype(np.float64) for f, x in ((wide, hidden), (narrow, without))]
    added = hidden[:, at].astype(np.float64) @ weight[:, at].T.astype(np.float64)
    assert np.abs(errors[0] - errors[1]).max() < 2**-20 * np.abs(added).max()  # the sum in fp32, rounded
    halves = product(hidden.astype(np.float16), weight, "llm_int8").astype(np.float64)
    assert np.abs(halves - wide).max() < 2**-9 * np.abs(wide).max()  # in fp16: the sum is rounded twice
    # Where only codes were kept, the outlier columns meet a quantized weight, and add what that errs.
    packed = WEIGHT.quantize(weight)
    added = hidden[:, at].astype(np.float64) @ WEIGHT.dequantize(packed)[:, at].T.astype(np.float64)
    assert np.abs(linear(hidden, packed) - narrow - added).max() < 2**-20 * np.abs(added).max()


def test_products_of_codes_are_exact():
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-127, 128, (5, 5000)).astype(np.int8) for _ in range(2))
    a[0] = b[0] = 127
    assert (multiply(a, b) == a.astype(np.int64) @ b.astype(np.int64).T).all()


def test_outliers_by_the_criterion_of_the_literature():
    inputs = {f"layer {i}": np.zeros((2, 50, 64), np.float32) for i in range(8)}
    for i in (1, 4):
        inputs[f"layer {i}"][:, ::3, 7] = -8  # a quarter of the layers, a third of the positions of two of eight
    for i in range(4):
        inputs[f"layer {i}"][:, ::2, 9] = 6.5
    inputs["layer 0"][0, 0, 3] = 100
    found = outliers(inputs)
    assert [(f.index, f.systematic) for f in found.features] == [(9, True), (7, True), (3, False)]
    assert found.features[0].layers == 0.5
    assert found.features[0].positions == 0.25
    assert found.by_layer["layer 0"][0] == 2 / 64
    assert [f.index for f in outliers(inputs, of_layers=0.3).systematic] == [9]


def test_zero_rows_and_bad_input():
    hidden, weight, _ = hidden_states(2)
    hidden[3] = 0
    packed = WEIGHT.quantize(weight)
    assert not linear(hidden, packed)[3].any()
    assert linear(hidden.reshape(4, 24, -1), packed).shape == (4, 24, 64)
    with pytest.raises(InputError, match="1,535 features"):
        linear(hidden[:, 1:], packed)
    hidden[0, 0] = np.inf
    with pytest.raises(InputError, match="infinite"):
        linear(hidden, packed)
    with pytest.raises(UsageError, match="magic"):
        product(hidden, weight, "magic")
