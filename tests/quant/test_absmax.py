"""int8 with a scale a tensor, a row or a column, as bitsandbytes and the articles have it."""

import numpy as np
import pytest
from golden import cases, same

from weigh.quant import get


@pytest.mark.parametrize(
    "case", [c for c in cases("bnb_int8_vectorwise") if not c["threshold"]], ids=lambda c: c["dtype"]
)
def test_rows(case):
    quantizer = get("absmax_row")
    packed = quantizer.quantize(case["A"])
    assert same(packed.parts["codes"], case["q"])
    assert same(packed.parts["absmax"], case["row_stats"])
    assert same(quantizer.dequantize(packed), case["dequant"])


def test_weights_are_cast_to_half_precision_first():
    case = cases("bnb_linear8bitlt")[0]
    packed = get("int8").quantize(case["W"])
    assert same(packed.parts["codes"], case["state_dict"]["weight"])
    assert same(packed.parts["absmax"], case["state_dict"]["SCB"])


@pytest.mark.parametrize("case", [c for c in cases("absmax_articles") if c.get("rounding") == "round_half_even"])
def test_articles(case):
    x = np.array(case["x"], np.float32)
    quantizer = get("absmax_tensor")
    packed = quantizer.quantize(x)
    assert packed.parts["codes"].tolist() == case["q"]
    assert np.allclose(quantizer.dequantize(packed), case["dequant"], rtol=2**-22, atol=0)  # theirs is in fp64


def test_columns_are_rows_of_the_transposed():
    x = np.random.default_rng(0).standard_normal((40, 300), np.float32)
    columns, rows = get("absmax_column"), get("absmax_row")
    assert same(columns.quantize(x).parts["codes"], np.ascontiguousarray(rows.quantize(x.T).parts["codes"].T))
    assert same(columns.round_trip(x), np.ascontiguousarray(rows.round_trip(x.T).T))
