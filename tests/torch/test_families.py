"""Every tensor of random configs of every family.

Names, shapes, order and ties, against transformers on the meta device.
"""

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


DECODERS: dict[str, tuple[str, ...]] = {
    "arcee": ("attention_bias", "mlp_bias"),
    "cohere": ("attention_bias", "use_qk_norm"),
    "cohere2": ("attention_bias",),
    "exaone4": (),
    "gemma": ("attention_bias",),
    "gemma2": ("attention_bias",),
    "gemma3_text": ("attention_bias",),
    "granite": ("attention_bias", "mlp_bias"),
    "llama": ("attention_bias", "mlp_bias"),
    "mistral": (),
    "olmo": ("attention_bias",),
    "olmo2": ("attention_bias",),
    "olmo3": ("attention_bias",),
    "phi3": (),
    "qwen2": (),
    "qwen3": ("attention_bias",),
    "seed_oss": ("attention_bias", "attention_out_bias", "mlp_bias"),
    "smollm3": ("attention_bias", "mlp_bias"),
    "starcoder2": ("use_bias",),
}
"""The relatives of Llama, and the flags that give them more tensors."""
LAYER_TYPES = ("cohere2", "exaone4", "gemma2", "gemma3_text", "olmo3", "qwen2", "qwen3", "smollm3")


@st.composite
def decoder_configs(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from(sorted(DECODERS)))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 12))
    explicit = draw(st.booleans())
    layers = draw(st.integers(1, 9))
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": draw(st.integers(2, 3000)),
        "hidden_size": heads * draw(st.integers(1, 40)) if explicit else heads * head_dim,
        "intermediate_size": draw(st.integers(1, 300)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": draw(st.booleans()),
    }
    config |= {flag: draw(st.booleans()) for flag in DECODERS[family]}
    if family in LAYER_TYPES and draw(st.booleans()):
        types = st.sampled_from(["full_attention", "sliding_attention"])
        config |= {"layer_types": draw(st.lists(types, min_size=layers, max_size=layers)), "use_sliding_window": True}
        config["sliding_window"] = draw(st.integers(2, 100))
    return config | {"head_dim": head_dim} if explicit else config


def upstream(config: dict[str, Any]) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    """Names and shapes of transformers' parameters (a tied one once), and the bytes of its buffers."""
    settings_ = {k: v for k, v in config.items() if k != "model_type"}
    settings_ |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
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
@settings(max_examples=250, deadline=None, derandomize=True)
@given(gpt2_configs() | decoder_configs())
def test_every_tensor(config: dict[str, Any]) -> None:
    theirs, their_buffers = upstream(config)
    ours, our_buffers = ghost(config, unroll=True)
    assert ours == theirs
    assert our_buffers == their_buffers


@pytest.mark.torch
@settings(max_examples=100, deadline=None, derandomize=True)
@given(gpt2_configs() | decoder_configs())
def test_compressed_stack_has_the_same_tensors(config: dict[str, Any]) -> None:
    theirs, _ = upstream(config)
    ours, _ = ghost(config, unroll=False)
    assert sorted(ours) == sorted(theirs)
