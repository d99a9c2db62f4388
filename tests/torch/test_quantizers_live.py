"""Quantizers beside the libraries themselves, on every pattern of 16 bits and on values of all sizes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import pytest
import torch

from weigh.dtypes import FLOAT32
from weigh.quant import codebooks, get
from weigh.quant.base import Packed
from weigh.quant.bits import unpack_words
from weigh.quant.four_bit import nest

SOURCES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}


def patterns(name):
    """Every finite number of the format, in the order of its bits: blocks of neighbours, tiny ones and huge ones."""
    every = np.arange(1 << 16, dtype=np.uint16).view(SOURCES[name])
    return every[np.isfinite(every.astype(np.float32))]


def to_torch(array, name):
    return torch.from_numpy(array.view(np.int16).copy()).view(TORCH[name])


def mixed(rows=96, columns=512, seed=0):
    """Normal numbers of very different scales, zeros, and a large one here and there."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)) * rng.lognormal(0, 4, (rows, 1))
    values[rng.random(values.shape) < 0.01] = 0
    values[rng.random(values.shape) < 0.002] *= 50
    return values.astype(np.float32)


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("source", [*SOURCES, "fp32"])
def test_four_bit_as_bitsandbytes(code, source):
    for block in (64, 256):
        values = mixed() if source == "fp32" else patterns(source)
        tensor = torch.from_numpy(values) if source == "fp32" else to_torch(values, source)
        whole = values.size // block * block  # its last block, where not full, is divided instead of multiplied
        values, tensor = values.reshape(-1)[:whole], tensor.reshape(-1)[:whole]
        theirs, state = bnb.quantize_4bit(tensor, blocksize=block, quant_type=code)
        quantizer = get(code, block=block)
        packed = quantizer.quantize(values)
        assert (packed.parts["codes"] == theirs.numpy()).all()
        assert (packed.parts["absmax"] == state.absmax.numpy()).all()
        back = bnb.dequantize_4bit(theirs, state).float().numpy()
        ours = torch.from_numpy(quantizer.dequantize(packed)).to(tensor.dtype).float().numpy()
        back = back.reshape(-1)
        tiny = np.abs(ours) <= 2.0**-126  # which its conversion to bf16 makes zero
        assert ((ours == back) | tiny).all()


def test_double_quantization_but_for_codes_that_are_not_the_nearest():
    values = mixed(512, 512)
    theirs, state = bnb.quantize_4bit(torch.from_numpy(values), quant_type="nf4", compress_statistics=True)
    packed = get("nf4").quantize(values)
    ours = nest(packed.parts["absmax"], state.offset.numpy())
    assert (packed.parts["codes"] == theirs.numpy()).all()
    assert (ours["nested_absmax"] == state.state2.absmax.numpy()).all()
    codes = state.absmax.numpy()
    table = state.state2.code.numpy()
    scaled = (packed.parts["absmax"] - ours["nested_offset"]) / np.repeat(ours["nested_absmax"], 256)[: codes.size]
    assert (np.abs(table[ours["absmax"]] - scaled) <= np.abs(table[codes] - scaled) + 1e-7).all()


@pytest.mark.parametrize("source", SOURCES)
def test_int8_rows_as_bitsandbytes(source):
    values = patterns(source)
    values = values[np.abs(values.astype(np.float32)) < 60000]
    values = values[: values.size // 128 * 128].reshape(-1, 128)
    theirs, scales, _ = bnb.int8_vectorwise_quant(to_torch(values, source).reshape(values.shape))
    packed = get("absmax_row").quantize(values)
    assert (packed.parts["absmax"] == scales.numpy()).all()
    # PyTorch's 127 / absmax is a product with the rounded reciprocal: halves may fall either way.
    different = packed.parts["codes"].astype(int) - theirs.numpy()
    scaled = values.astype(np.float64) * 127 / scales.numpy()[:, None]
    with np.errstate(invalid="ignore"):
        halves = np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) < 1e-4
    tiny = scales.numpy() < 1e-36  # whose reciprocal overflows: there its codes are no codes
    assert (np.abs(different[~tiny]) <= halves[~tiny]).all()


@pytest.mark.parametrize("name", ["cast_fp8_e4m3", "cast_fp8_e5m2", "cast_bf16", "cast_fp16"])
@pytest.mark.parametrize("source", SOURCES)
def test_casts_of_every_pattern_are_pytorchs(name, source):
    every = np.arange(1 << 16, dtype=np.uint16).view(SOURCES[source])
    dtypes = {"cast_fp8_e4m3": torch.float8_e4m3fn, "cast_fp8_e5m2": torch.float8_e5m2}
    wanted = dtypes.get(name, {"cast_bf16": torch.bfloat16, "cast_fp16": torch.float16}.get(name))
    theirs = to_torch(every, source).to(wanted).float().numpy()
    quantizer = get(name)
    ours = quantizer.round_trip(every)
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert (np.signbit(ours) == np.signbit(theirs))[~np.isnan(ours)].all()


@pytest.mark.parametrize("source", SOURCES)
def test_ggml_types_as_gguf(source):
    gguf = pytest.importorskip("gguf")
    values = patterns(source).astype(np.float32)
    values = values[(np.abs(values) < 60000) & ((np.abs(values) > 1e-30) | (values == 0))]
    values = values[: values.size // 256 * 256].reshape(-1, 256)
    for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "tq1_0", "tq2_0", "mxfp4_ggml"):
        kind = getattr(gguf.GGMLQuantizationType, name.removesuffix("_ggml").upper())
        with np.errstate(all="ignore"):
            theirs = gguf.quants.quantize(values, kind)
        quantizer = get(name)
        packed = quantizer.quantize(values)
        assert (packed.parts["blocks"] == theirs).all(), name
        assert np.array_equal(quantizer.dequantize(packed), gguf.quants.dequantize(theirs, kind)), name


def test_every_ggml_type_is_read_as_gguf_reads_it():
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(1)
    names = "q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s nvfp4_ggml".split()
    for name in names:
        kind = getattr(gguf.GGMLQuantizationType, name.removesuffix("_ggml").upper())
        quantizer = get(name)
        shape = (64, 256)
        blocks = rng.integers(0, 256, quantizer.layout(shape)["blocks"].shape, np.uint8)
        with np.errstate(all="ignore"):
            theirs = gguf.quants.dequantize(blocks, kind)
        ours = quantizer.dequantize(Packed({"blocks": blocks}, shape, FLOAT32))
        assert np.array_equal(ours, theirs.astype(np.float32), equal_nan=True), name


@pytest.mark.parametrize(
    ("name", "settings", "arguments"),
    [
        ("int4", {"group": 128}, {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
        ("int4", {"bits": 3, "group": 64}, {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 64}),
        ("int4_asymmetric", {"group": 32}, {"symmetric": False, "strategy": "group", "group_size": 32, "num_bits": 4}),
        ("int8_channel", {}, {"num_bits": 8, "type": "int", "strategy": "channel"}),
        ("fp8", {}, {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ],
)
def test_compressed_tensors(name, settings, arguments):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    values, args = mixed(64, 512), QuantizationArgs(**arguments)
    quantizer = get(name, **settings)
    packed = quantizer.quantize(values)
    groups = torch.from_numpy(values).reshape(64, -1, arguments.get("group_size", 512))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    codes = quantize(torch.from_numpy(values), scale, zero, args)
    assert (packed.parts["scale"] == scale.numpy()).all()
    stored = packed.parts["codes"]
    if stored.dtype == np.int32:
        stored = unpack_words(stored, args.num_bits, 512).astype(int) - 2 ** (args.num_bits - 1)
    assert (stored.astype(np.float32) == codes.float().numpy()).all()


TORCHAO = """
import sys
import numpy as np
import torch
from torchao.optim.quant_utils import quantize_8bit_with_qmap, scale_tensor
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

given = np.load(sys.argv[1])
x, table, found = torch.from_numpy(given["x"]), torch.from_numpy(given["table"]), {}
for name, kind in (("fp8_e4m3", torch.float8_e4m3fn), ("fp4_e2m1", torch.float4_e2m1fn_x2)):
    for rule in ("floor", "ceil", "even", "rceil"):
        scale, codes = to_mx(x, kind, 32, ScaleCalculationMode(rule))
        found[f"{name} {rule} scale"], found[f"{name} {rule} codes"] = scale.view(torch.uint8), codes.view(torch.uint8)
found["nvfp4 scale"], found["nvfp4 codes"] = nvfp4_quantize(x, 16, per_tensor_amax_to_scale(x.abs().max()))
found["nvfp4 scale"] = found["nvfp4 scale"].view(torch.uint8)
scaled, found["dynamic absmax"] = scale_tensor(x.reshape(-1), 256)
found["dynamic codes"] = quantize_8bit_with_qmap(scaled, table)
for mapping in (MappingType.SYMMETRIC, MappingType.ASYMMETRIC):
    scale, zero = choose_qparams_affine(x, mapping, (1, 64), torch.int8)
    codes = quantize_affine(x, (1, 64), scale, zero, torch.int8)
    found[f"{mapping.name} scale"], found[f"{mapping.name} codes"] = scale, codes
np.savez(sys.argv[2], **{name: array.numpy() for name, array in found.items()})
"""


def test_torchao(tmp_path):
    """In a process of its own: where it is installed, transformers and peft load it, and say much."""
    beside = Path(sys.prefix) / "torchao"  # where the Makefile puts it
    if not beside.exists() and importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    values = mixed(64, 512)
    np.savez(tmp_path / "x.npz", x=values, table=codebooks.dynamic_map())
    command = [sys.executable, "-W", "ignore", "-c", TORCHAO, tmp_path / "x.npz", tmp_path / "found.npz"]
    path = os.pathsep.join([str(beside), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    theirs = np.load(tmp_path / "found.npz")
    for element in ("fp8_e4m3", "fp4_e2m1"):
        for rule in ("floor", "ceil", "even", "rceil"):
            parts = get("mxfp4", element=element, rule=rule).quantize(values).parts
            for part in ("scale", "codes"):
                assert (parts[part].view(np.uint8) == theirs[f"{element} {rule} {part}"]).all()
    parts = get("nvfp4", dialect="torchao").quantize(values).parts
    assert (parts["scale"].view(np.uint8) == theirs["nvfp4 scale"]).all()
    assert (parts["codes"] == theirs["nvfp4 codes"]).all()
    parts = get("dynamic", ties_up=True).quantize(values).parts
    assert (parts["absmax"] == theirs["dynamic absmax"]).all()
    assert (parts["codes"].reshape(-1) == theirs["dynamic codes"]).all()
    for mapping in ("SYMMETRIC", "ASYMMETRIC"):
        settings = {"bits": 8, "group": 64, "symmetric": mapping == "SYMMETRIC", "by_reciprocal": True}
        parts = get("int4", **settings).quantize(values).parts
        assert (parts["scale"] == theirs[f"{mapping} scale"]).all()
        assert (parts["codes"] == theirs[f"{mapping} codes"]).all()
