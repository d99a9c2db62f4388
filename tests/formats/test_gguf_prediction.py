"""GGUF files predicted from configs, against what llama.cpp's loader printed of published ones."""

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

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


PUBLISHED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/gguf_sizes.jsonl").read_text(encoding="utf-8").splitlines()
]


@cache
def built(name: str) -> Any:
    source = api.model(name)
    return source.config, api.ghost(source)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['model']}-{row['file_type']}")
def test_published_files(row: dict[str, Any]) -> None:
    """Bits a weight to the last printed digit; files within 0.05 %, which their headers are."""
    made = predict(*built(row["model"]), row["file_type"], row["imatrix"], row.get("release", "2026"))
    if "bits_per_weight" in row:
        elements = sum(math.prod(t.shape) for t in made.tensors.values())
        assert 8 * made.num_bytes / elements == pytest.approx(row["bits_per_weight"], abs=1.01 * row["resolution"])
    elif "file_bytes" in row:
        assert made.num_bytes == pytest.approx(row["file_bytes"], rel=5e-4)
    else:
        assert made.num_bytes == pytest.approx(row["tensor_bytes"], rel=2e-3)  # parameters x bits, as it is printed


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
