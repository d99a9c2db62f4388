"""Writers of small checkpoints, well-formed and not."""

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""A tiny Llama."""


def llama_tensors(config: Mapping[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    """Its tensors, as transformers names them."""
    import weigh

    return weigh.params(dict(config)).tensors()


def safetensors(
    tensors: Mapping[str, tuple[int, ...]], dtype: str = "BF16", size: int = 2, metadata: Any = None
) -> bytes:
    """A file with these tensors, all zeros."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, shape in tensors.items():
        length = size
        for n in shape:
            length *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    return framed(json.dumps(header).encode(), at)


def framed(header: bytes, data: int, length: int | None = None) -> bytes:
    """A header, whatever it says, and so many bytes behind it."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def sharded(tensors: Mapping[str, tuple[int, ...]], count: int, **how: Any) -> dict[str, bytes]:
    """The files of a checkpoint in so many shards, with its index."""
    names = list(tensors)
    files, placed = {}, {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = names[i::count]
        placed.update(dict.fromkeys(part, name))
        files[name] = safetensors({n: tensors[n] for n in part}, **how)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": placed}).encode()
    return files


Pair = tuple[str, int, Any]
"""Key, type of value, value; an array's value is (type, elements)."""


def gguf(
    pairs: Iterable[Pair], infos: Iterable[tuple[str, tuple[int, ...], int, int]], data: int = 0, **how: Any
) -> bytes:
    """A GGUF file; infos are name, sizes fastest first, type and offset."""
    version, order = how.get("version", 3), how.get("order", "<")
    length = "I" if version == 1 else "Q"
    pairs, infos = list(pairs), list(infos)

    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return struct.pack(order + length, len(raw)) + raw

    def value(kind: int, found: Any) -> bytes:
        if kind == 8:
            return text(found)
        if kind == 9:
            inner, elements = found
            body = b"".join(value(inner, e) for e in elements)
            return struct.pack(f"{order}I{length}", inner, len(elements)) + body
        code = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind]
        return struct.pack(order + code, found)

    out = b"GGUF" + struct.pack(f"{order}I{length}{length}", version, len(infos), len(pairs))
    for key, kind, found in pairs:
        out += text(key) + struct.pack(order + "I", kind) + value(kind, found)
    for name, sizes, kind, offset in infos:
        out += text(name) + struct.pack(f"{order}I{len(sizes)}{length}IQ", len(sizes), *sizes, kind, offset)
    return out + bytes(-len(out) % how.get("alignment", 32)) + bytes(data)
