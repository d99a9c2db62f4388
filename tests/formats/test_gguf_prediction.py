"""GGUF files predicted from configs, against what llama.cpp's loader printed of published ones."""

from collections import Counter

import pytest

from weigh import api
from weigh.dtypes import FLOAT16
from weigh.errors import UnknownNameError
from weigh.formats.gguf import predict
from weigh.formats.gguf.mixes import OLDER, Tensor, Traits, quantize

PRINTED = [
    ("llama-3.2-1b", "Q4_K_M", "2026", {"q4_k": 96, "q6_k": 17}),
    ("gemma-3-1b", "Q4_K_M", "2026", {"fp32": 157, "q5_0": 117, "q8_0": 14, "q4_k": 39, "q6_k": 13}),
    ("gemma-3-27b-text", "Q4_0", "2026", {"fp32": 373, "q4_0": 427, "q4_1": 7, "q6_k": 1}),
    ("qwen2.5-14b", "Q4_K_M", "2026", {"fp32": 241, "q4_k": 289, "q6_k": 49}),
    ("qwen3-30b-a3b", "Q4_K_M", "2026", {"fp32": 241, "q4_k": 289, "q6_k": 49}),
    ("qwen3-235b-a22b", "Q6_K", "2026", {"fp32": 471, "q6_k": 660}),
    ("llama-3.1-70b", "Q4_K_M", "2026", {"q4_k": 441, "q5_k": 40, "q6_k": 81}),
    ("phi-3-mini", "Q4_K_M", OLDER, {"fp32": 65, "q4_k": 81, "q5_k": 32, "q6_k": 17}),
]
"""Model, file type, the quantizer's release, and how many tensors there are in each format (rope factors left out)."""


@pytest.mark.parametrize(("name", "file_type", "release", "printed"), PRINTED)
def test_formats_are_those_that_the_loader_prints(
    name: str, file_type: str, release: str, printed: dict[str, int]
) -> None:
    source = api.model(name)
    made = predict(source.config, api.ghost(source), file_type, release=release)
    counts = Counter(t.dtype for t in made.tensors.values())
    assert {dtype: counts[dtype] for dtype in printed} == printed
    assert set(counts) == {"fp32", *printed}


def test_rows_that_are_no_whole_blocks_take_another_format() -> None:
    odd = Tensor("blk.0.ffn_up.weight", (64, 32 * 5), FLOAT16)
    odder = Tensor("blk.0.ffn_gate.weight", (64, 40), FLOAT16)
    made = {t.name: t.dtype.name for t in quantize([odd, odder], "Q5_K_S", Traits("llama", 1, 1))}
    assert made == {odd.name: "q5_1", odder.name: "fp16"}


def test_an_importance_matrix_changes_some_file_types() -> None:
    down = [Tensor(f"blk.{n}.ffn_down.weight", (256, 256), FLOAT16) for n in range(16)]
    with_one = quantize(down, "Q4_0", Traits("llama", 16, 1))
    without = quantize(down, "Q4_0", Traits("llama", 16, 1), imatrix=False)
    assert Counter(t.dtype.name for t in with_one) == {"q4_1": 2, "q4_0": 14}
    assert Counter(t.dtype.name for t in without) == {"q4_0": 16}


def test_an_unknown_file_type_has_its_near_misses() -> None:
    source = api.model("llama-3.2-1b")
    with pytest.raises(UnknownNameError, match="Q4_K_M"):
        predict(source.config, api.ghost(source), "Q4_K_N")
