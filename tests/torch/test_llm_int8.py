"""LLM.int8() as a module: the same numbers as on arrays, and as bitsandbytes but for its constant."""

import copy

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from weigh.quant import llm_int8
from weigh.quant.llm_int8_torch import Linear8bit, convert

RATIO = 6.200124e-05 * 127**2
"""bitsandbytes' CPU back end scales by so much more."""


def inputs(rows=33, width=512, outputs=48):
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, outputs)
    hidden = torch.randn(rows, width)
    hidden[:, 7] = 30 * torch.randn(rows).sign()
    hidden[4, 100] = 6.0
    return layer, hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_module_and_arrays_are_one(dtype, threshold):
    layer, hidden = inputs()
    module = Linear8bit.of(layer, threshold)
    found = module(hidden.to(dtype)).float().numpy()
    weight = llm_int8.WEIGHT.quantize(layer.weight.detach().numpy())
    source = hidden.to(dtype).float().numpy()
    if dtype is torch.bfloat16:
        import ml_dtypes

        source = source.astype(ml_dtypes.bfloat16)
    elif dtype is torch.float16:
        source = source.astype(np.float16)
    on_arrays = llm_int8.linear(source, weight, layer.bias.detach().numpy(), threshold).astype(np.float32)
    step = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert np.abs(found - on_arrays).max() <= step * np.abs(on_arrays).max()


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_bitsandbytes(threshold):
    layer, hidden = inputs()
    theirs = bnb.nn.Linear8bitLt(512, 48, has_fp16_weights=False, threshold=threshold)
    theirs.load_state_dict(copy.deepcopy(layer).state_dict())
    theirs = theirs.to("cpu").eval()
    with torch.no_grad():
        expected = theirs(hidden)
    ours = Linear8bit.of(layer, threshold)
    assert torch.equal(ours.codes, theirs.weight.CB if theirs.weight.CB is not None else theirs.state.CB)
    found = ours(hidden)
    by_row = (found - expected).abs().amax(dim=1) / expected.abs().max()
    # PyTorch's 127 / absmax is a rounded reciprocal times 127: a half may round to the code beside, in a row or two.
    assert (by_row > 1.2 * (RATIO - 1)).sum() <= 2
    a_code = hidden.abs().amax() / 127 * layer.weight.abs().max()
    assert (found - expected).abs().max() < a_code


def test_a_model_is_converted_but_for_its_head():
    model = torch.nn.Sequential()
    model.add_module("up", torch.nn.Linear(64, 128))
    model.add_module("lm_head", torch.nn.Linear(128, 10))
    assert convert(model) == ["up"]
    assert isinstance(model.up, Linear8bit)
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert model(torch.randn(2, 3, 64)).shape == (2, 3, 10)
