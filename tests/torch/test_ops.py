"""Every row of the op table, and what is made of rows, beside real PyTorch: equal to the byte at every birth.

On CUDA the witness runs fake tensors under a dispatch mode, on the CPU real tensors under one; ghost tensors run with
the kernels that such a run takes (`traced`). Compared are the outputs' shapes, dtypes and strides, the bytes saved for
the backward pass, the live bytes after each allocation of both passes, what lives between and after them, and the
gradients' layouts.
"""

from __future__ import annotations

from typing import Any

import pytest
import support.attention_programs
import support.composite_programs
import support.expert_programs
import support.family_programs
import support.matrix_programs
import support.recurrent_programs  # noqa: F401  they enter their programs
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from support import ghost_side
from support.client import Witness
from support.programs import PROGRAMS

from weigh.ghost.ops.table import TABLE

pytestmark = pytest.mark.torch

CASES = [(name, device) for name, program in PROGRAMS.items() for device in program.devices]
COMPARED = ("saved", "outputs", "forward", "after forward", "backward", "after backward", "gradients", "at last")
"""The first is left out for checkpoints, where PyTorch keeps the arguments through the hook that counts."""

ELSEWHERE = {
    "LigerCrossEntropyFunction": "kernels/test_measured_kernels.py",
    "LigerFusedLinearCrossEntropyFunction": "kernels/test_measured_kernels.py",
    "LigerFusedLinearCrossEntropyFunction.chunks": "kernels/test_liger.py",
    "LigerRMSNormFunction": "kernels/test_liger.py",
    "LigerRopeFunction": "kernels/test_liger.py",
    "LigerSiLUMulFunction": "kernels/test_liger.py",
    "LinearCrossEntropyFunction": "kernels/test_liger.py",
    "OffloadedCheckpointFunction": "techniques/test_offloading.py",
    "WQLinearMMFunction": "kernels/test_liger.py",
    "QuantLinearFunction": "validate/test_training_cases.py",
    "flash_attn::apply_rotary": "validate/test_training_cases.py",
    "MatMul8bitLt": "torch/test_int8.py",
    "MatMul4Bit": "validate/test_training_cases.py",
}
"""Rows whose real kernels need a GPU or another library, and the tests that hold them against those."""


@st.composite
def requests(draw: Any, name: str, device: str) -> dict[str, Any]:
    """A program with random inputs, and a gradient to start from: dense, or expanded as that of a sum is."""
    inputs, attributes = PROGRAMS[name].draw(draw)
    seed = draw(st.sampled_from(("dense", "expanded")))
    return {"program": name, "device": device, "inputs": inputs, "attributes": attributes, "seed": seed}


def fake_layouts_differ(request: dict[str, Any]) -> bool:
    """An expanded operand beside a permuted one.

    Fake tensors lay the output of an elementwise op out by PyTorch's Python formulas, which take strides of zero for
    an order; the C++ ones (TensorIterator.cpp), which a GPU runs as the CPU does, pass over them. The CPU's runs are
    the test of those.
    """
    inputs = [i for i in request["inputs"] if len(i["shape"]) > 1]
    expanded = request["seed"] == "expanded" or any(0 in i["strides"] for i in inputs)
    return expanded and any(i["strides"] != sorted(i["strides"], reverse=True) or 0 in i["strides"] for i in inputs)


@pytest.mark.parametrize(("name", "device"), CASES)
def test_a_program_allocates_what_pytorch_allocates(name: str, device: str, witness: Witness) -> None:
    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(requests(name, device))
    def compare(request: dict[str, Any]) -> None:
        assume(device == "cpu" or not fake_layouts_differ(request))
        real = witness.ask(request)
        assert "error" not in real, real["error"]
        ours = ghost_side.measure(request)
        keys = COMPARED[1:] if name.startswith("checkpoint") else COMPARED
        differing = {key: (ours.get(key), real.get(key)) for key in keys if ours.get(key) != real.get(key)}
        assert not differing, f"ours and PyTorch's of {request}: {differing}"

    compare()


@pytest.mark.parametrize("row", [row for row in TABLE if row not in ELSEWHERE])
def test_every_row_has_a_program_that_runs_it(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [(name, device) for name, device in CASES if row in PROGRAMS[name].rows]
    assert claims, f"no program covers {row}"
    seen: list[str] = []
    forward = TABLE[row].forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(row)
        return forward(*args, **kwargs)

    monkeypatch.setattr(TABLE[row], "forward", staticmethod(spy))

    @settings(max_examples=30, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.sampled_from(claims).flatmap(lambda claim: requests(*claim)))
    def run(request: dict[str, Any]) -> None:
        if not seen:
            ghost_side.measure(request)

    run()
    assert seen, f"none of {claims} runs {row}"
