"""GGUF headers, and the configs that they stand for."""

import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from making import Pair, gguf

import weigh
from weigh.dtypes import GGML_TYPES
from weigh.errors import InputError, NotModelledError
from weigh.sources.checkpoint import Checkpoint
from weigh.sources.gguf import SPELLED, Array, read_gguf
from weigh.sources.gguf_config import ARCHITECTURES, config_of
from weigh.sources.opened import LocalFile

DATA = Path(__file__).parent.parent / "data"
SIZES = {row[0]: row for row in json.loads((DATA / "ggml_sizes.json").read_text())["rows"]}
PUBLISHED = [json.loads(line) for line in (DATA / "published.jsonl").read_text().splitlines()]


def read(tmp_path: Path, data: bytes, name: str = "model.gguf") -> Checkpoint:
    path = tmp_path / name
    path.write_bytes(data)
    return read_gguf(LocalFile(str(path)))


PAIRS: list[Pair] = [
    ("general.architecture", 8, "llama"),
    ("u8", 0, 200),
    ("i8", 1, -100),
    ("u16", 2, 60_000),
    ("i16", 3, -30_000),
    ("u32", 4, 4_000_000_000),
    ("i32", 5, -2_000_000_000),
    ("f32", 6, 0.5),
    ("yes", 7, True),
    ("text", 8, "Größe"),
    ("few", 9, (4, [1, 2, 3])),
    ("words", 9, (8, ["a", "bc"])),
    ("u64", 10, 2**63),
    ("i64", 11, -(2**62)),
    ("f64", 12, 1e300),
]
LONG: list[Pair] = [
    ("tokenizer.ggml.tokens", 9, (8, [f"token {i}" for i in range(3000)])),
    ("tokenizer.ggml.scores", 9, (6, [0.0] * 3000)),
    ("after", 4, 7),
]


@pytest.mark.parametrize(("version", "order"), [(1, "<"), (2, "<"), (3, "<"), (3, ">")])
def test_every_version_and_byte_order(tmp_path: Path, version: int, order: str) -> None:
    infos = [("token_embd.weight", (32, 6), 2, 0), ("norm", (5,), 0, 128)]
    found = read(tmp_path, gguf(PAIRS + LONG, infos, 128 + 20, version=version, order=order))
    metadata = {key: value for key, _, value in PAIRS} | {"few": [1, 2, 3], "words": ["a", "bc"]}
    metadata["tokenizer.ggml.tokens"] = Array("text", 3000)
    metadata["tokenizer.ggml.scores"] = Array("f", 3000)
    assert found.metadata == metadata | {"after": 7}
    assert [(t.name, t.shape, t.dtype, t.num_bytes) for t in found.tensors.values()] == [
        ("token_embd.weight", (6, 32), "Q4_0", 6 * 18),
        ("norm", (5,), "F32", 20),
    ]


@pytest.mark.parametrize("number", SIZES)
def test_every_type_of_tensor(tmp_path: Path, number: int) -> None:
    _, name, elements, num_bytes = SIZES[number]
    found = read(tmp_path, gguf([], [("w", (elements * 3, 5), number, 0)], num_bytes * 15)).tensors["w"]
    assert found.num_bytes == num_bytes * 15
    assert found.dtype.lower() == name
    assert weigh.dtypes.get(found.dtype).num_bytes(elements * 15) == num_bytes * 15


def test_every_type_is_tested() -> None:
    assert SIZES.keys() == GGML_TYPES.keys() == SPELLED.keys()


def test_alignment(tmp_path: Path) -> None:
    pairs: list[Pair] = [("general.alignment", 4, 256)]
    infos = [("a", (1,), 0, 0), ("b", (1,), 0, 256)]
    assert read(tmp_path, gguf(pairs, infos, 260, alignment=256)).num_bytes == 8
    with pytest.raises(InputError, match="between the marks"):
        read(tmp_path, gguf(pairs, [infos[0], ("b", (1,), 0, 32)], 260, alignment=256))


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


PAIR = text(b"k") + struct.pack("<I", 9)
HOSTILE = {
    "nothing": b"",
    "another file": b"GGML" + bytes(100),
    "the name alone": b"GGUF",
    "version 0": head(0, 0, 0),
    "version 4": head(0, 0, 4),
    "tensors without end": head(2**63, 0) + bytes(100),
    "pairs without end": head(0, 2**64 - 1) + bytes(100),
    "a million tensors": head(2**20, 0) + bytes(100),
    "tensors that are not there": head(2**18, 0) + bytes(100),
    "a text of exabytes": head(0, 1) + struct.pack("<Q", 2**63) + b"k",
    "a key of megabytes": head(0, 1) + text(b"k" * (1 << 20)) + struct.pack("<II", 4, 1),
    "a key that is not UTF-8": head(0, 1) + text(b"\xff\xfe") + struct.pack("<II", 4, 1),
    "a value of exabytes": head(0, 1) + text(b"k") + struct.pack("<IQ", 8, 2**64 - 1),
    "a type that there is not": head(0, 1) + text(b"k") + struct.pack("<II", 99, 1),
    "an array in an array": head(0, 1) + PAIR + struct.pack("<IQ", 9, 1) + bytes(100),
    "an array of exabytes": head(0, 1) + PAIR + struct.pack("<IQ", 12, 2**61) + bytes(100),
    "texts without end": head(0, 1) + PAIR + struct.pack("<IQ", 8, 2**64 - 1) + bytes(100_000),
    "a key twice": gguf([("k", 4, 1), ("k", 4, 1)], []),
    "a tensor twice": gguf([], [("a", (1,), 0, 0), ("a", (1,), 0, 32)], 64),
    "overlapping": gguf([], [("a", (16,), 0, 0), ("b", (16,), 0, 32)], 96),
    "beyond the end": gguf([], [("a", (16,), 0, 0)], 63),
    "an offset of exabytes": gguf([], [("a", (16,), 0, 2**63)], 64),
    "sizes of exabytes": gguf([], [("a", (2**63, 2**63, 2**63, 2**63), 0, 0)], 64),
    "five dimensions": gguf([], [("a", (1, 1, 1, 1, 1), 0, 0)], 64),
    "a type that was withdrawn": gguf([], [("a", (32,), 4, 0)], 64),
    "half a block": gguf([], [("a", (16, 2), 2, 0)], 64),
    "an alignment of 0": gguf([("general.alignment", 4, 0)], [("a", (1,), 0, 0)], 64),
    "an alignment of 3": gguf([("general.alignment", 4, 3)], [("a", (1,), 0, 0)], 64),
    "an alignment in words": gguf([("general.alignment", 8, "a")], [("a", (1,), 0, 0)], 64),
    "cut off": gguf(PAIRS, [("a", (1,), 0, 0)], 64)[:150],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_none(tmp_path: Path, name: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read(tmp_path, HOSTILE[name])
    assert time.process_time() - started < 1
    assert "model.gguf" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_header_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(head(0, 1) + PAIR + struct.pack("<IQ", 0, 2**35))
        file.truncate(2**36)  # sparse
    with pytest.raises(InputError, match="a header of more than 128 MiB"):
        read_gguf(LocalFile(str(path)))


# The configs. What llama.cpp's converter writes is written here again, from its own code (`convert_hf_to_gguf.py`), for
# configs whose parameters are published.

NAMES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "mamba": "mamba",
    "gpt_oss": "gpt-oss",
    "olmo": "olmo",
    "stablelm": "stablelm",
    "bloom": "bloom",
}


def converted(config: dict[str, Any], path: Path) -> None:
    """A file as the converter makes it: every pair that says a size, and the tensors that say what no pair does."""
    kind = config["model_type"]
    arch = NAMES[kind]
    found = weigh.params(config)
    tensors = found.tensors()

    def get(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    width, heads = get("hidden_size", "n_embd", "n_embed"), get("num_attention_heads", "n_head")
    sizes = {
        "context_length": get("max_position_embeddings", "n_positions", "n_ctx") or 2048,
        "embedding_length": width,
        "block_count": get("num_hidden_layers", "n_layer"),
        "feed_forward_length": get("intermediate_size", "n_inner") or 4 * width,
        "attention.head_count": heads,
        "attention.head_count_kv": get("num_key_value_heads") or heads,
        "attention.sliding_window": get("sliding_window") if kind in ("gemma2", "gemma3_text", "gpt_oss") else None,
        "expert_count": get("num_local_experts", "num_experts"),
        "expert_used_count": get("num_experts_per_tok"),
        "expert_feed_forward_length": get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": get("shared_expert_intermediate_size"),
    }
    if kind == "mamba":
        inner = config["expand"] * width
        sizes |= {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": None}
        sizes |= {"ssm.conv_kernel": config["conv_kernel"], "ssm.state_size": config["state_size"]}
        sizes |= {"ssm.inner_size": inner, "ssm.time_step_rank": math.ceil(width / 16)}
    else:
        head = get("head_dim") or width // heads
        sizes |= {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head // 4 or 1}
    pairs: list[Pair] = [("general.architecture", 8, arch)]
    pairs += [(f"{arch}.{key}", 4, int(value)) for key, value in sizes.items() if value is not None]
    kept = {"token_embd.weight": next(shape for name, shape in tensors.items() if "embed" in name or "wte" in name)}
    if not found.tied:
        kept["output.weight"] = kept["token_embd.weight"]
    for name in tensors:
        for theirs, ours in (("q_proj.bias", "attn_q.bias"), ("o_proj.bias", "attn_output.bias")):
            if name.endswith(f".0.self_attn.{theirs}"):
                kept[f"blk.0.{ours}"] = (width,)
        if name.endswith("layers.0.post_attention_layernorm.weight"):
            kept["blk.0.ffn_norm.weight"] = (width,)
    infos, at = [], 0
    for name, shape in kept.items():
        infos.append((name, tuple(reversed(shape)), 1, at))
        at += -(-2 * math.prod(shape) // 32) * 32
    data = gguf(pairs, infos)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + at)  # sparse


CONVERTIBLE = [row for row in PUBLISHED if row["config"]["model_type"] in NAMES]


@pytest.mark.parametrize("row", CONVERTIBLE, ids=lambda row: row["name"])
def test_a_gguf_file_alone_gives_the_published_count(tmp_path: Path, row: dict[str, Any]) -> None:
    converted(row["config"], tmp_path / "model.gguf")
    config = config_of(read_gguf(LocalFile(str(tmp_path / "model.gguf"))))
    assert weigh.params(config).total == weigh.params(row["config"]).total


def test_deepseek(tmp_path: Path) -> None:
    sizes = {
        "context_length": 163840,
        "embedding_length": 7168,
        "block_count": 61,
        "feed_forward_length": 18432,
        "attention.head_count": 128,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "rope.dimension_count": 64,
        "leading_dense_block_count": 3,
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 2048,
        "expert_gating_func": 2,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
    }
    pairs: list[Pair] = [("general.architecture", 8, "deepseek2")]
    pairs += [(f"deepseek2.{key}", 4, value) for key, value in sizes.items()]
    infos = [("token_embd.weight", (7168, 129280), 1, 0), ("output.weight", (7168, 129280), 1, 7168 * 129280 * 2)]
    path = tmp_path / "model.gguf"
    data = gguf(pairs, infos)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + 2 * 7168 * 129280 * 2)
    config = config_of(read_gguf(LocalFile(str(path))))
    assert config["model_type"] == "deepseek_v3"
    assert weigh.params(config).total == 671_026_404_352  # without its layer of multi-token prediction


def small(tmp_path: Path, arch: str, **more: Any) -> Checkpoint:
    pairs: list[Pair] = [("general.architecture", 8, arch)]
    pairs += [(f"{arch}.{key.replace('__', '.')}", *value) for key, value in more.items()]
    return read(tmp_path, gguf(pairs, [("token_embd.weight", (8, 16), 0, 0)], 512))


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotModelledError, match="GGUF's architecture 'clip'"):
        config_of(small(tmp_path, "clip"))
    with pytest.raises(NotModelledError, match=r"GGUF's llama.shortconv.l_cache"):
        config_of(small(tmp_path, "llama", shortconv__l_cache=(4, 3)))
    with pytest.raises(NotModelledError, match="layers differ"):
        config_of(small(tmp_path, "llama", feed_forward_length=(9, (4, [8, 16]))))
    with pytest.raises(InputError, match=r"general.architecture: is missing"):
        config_of(read(tmp_path, gguf([], [("token_embd.weight", (8, 16), 0, 0)], 512)))
    with pytest.raises(InputError, match=r"vocab_size: is missing"):
        config_of(read(tmp_path, gguf([("general.architecture", 8, "llama")], [])))


def test_layers_that_agree_are_one_number(tmp_path: Path) -> None:
    assert config_of(small(tmp_path, "llama", feed_forward_length=(9, (4, [8, 8]))))["intermediate_size"] == 8


def test_every_family_named_is_one() -> None:
    from weigh.models import FAMILIES

    assert {model_type for model_type, _ in ARCHITECTURES.values()} <= FAMILIES.keys()


def test_split_files(tmp_path: Path) -> None:
    first = gguf(
        [("general.architecture", 8, "llama"), ("llama.embedding_length", 4, 8), ("split.count", 2, 2)],
        [("token_embd.weight", (8, 16), 0, 0)],
        512,
    )
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(
        gguf([("split.no", 2, 1)], [("output.weight", (8, 16), 0, 0)], 512)
    )
    for name in ("", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        found = weigh.api.unchecked(str(tmp_path / name))
        assert found.checkpoint is not None
        assert list(found.checkpoint.tensors) == ["token_embd.weight", "output.weight"]
        assert found.config["tie_word_embeddings"] is False


def test_a_gguf_file_by_any_other_name(tmp_path: Path) -> None:
    read(
        tmp_path, gguf([("general.architecture", 8, "llama")], [("token_embd.weight", (8, 16), 0, 0)], 512), "sha256-1"
    )
    assert weigh.api.unchecked(str(tmp_path / "sha256-1")).config["vocab_size"] == 16


def test_a_vocabulary_is_passed_over_quickly(tmp_path: Path) -> None:
    count = 260_000
    tokens = b"".join(struct.pack("<Q", 6) + b"%06d" % i for i in range(count))
    data = head(0, 1) + PAIR + struct.pack("<IQ", 8, count) + tokens
    (tmp_path / "model.gguf").write_bytes(data)
    started = time.process_time()
    assert read_gguf(LocalFile(str(tmp_path / "model.gguf"))).metadata == {"k": Array("text", count)}
    assert time.process_time() - started < 2
