"""What `weigh params` predicts a file to hold and what the quantizers make are the same tensors."""

import pytest

from weigh import formats
from weigh.dtypes import BFLOAT16, FLOAT32
from weigh.formats.base import LINEAR, Weight
from weigh.quant import parse

SHAPES = [(384, 1536), (130, 512), (8, 32 * 7)]
BNB = {"quant_method": "bitsandbytes"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def compressed(form, **weights):
    scheme = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": scheme}}


GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
CASES = {
    "nf4": (BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"codes": "weight", "absmax": "weight.absmax"}),
    "fp4_double": (
        BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
        {"codes": "weight", "absmax": "weight.absmax", "nested_absmax": "weight.nested_absmax"},
    ),
    "int8": (BNB | {"load_in_8bit": True}, {"codes": "weight", "absmax": "SCB"}),
    "fp8_block": (FP8, {"codes": "weight", "scale": "weight_scale_inv"}),
    "int4:group=32,scale_dtype=bf16": (
        compressed("pack-quantized", symmetric=True, **GROUP),
        {"codes": "weight_packed", "scale": "weight_scale"},
    ),
    "int4_asymmetric:group=32,bits=3,scale_dtype=bf16": (
        compressed("pack-quantized", **GROUP | {"symmetric": False, "num_bits": 3}),
        {"codes": "weight_packed", "scale": "weight_scale", "zero_point": "weight_zero_point"},
    ),
    "int8_channel:scale_dtype=bf16": (
        compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True),
        {"codes": "weight", "scale": "weight_scale"},
    ),
    "fp8:scale_dtype=bf16": (
        compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True),
        {"codes": "weight", "scale": "weight_scale"},
    ),
    "nvfp4": (
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        {"codes": "weight_packed", "scale": "weight_scale", "global_scale": "weight_global_scale"},
    ),
    "mxfp4": (
        compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
        {"codes": "weight_packed", "scale": "weight_scale"},
    ),
}


@pytest.mark.parametrize("spec", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_tensors(spec, shape):
    config, names = CASES[spec]
    form = formats.read({"quantization_config": config, "transformers_version": "5.0"})
    weight = Weight("model.layers.0.mlp.up_proj.weight", *shape, BFLOAT16, LINEAR)
    predicted = {s.name.removeprefix("model.layers.0.mlp.up_proj."): s for s in form.store(weight)}
    layout = parse(spec).layout(shape)
    assert set(layout) - set(names) <= {"nested_offset"}  # which lies in the JSON of bitsandbytes' state
    for part, name in names.items():
        assert (layout[part].shape, layout[part].dtype) == (predicted[name].shape, predicted[name].dtype), part
    rest = {name: stored.num_bytes for name, stored in predicted.items() if name not in names.values()}
    tables = {"weight.quant_map": 64, "weight.nested_quant_map": 1024, "weight_format": 1, "weight_shape": 16}
    assert all(tables.get(name, size) == size for name, size in rest.items())
    assert set(rest) <= {*tables, *(name for name in rest if "quant_state" in name)}


def test_headers_of_gguf_count_the_same():
    from weigh.dtypes import TABLE
    from weigh.quant.ggml import TYPES, Ggml

    for name in TYPES:
        shape = (3, 1024)
        assert Ggml(name).num_bytes(shape) == 3 * TABLE[name].num_bytes(1024)
    assert parse("cast_bf16").num_bytes((3, 5)) == 15 * BFLOAT16.itemsize
    assert parse("sparse:dtype=fp32,sparsity=0").layout((4, 8))["values"].num_bytes == 32 * FLOAT32.itemsize
