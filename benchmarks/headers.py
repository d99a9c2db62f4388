"""How fast the header of a checkpoint of DeepSeek-V3's size is read: 45,395 tensors in 163 files, made up here.

    read      CPU seconds of a fresh process that reads all headers and counts parameters and bytes
    command   CPU seconds and peak memory of `weigh params INDEX`
    vocabulary  the header of a GGUF file with 260,000 tokens and as many merges

Beside modelinfo-cli (the same index) and hf-mem (its parser on the same headers; by itself it asks the Hub only), where
they are installed. The machine's speed drifts, so read the ratios.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from speed import cpu_seconds

TENSORS, SHARDS = 45_395, 163
WIDTH, EXPERT, EXPERTS, LAYERS, DENSE = 7168, 2048, 256, 61, 3

READ_OURS = """
import weigh.api
found = weigh.api.unchecked({index!r}).checkpoint
assert len(found.tensors) == {tensors}
print(sum(t.num_elements for t in found.tensors.values()), found.num_bytes)
"""
READ_HF_MEM = """
import glob, json, os
from hf_mem.safetensors.metadata import parse_safetensors_metadata
headers = {{}}
for path in glob.glob({folder!r} + "/*.safetensors"):
    with open(path, "rb") as file:
        headers.update(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
assert len(headers) == {tensors}
found = parse_safetensors_metadata({{"Transformer": headers}})
print(found.param_count, found.bytes_count)
"""
READ_GGUF = """
from weigh.sources.gguf import read_gguf
from weigh.sources.opened import LocalFile
print(read_gguf(LocalFile({path!r})))
"""


def tensors() -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of DeepSeek-V3 without its layer of multi-token prediction."""
    yield "model.embed_tokens.weight", [129280, WIDTH]
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{norm}.weight", [WIDTH]
        for name, shape in (
            ("q_a_proj", [1536, WIDTH]),
            ("q_a_layernorm", [1536]),
            ("q_b_proj", [24576, 1536]),
            ("kv_a_proj_with_mqa", [576, WIDTH]),
            ("kv_a_layernorm", [512]),
            ("kv_b_proj", [32768, 512]),
            ("o_proj", [WIDTH, 16384]),
        ):
            yield f"{block}.self_attn.{name}.weight", shape
        if layer < DENSE:
            yield from gated(f"{block}.mlp", 18432)
            continue
        yield f"{block}.mlp.gate.weight", [EXPERTS, WIDTH]
        yield f"{block}.mlp.gate.e_score_correction_bias", [EXPERTS]
        for expert in range(EXPERTS):
            yield from gated(f"{block}.mlp.experts.{expert}", EXPERT)
        yield from gated(f"{block}.mlp.shared_experts", EXPERT)
    yield "model.norm.weight", [WIDTH]
    yield "lm_head.weight", [129280, WIDTH]


def gated(path: str, width: int) -> Iterator[tuple[str, list[int]]]:
    """A gated feed-forward layer."""
    for name, shape in (("gate_proj", [width, WIDTH]), ("up_proj", [width, WIDTH]), ("down_proj", [WIDTH, width])):
        yield f"{path}.{name}.weight", shape


def write(folder: Path) -> str:
    """Headers with sparse files behind them, and their index; its path."""
    every = list(tensors())
    assert len(every) == TENSORS
    placed = {}
    for number in range(SHARDS):
        name, header, at = f"model-{number + 1:05}-of-{SHARDS:06}.safetensors", {}, 0
        for tensor, shape in every[number * TENSORS // SHARDS : (number + 1) * TENSORS // SHARDS]:
            end = at + 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            placed[tensor] = name
            at = end
        raw = json.dumps(header, separators=(",", ":")).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + at)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return str(index)


def write_gguf(path: Path, count: int = 260_000) -> None:
    """A header of tokens and merges."""

    def texts(key: str, word: bytes) -> bytes:
        start = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IIQ", 9, 8, count)
        return start + b"".join(struct.pack("<Q", 12) + word + b"%07d" % i for i in range(count))

    pairs = texts("tokenizer.ggml.tokens", b"token") + texts("tokenizer.ggml.merges", b"merge")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pairs)


def main() -> None:
    """Print every figure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = write(folder)
        write_gguf(folder / "vocabulary.gguf")
        has_peers = {peer: importlib.util.find_spec(peer) is not None for peer in ("hf_mem", "modelinfo")}
        known = {"index": index, "folder": name, "tensors": TENSORS, "path": str(folder / "vocabulary.gguf")}

        def python(code: str) -> tuple[float, float]:
            return cpu_seconds([sys.executable, "-c", code.format(**known)])

        def row(title: str, seconds: float, mib: float, more: str = "") -> None:
            print(f"{title:28}{seconds * 1e3:8.0f} ms CPU  {mib:6.0f} MiB   {more}")

        ours = python(READ_OURS)
        row("weigh, read and counted", *ours, "(300 ms)")
        if has_peers["hf_mem"]:
            theirs = python(READ_HF_MEM)
            row("hf-mem's parser", *theirs, f"{theirs[0] / ours[0]:.2f} x weigh")
        else:
            print("hf-mem's parser             not installed here (pip install hf-mem)")
        command = cpu_seconds([sys.executable, "-m", "weigh", "params", index, "--json"])
        row("weigh params", *command)
        if has_peers["modelinfo"]:
            theirs = cpu_seconds([sys.executable, "-m", "modelinfo", index])
            row("modelinfo", *theirs, f"{theirs[0] / command[0]:.2f} x weigh params")
        else:
            print("modelinfo                   not installed here (pip install modelinfo-cli)")
        row("weigh, a GGUF vocabulary", *python(READ_GGUF))


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    main()
