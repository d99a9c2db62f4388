"""What layers keep, and how the policy and the ranks change it."""

import pytest

import weigh
from weigh.dtypes import BFLOAT16, FLOAT32
from weigh.errors import NotModelledError, UsageError
from weigh.models.layout import CROSS, FULL, LATENT, NOTHING, RECURRENT, SLIDING, LayerCache, State
from weigh.recipes.keeping import Keeping, keep

PLAIN = LayerCache(FULL, heads=8, key_width=128, value_width=64)
WINDOW = LayerCache(SLIDING, heads=8, key_width=128, value_width=128, window=1024)
MLA = LayerCache(LATENT, heads=128, key_width=192, value_width=128, latent_width=576)
SPARSE = LayerCache(LATENT, heads=128, key_width=192, value_width=128, latent_width=576, index_width=128)
HYBRID = LayerCache(RECURRENT, states=(State("conv", (4096, 3)), State("ssm", (32, 128, 128), FLOAT32)))


def held(layer: LayerCache, **how: object) -> int:
    return keep([layer], Keeping(**{"context": 4096, **how}), BFLOAT16)[0].num_bytes  # type: ignore[arg-type]


def test_every_token_has_keys_and_values() -> None:
    assert held(PLAIN) == 4096 * 8 * (128 + 64) * 2
    assert held(PLAIN, kv_dtype="fp8") == 4096 * 8 * (128 + 64)
    assert held(PLAIN, kv_dtype="q8_0,f16") == 4096 * 8 * (128 // 32 * 34 + 64 * 2)


def test_a_window_is_capped_or_reserved() -> None:
    assert held(WINDOW) == 1024 * 8 * 256 * 2
    assert held(WINDOW, context=1000) == 1000 * 8 * 256 * 2
    assert held(WINDOW, windows="reserved") == 4096 * 8 * 256 * 2


def test_a_latent_is_kept_or_expanded_and_an_index_beside_it() -> None:
    assert held(MLA) == 4096 * 576 * 2
    assert held(MLA, latent="expanded") == 4096 * 128 * (192 + 128) * 2
    assert held(SPARSE) == 4096 * (576 + 128) * 2


def test_states_do_not_grow_and_have_a_dtype_of_their_own() -> None:
    state = 4096 * 3 * 2 + 32 * 128 * 128 * 4
    assert held(HYBRID) == held(HYBRID, context=9) == held(HYBRID, kv_dtype="fp8") == state
    assert held(HYBRID, tensor=4) == state // 4


def test_a_layer_without_keys_keeps_nothing_and_cross_attention_what_was_read() -> None:
    assert held(LayerCache(NOTHING, heads=8, key_width=128, value_width=128)) == 0
    cross = LayerCache(CROSS, heads=8, key_width=64, value_width=64)
    assert held(cross) == 4096 * 8 * 128 * 2
    assert held(cross, encoder=10) == 10 * 8 * 128 * 2


@pytest.mark.parametrize(("ranks", "heads", "copies"), [(1, 8, 1), (2, 4, 1), (8, 1, 1), (16, 1, 2), (64, 1, 8)])
def test_ranks_share_heads_and_copy_what_they_cannot_share(ranks: int, heads: int, copies: int) -> None:
    kept = keep([PLAIN], Keeping(4096, tensor=ranks), BFLOAT16)[0]
    assert kept.bytes_per_token == heads * (128 + 64) * 2
    assert kept.copies == copies
    assert kept.bytes_per_token * ranks == copies * held(PLAIN) // 4096


def test_every_rank_has_the_latent() -> None:
    kept = keep([MLA], Keeping(4096, tensor=8), BFLOAT16)[0]
    assert kept.num_bytes == held(MLA)
    assert kept.copies == 8
    assert held(MLA, tensor=8, latent="expanded") == held(MLA, latent="expanded") // 8


def test_heads_and_states_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(UsageError, match="3 ranks cannot share 8 key-value heads"):
        held(PLAIN, tensor=3)
    with pytest.raises(NotModelledError, match="shared by 3 ranks"):
        held(HYBRID, tensor=3)


@pytest.mark.parametrize("spelled", ["fp9", "q8_0,f16,f16", ""])
def test_formats_that_do_not_exist_are_refused(spelled: str) -> None:
    with pytest.raises(UsageError, match="kv_dtype"):
        held(PLAIN, kv_dtype=spelled)


def test_full_windows_no_longer_grow() -> None:
    short, long = (weigh.kv(GEMMA, context=n) for n in (512, 4096))
    assert short.bytes_per_token == 2 * long.bytes_per_token == long.bytes_per_token + 4096
    assert long.bytes_per_sequence == (4096 + 1024) * 4096


GEMMA = {
    "model_type": "gemma3_text", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64,
    "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": 1024, "dtype": "bfloat16",
    "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 8192,
}  # fmt: skip

PRINTED = """\
config keeps 9.00 MiB (9,437,184 bytes) on each rank
4 sequences of 8,192 tokens · keys and values in fp8_e4m3; windows are capped; heads are
split over 16 ranks, each key-value head is on 2 of 16 ranks

  layers                        tokens  bytes a token  state  a sequence
       1  sliding window 1,024   1,024            256         256.00 KiB
       1  full attention         8,192            256           2.00 MiB

  a token more    256 bytes a sequence
  a sequence more 2.25 MiB (2,359,296 bytes)

Assumed (--explain says why): parameters in bf16; 8192 tokens."""


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"windows": "reserved"}, "no layer has a window"),
        ({"latent": "expanded"}, "no layer keeps a latent vector"),
        ({"encoder": 100}, "no layer attends to an encoder"),
    ],
)
def test_a_policy_that_decides_nothing_is_refused(how: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        weigh.kv("llama-3-8b", **how)


def test_as_printed() -> None:
    report = weigh.kv(GEMMA, concurrency=4, kv_dtype="fp8", tensor=16)
    assert str(report) == PRINTED
    assert report.num_bytes == 4 * (1024 + 8192) * 256
    explained = report.text(explain=True)
    assert "layer 1: full attention: 8,192 tokens x (1 head x (128 in fp8_e4m3" in explained
    assert "no context was given, and the model is made for so many" in explained
