"""A GGUF file of several formats, in `weigh params`."""

import math
from pathlib import Path

import pytest
from making import gguf

import weigh
from weigh.dtypes import get

PAIRS = [
    ("general.architecture", 8, "llama"),
    ("llama.context_length", 4, 64),
    ("llama.embedding_length", 4, 256),
    ("llama.block_count", 4, 2),
    ("llama.feed_forward_length", 4, 512),
    ("llama.attention.head_count", 4, 4),
    ("llama.attention.head_count_kv", 4, 2),
    ("llama.vocab_size", 4, 512),
]
TYPES = {"f32": 0, "q4_k": 12, "q6_k": 14}
LAYER = {
    "attn_norm": ((256,), "f32"),
    "attn_q": ((256, 256), "q4_k"),
    "attn_k": ((128, 256), "q4_k"),
    "attn_v": ((128, 256), "q6_k"),
    "attn_output": ((256, 256), "q4_k"),
    "ffn_norm": ((256,), "f32"),
    "ffn_gate": ((512, 256), "q4_k"),
    "ffn_up": ((512, 256), "q4_k"),
    "ffn_down": ((256, 512), "q6_k"),
}


def write(path: Path, **more: tuple[tuple[int, ...], str]) -> dict[str, int]:
    tensors = {"token_embd.weight": ((512, 256), "q4_k"), "output_norm.weight": ((256,), "f32")}
    tensors |= {f"blk.{i}.{name}.weight": row for i in range(2) for name, row in LAYER.items()}
    tensors |= {f"{name}.weight": row for name, row in more.items()}
    infos, at, sizes = [], 0, dict.fromkeys(TYPES, 0)
    for name, (shape, kind) in tensors.items():
        infos.append((name, tuple(reversed(shape)), TYPES[kind], at))
        size = get("fp32" if kind == "f32" else kind).num_bytes(math.prod(shape))
        sizes[kind] += size
        at += -(-size // 32) * 32
    path.write_bytes(gguf(PAIRS, infos, at))
    return sizes


def test_bytes_by_format(tmp_path: Path) -> None:
    sizes = write(tmp_path / "model.gguf")
    report = weigh.params(tmp_path / "model.gguf")
    stored = report.stored
    assert stored is not None
    assert {name: num_bytes for name, (num_bytes, _) in stored.by_dtype().items()} == {
        "q4_k": sizes["q4_k"],
        "q6_k": sizes["q6_k"],
        "fp32": sizes["f32"],
    }
    assert stored.differences == ()
    assert stored.parameters == report.total
    assert stored.bits_per_weight == pytest.approx(8 * sum(sizes.values()) / report.total)


def test_frequencies_are_a_buffer(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", rope_freqs=((32,), "f32"))
    stored = weigh.params(tmp_path / "model.gguf").stored
    assert stored is not None
    assert stored.differences == ("stores 1 buffers (32 elements) that are no parameters",)


def test_an_output_layer_of_its_own_is_the_models(tmp_path: Path) -> None:
    write(tmp_path / "tied.gguf")
    write(tmp_path / "untied.gguf", output=((512, 256), "q6_k"))
    tied, untied = weigh.params(tmp_path / "tied.gguf"), weigh.params(tmp_path / "untied.gguf")
    assert untied.total - tied.total == 512 * 256
    assert untied.stored is not None
    assert untied.stored.differences == ()
