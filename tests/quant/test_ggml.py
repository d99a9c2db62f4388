"""GGML's blocks, bit for bit as its C code finds and reads them."""

import pytest
from golden import params, same

from weigh import dtypes
from weigh.errors import NotModelledError
from weigh.quant.base import Packed
from weigh.quant.ggml import TYPES, Ggml


def quantizer(case):
    name = case["type"].lower()
    return Ggml("nvfp4_ggml" if name == "nvfp4" else name)


@pytest.mark.parametrize(**params("ggml_blocks", "type", "input"))
def test_blocks(case):
    kind = quantizer(case)
    if TYPES[kind.type] == "grids":
        with pytest.raises(NotModelledError, match="quantizing to iq"):
            kind.quantize(case["x"])
    else:
        assert same(kind.quantize(case["x"]).parts["blocks"], case["q"])
    packed = Packed({"blocks": case["q"]}, case["x"].shape, dtypes.FLOAT32)
    assert same(kind.dequantize(packed), case["dequant"])
