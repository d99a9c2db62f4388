"""Real torch modules and transformers configs are models too."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import weigh
from weigh.errors import InputError

CONFIGS = [
    GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=100),
    LlamaConfig(
        num_hidden_layers=5,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=99,
    ),
    LlamaConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=2, head_dim=16, tie_word_embeddings=True),
]
by_type = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.model_type)


@by_type
def test_a_module_is_its_config(config) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    report = weigh.params(module)
    assert report.total == sum(p.numel() for p in module.parameters())
    assert report.tensors() == {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert report.dtype.name == "bf16"
    assert report.tensors() == weigh.params(config).tensors()


def test_a_module_without_its_head_is_refused() -> None:
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(CONFIGS[0])
    with pytest.raises(InputError, match="with its head"):
        weigh.params(module.transformer)


def test_a_module_without_a_config_is_refused() -> None:
    with pytest.raises(InputError, match="a Linear is no model"):
        weigh.params(torch.nn.Linear(2, 2))


def test_weigh_itself_imports_no_torch() -> None:
    code = "import sys, weigh; weigh.train('gpt2'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
