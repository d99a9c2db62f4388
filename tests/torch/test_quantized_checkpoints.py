"""Checkpoints that weigh writes, loaded by the libraries whose formats they are: the values are those that weigh reads.

Loaded on the CPU; of compressed-tensors and FP8 the dequantized model, whose matrices are exactly those of the format.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import gguf
import pytest
import tokenizers
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
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=400,
    )
    made = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        made.model.layers[0].mlp.up_proj.weight[3, 5] = -7
        made.model.layers[0].self_attn.k_proj.weight[:64] = 0
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder / "plain")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    words.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder / "plain")
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


@pytest.mark.parametrize("words", ["w4a16 --group 32", "w8a16", "w8a8", "fp8", "nvfp4", "mxfp4", "fp8-block"])
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


KINDS = {"q8_0": 0.02, "q4_k": 0.12, "q6_k": 0.03, "iq4_xs": 0.12, "bf16": 0.0}
"""With the largest relative error of a matrix of normal numbers."""


@pytest.mark.parametrize("kind", KINDS)
def test_gguf(model: Path, tmp_path: Path, kind: str) -> None:
    """The gguf package reads the bytes as weigh does; transformers finds the model in them."""
    plain = load_file(model / "model.safetensors")
    assert main(["quantize", str(model), "--out", str(tmp_path / "out"), "--workers", "1", "--to", kind]) == 0
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    values = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    if kind not in ("bf16", "f16"):
        assert main(["dequantize", str(tmp_path / "out"), "--out", str(tmp_path / "plain"), "--workers", "1"]) == 0
        ours = load_file(tmp_path / "plain/model.safetensors")
        assert values.keys() == ours.keys()
        for name, found in values.items():
            assert torch.equal(torch.from_numpy(found.copy()), ours[name].float()), name
    made = loaded(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32).state_dict()
    assert made.keys() == plain.keys()
    for name, original in plain.items():
        error = (made[name] - original.float()).norm() / original.float().norm()
        assert error <= KINDS[kind], name


def test_gguf_keeps_the_tokenizer(model: Path, tmp_path: Path) -> None:
    """A tokenizer of byte pairs, as transformers reads it out of the file again."""
    assert main(["quantize", str(model), "--out", str(tmp_path / "out"), "--workers", "1", "--to", "q8_0"]) == 0
    mine = transformers.AutoTokenizer.from_pretrained(model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    for text in ("the other tensor", "a  b\n\n12345", "é €"):
        assert theirs(text).input_ids == mine(text).input_ids
