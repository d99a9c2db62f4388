"""Integers, fp8, MX and NVFP4 as compressed-tensors and torchao have them, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
from golden import cases, params, same

from weigh.quant import get, parse
from weigh.quant.bits import pack_words, unpack_words
from weigh.quant.floats import to_e2m1

SCHEMES = {
    "w4a16_sym_g32": "int4:group=32",
    "w4a16_asym_g32": "int4_asymmetric:group=32",
    "w8_channel": "int8_channel",
    "fp8_channel": "fp8",
    "fp8_tensor": "fp8_tensor",
    "nvfp4": "nvfp4:from_stored=false",
    "mxfp4": "mxfp4",
}
PARTS = {
    "codes": "weight_packed",
    "scale": "weight_scale",
    "zero_point": "weight_zero_point",
    "global_scale": "weight_global_scale",
}
MAPPINGS = {
    "SYMMETRIC": {},
    "SYMMETRIC_NO_CLIPPING_ERR": {"clips": False},
    "ASYMMETRIC": {"symmetric": False},
}
SCOPES = {"per_row": "row", "group32": "group", "per_tensor": "tensor"}
ELEMENTS = {
    "torch.float8_e4m3fn": "fp8_e4m3",
    "torch.float8_e5m2": "fp8_e5m2",
    "torch.float4_e2m1fn_x2": "fp4_e2m1",
}


@pytest.mark.parametrize(**params("compressed_tensors_pack", "bits"))
def test_words(case):
    bits = case["bits"]
    codes = (case["value"].astype(int) + 2 ** (bits - 1)).astype(np.uint8)
    packed = pack_words(codes, bits)
    assert same(packed, case["packed_dim1"])
    assert same(unpack_words(packed, bits, codes.shape[1]), codes)


@pytest.mark.parametrize(**params("compressed_tensors_schemes", "scheme"))
def test_compressed_tensors(case):
    quantizer, stored = parse(SCHEMES[case["scheme"]]), case["state_dict"]
    packed = quantizer.quantize(case["W"])
    for name, part in packed.parts.items():
        assert same(part, stored.get(PARTS[name], stored.get("weight"))), name
    assert same(quantizer.dequantize(packed).astype(case["dequant"].dtype), case["dequant"])


@pytest.mark.parametrize(**params("torchao_affine", "mapping", "bits", "qmin", "granularity"))
def test_torchao_integers(case):
    quantizer = get(
        "int4",
        bits=case["bits"],
        narrow=case["qmin"] == -127,
        scope=SCOPES[case["granularity"]],
        group=32,
        by_reciprocal=True,
        **MAPPINGS[case["mapping"]],
    )
    packed = quantizer.quantize(case["x"])
    assert same(packed.parts["scale"].reshape(-1), case["scale"].reshape(-1))
    if case["bits"] == 8:
        assert same(packed.parts["codes"], case["q"])
    else:
        assert same(unpack_words(packed.parts["codes"], 4, 64).astype(np.int8) - np.int8(8), case["q"])
    assert same(quantizer.dequantize(packed), case["dequant"])


@pytest.mark.parametrize(**params("torchao_mx", "input", "elem", "scaling_mode"))
def test_mx(case):
    quantizer = get("mxfp4", element=ELEMENTS[case["elem"]], rule=case["scaling_mode"].lower())
    packed = quantizer.quantize(case["x"])
    assert same(packed.parts["scale"], case["scale_e8m0"])
    assert same(packed.parts["codes"].view(np.uint8), case["data"])


@pytest.mark.parametrize(**params("torchao_nvfp4", "input"))
def test_nvfp4(case):
    blocks = case["per_tensor_scale"] is None
    packed = get("nvfp4", dialect="torchao-blocks" if blocks else "torchao").quantize(case["x"])
    assert same(packed.parts["scale"].view(np.uint8), case["block_scale_e4m3"])
    assert same(packed.parts["codes"], case["data"])
    assert blocks or same(packed.parts["global_scale"][0], case["per_tensor_scale"])


@pytest.mark.parametrize("case", [c for c in cases("absmax_articles") if "method" in c], ids=lambda c: c["case"])
def test_zero_point(case):
    quantizer = get("zeropoint")
    packed = quantizer.quantize(np.array(case["x"], np.float32))
    assert packed.parts["codes"].tolist() == case["q"]
    assert packed.parts["zero_point"] == case["zero_point"]
    assert np.allclose(quantizer.dequantize(packed), case["dequant"], rtol=2**-21, atol=0)  # theirs is in fp64


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_casts_to_fp8(name):
    case = next(c for c in cases("fp8_fp4_casts") if c["type"] == name)
    quantizer = get({"float8_e4m3fn": "cast_fp8_e4m3", "float8_e5m2": "cast_fp8_e5m2"}[name])
    packed = quantizer.quantize(case["edge"])
    assert same(packed.parts["values"].view(np.uint8), case["torch_q"])
    packed.parts["values"] = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name))
    codes = type(packed)(packed.parts, (256,), packed.dtype)
    assert same(quantizer.dequantize(codes), case["decode_table"])


def test_casts_to_e2m1():
    case = next(c for c in cases("fp8_fp4_casts") if c["type"] == "float4_e2m1fn")
    assert same(to_e2m1(case["edge"]), case["ml_dtypes_q"])
