"""Every tensor of random GPT-2 and Llama configs: names, shapes, order and ties, against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh import models
from weigh.dtypes import FLOAT32
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import recording


@st.composite
def gpt2_configs(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    return {
        "model_type": "gpt2",
        "vocab_size": draw(st.integers(2, 3000)),
        "n_positions": draw(st.integers(1, 300)),
        "n_embd": heads * draw(st.integers(1, 24)),
        "n_layer": draw(st.integers(1, 9)),
        "n_head": heads,
        "n_inner": draw(st.none() | st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def llama_configs(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 12))
    explicit = draw(st.booleans())
    config = {
        "model_type": "llama",
        "vocab_size": draw(st.integers(2, 3000)),
        "hidden_size": heads * draw(st.integers(1, 40)) if explicit else heads * head_dim,
        "intermediate_size": draw(st.integers(1, 300)),
        "num_hidden_layers": draw(st.integers(1, 9)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
    }
    return config | {"head_dim": head_dim} if explicit else config


def upstream(config: dict[str, Any]) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    """Names and shapes of transformers' parameters (a tied one once), and the bytes of its buffers."""
    settings_ = {k: v for k, v in config.items() if k != "model_type"} | {"bos_token_id": None, "eos_token_id": None}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.CONFIG_MAPPING[config["model_type"]](**settings_)
        )
    model.tie_weights()
    named = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    return named, sum(b.numel() * b.element_size() for b in model.buffers())


def ghost(config: dict[str, Any], unroll: bool) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    with recording() as ledger, unrolled(unroll):
        model = models.build(config, FLOAT32)
        parameters = model.parameters()
        named = [(n, p.tensor.shape) for p in parameters for n in p.names[:1]] if unroll else []
        buffers = sum(a.num_bytes for a in ledger.allocations if a.purpose == "buffer")
        if not unroll:
            named = [(n, p.tensor.shape) for p in parameters for n in p.names]
        return named, buffers


@pytest.mark.torch
@settings(max_examples=40, deadline=None, derandomize=True)
@given(gpt2_configs() | llama_configs())
def test_every_tensor(config: dict[str, Any]) -> None:
    theirs, their_buffers = upstream(config)
    ours, our_buffers = ghost(config, unroll=True)
    assert ours == theirs
    assert our_buffers == their_buffers


@pytest.mark.torch
@settings(max_examples=20, deadline=None, derandomize=True)
@given(gpt2_configs() | llama_configs())
def test_compressed_stack_has_the_same_tensors(config: dict[str, Any]) -> None:
    theirs, _ = upstream(config)
    ours, _ = ghost(config, unroll=False)
    assert sorted(ours) == sorted(theirs)
