"""What hybrids keep of a sequence: published figures, and the formulas of their papers."""

from typing import Any

import pytest

from weigh.dtypes import BFLOAT16
from weigh.ghost.state import recording
from weigh.models import build
from weigh.models.layout import FULL, LayerCache
from weigh.recipes.keeping import Keeping, keep

GIB = 2**30
JAMBA = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "vocab_size": 65536}
NEMOTRON = {"hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 131072}
QWEN = {"hidden_size": 2048, "num_attention_heads": 16, "vocab_size": 151936}
ZAMBA = {"hidden_size": 2560, "num_attention_heads": 32, "vocab_size": 32000}


def layers(model_type: str, **config: Any) -> tuple[LayerCache, ...]:
    with recording():
        return build({"model_type": model_type, **config}, BFLOAT16).cache_layout()


def bytes_of(found: tuple[LayerCache, ...], context: int) -> tuple[int, int]:
    """Of keys and values, and of states, of one sequence."""
    kept = keep(found, Keeping(context), BFLOAT16)
    return sum(k.tokens * k.bytes_per_token for k in kept), sum(k.state_bytes for k in kept)


def test_qwen3_next_keeps_three_quarters_of_a_gibibyte_of_32k_tokens() -> None:
    keys_and_values, states = bytes_of(layers("qwen3_next", num_hidden_layers=48, **QWEN), 32768)
    assert keys_and_values == 0.75 * GIB
    assert states == 36 * ((2 * 16 + 32) * 128 * 4 * 2 + 32 * 128 * 128 * 4)


def test_jamba_keeps_keys_and_values_in_four_layers_of_32() -> None:
    keys_and_values, states = bytes_of(layers("jamba", num_hidden_layers=32, **JAMBA), 256 * 1024)
    assert keys_and_values == 4 * GIB  # "only 4 GB for 256K context" (arXiv 2403.19887, table 1)
    assert states == 28 * 8192 * (4 * 2 + 16 * 4)


def test_mamba_keeps_no_more_of_more_tokens() -> None:
    mamba = layers("mamba", hidden_size=2560, num_hidden_layers=64, state_size=16, vocab_size=50280)
    assert bytes_of(mamba, 1) == bytes_of(mamba, 10**6) == (0, 64 * 5120 * (4 * 2 + 16 * 4))


def test_zamba2_keeps_keys_and_values_once_for_every_use_of_its_shared_block() -> None:
    found = layers("zamba2", num_hidden_layers=54, **ZAMBA)
    assert sum(layer.kind == FULL for layer in found) == 9
    assert all(layer.states for layer in found)
    assert bytes_of(found, 4096)[0] == 9 * 4096 * 2 * 32 * 160 * 2


@pytest.mark.parametrize(("pattern", "attention"), [("M-M*-M-", 1), ("MEM*EME", 1), ("M", 0)])
def test_nemotron_h_keeps_nothing_in_its_mlps_and_experts(pattern: str, attention: int) -> None:
    found = layers("nemotron_h", hybrid_override_pattern=pattern, **NEMOTRON)
    assert [bool(layer.states) for layer in found] == [letter == "M" for letter in pattern]
    assert bytes_of(found, 1000)[0] == attention * 1000 * 2 * 8 * 128 * 2
