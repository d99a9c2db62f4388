"""bitsandbytes' codes in blocks, bit for bit."""

import numpy as np
import pytest
from golden import cases, params, same

from weigh.quant import codebooks, get
from weigh.quant.four_bit import nest


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dynamic_signed", codebooks.dynamic_map()),
        ("dynamic_unsigned", codebooks.dynamic_map(signed=False)),
        ("nf4", codebooks.NF4),
        ("fp4_bitpattern_order", codebooks.FP4),
    ],
)
def test_tables(name, values):
    assert same(values, next(c["values"] for c in cases("bnb_codebooks") if c["map"] == name))


@pytest.mark.parametrize(**params("bnb_quantize_4bit", "input", "dtype", "quant_type", "double_quant"))
def test_four_bit(case):
    x, double = case["x"], case["double_quant"]
    quantizer = get(case["quant_type"], block=case["blocksize"], double_quantization=double)
    packed = quantizer.quantize(x)
    assert same(packed.parts["codes"], case["packed"])
    if double:
        # The reference adds the scales up in fp32, in the machine's order: its mean is ours but for the last digit.
        assert np.isclose(packed.parts["nested_offset"], case["offset"], rtol=2**-23, atol=0)
        scales = get(case["quant_type"]).quantize(x).parts["absmax"]
        packed.parts.update(nest(scales, case["offset"]))
        assert same(packed.parts["nested_absmax"], case["nested_absmax"])
    assert same(packed.parts["absmax"], case["absmax"])
    assert same(quantizer.dequantize(packed).astype(x.dtype), case["dequant"])


@pytest.mark.parametrize(**params("bnb_quantize_blockwise", "input", "code", "blocksize"))
def test_dynamic_is_exact_where_the_cpu_kernel_is_not(case):
    quantizer = get("dynamic", signed=case["code"] == "dynamic_signed", block=case["blocksize"])
    packed = quantizer.quantize(case["x"])
    assert same(packed.parts["codes"], case["exact_q_cuda_semantics"])
    assert same(packed.parts["absmax"], case["absmax"])
    assert same(quantizer.dequantize(packed), case["exact_dequant"])
    assert np.mean(packed.parts["codes"] != case["bnb_cpu_q"]) == case["mismatch_fraction"]


@pytest.mark.parametrize(**params("torchao_optim8bit_quant", "map"))
def test_dynamic_as_torchao_has_it(case):
    quantizer = get("dynamic", signed=case["map"] == "signed", ties_up=True)
    packed = quantizer.quantize(case["x"])
    assert same(packed.parts["codes"], case["q"])
    assert same(packed.parts["absmax"], case["scale"])
    assert same(quantizer.dequantize(packed), case["dequant"])
