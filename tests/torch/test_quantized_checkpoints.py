"""Checkpoints that weigh writes, loaded by the libraries whose formats they are: the values are those that weigh reads.

Loaded on the CPU; of compressed-tensors and FP8 the dequantized model, whose matrices are exactly those of the format.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from safetensors.torch import load_file

import weigh
from weigh.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small Llama in shards, with an outlier."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    made = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        made.model.layers[0].mlp.up_proj.weight[3, 5] = -7
        made.model.layers[0].self_attn.k_proj.weight[:64] = 0
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder / "plain")
    return folder / "plain"


def rewritten(model: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    """What weigh writes, and the values that it reads from it."""
    assert main(["quantize", str(model), "--out", str(out), "--workers", "1", *words]) == 0
    assert main(["dequantize", str(out), "--out", f"{out}-plain", "--workers", "1"]) == 0
    return load_file(f"{out}-plain/model.safetensors")


def loaded(folder: Path, **settings: Any) -> torch.nn.Module:
    made: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
    return made


def same(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], count: int) -> None:
    assert len(theirs) == count
    for name, values in theirs.items():
        assert torch.equal(values.to(torch.bfloat16), ours[name]), name


def stored_as_predicted(out: Path) -> None:
    """The header has the bytes that `weigh params` predicts from the config alone."""
    predicted, read = weigh.params(out / "config.json").stored, weigh.params(out).stored
    assert predicted is not None
    assert read is not None
    assert (predicted.basis, read.basis) == ("quantization_config", "header")
    assert predicted.by_dtype() == read.by_dtype()


@pytest.mark.parametrize("words", ["nf4", "fp4", "nf4 --double-quantization"])
def test_four_bits(model: Path, tmp_path: Path, words: str) -> None:
    ours = rewritten(model, tmp_path / "out", "--to", *words.split())
    found = {
        f"{name}.weight": bitsandbytes.functional.dequantize_4bit(m.weight.data, m.weight.quant_state)
        for name, m in loaded(tmp_path / "out").named_modules()
        if isinstance(m, bitsandbytes.nn.Linear4bit)
    }
    same(found, ours, 14)
    stored_as_predicted(tmp_path / "out")


def test_int8(model: Path, tmp_path: Path) -> None:
    ours = rewritten(model, tmp_path / "out", "--to", "int8")
    found = {
        f"{name}.weight": bitsandbytes.functional.int8_vectorwise_dequant(m.weight.data, m.weight.SCB)
        for name, m in loaded(tmp_path / "out").named_modules()
        if isinstance(m, bitsandbytes.nn.Linear8bitLt)
    }
    same(found, ours, 14)
    stored_as_predicted(tmp_path / "out")


@pytest.mark.parametrize("words", ["w4a16", "w4a16 --group 32", "w8a16", "w8a8", "fp8", "nvfp4", "mxfp4", "fp8-block"])
def test_dequantized_by_transformers(model: Path, tmp_path: Path, words: str) -> None:
    ours = rewritten(model, tmp_path / "out", "--to", *words.split())
    settings = transformers.FineGrainedFP8Config if "block" in words else transformers.CompressedTensorsConfig
    with warnings.catch_warnings(action="ignore"):  # that the file has a config too
        found = loaded(tmp_path / "out", quantization_config=settings(dequantize=True)).state_dict()
    same(found, ours, 21)
    stored_as_predicted(tmp_path / "out")
    plain = load_file(model / "model.safetensors")
    changed = [name for name in plain if not torch.equal(plain[name], ours[name])]
    assert len(changed) == 14
    assert all((ours[n].float() - plain[n].float()).norm() < 0.2 * plain[n].float().norm() for n in changed)
