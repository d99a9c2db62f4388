"""What llama.cpp calls the tensors and sizes of Llama and its nearest relatives, and how it has their tokenizers.

Names are those of `gguf-py/gguf/tensor_mapping.py` and `constants.py`. The rows of Llama's queries and keys are in
another order: each head's two halves interleaved (`convert_hf_to_gguf.py`, `permute`). Of other architectures the names
stay as they are: such files are good GGUF, which every reader of the format reads, and no model to llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weigh.errors import InputError, NotModelledError
from weigh.quant.checkpoint.gguf_file import value
from weigh.records import dataclass
from weigh.sources.gguf_config import COMMON, HEAD
from weigh.sources.strict_json import read_object

if TYPE_CHECKING:
    from weigh.sources.opened import Folder

KNOWN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` -> llama.cpp's architecture."""
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_FLOATS = ("rms_norm_eps", "rope_theta")
LARGEST_TOKENIZER = 64 << 20
_PRE = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
"""How texts are cut before byte pairs are merged, by architecture."""


@dataclass(frozen=True)
class Model:
    """An architecture that llama.cpp knows, or (`architecture` None) any other."""

    architecture: str | None
    model_type: str
    heads: int = 0
    kv_heads: int = 0

    def name(self, tensor: str) -> str | None:
        """What a tensor is called; None where llama.cpp computes it itself.

        >>> Model("qwen2", "qwen2").name("model.layers.3.self_attn.q_proj.bias")
        'blk.3.attn_q.bias'

        Raises:
            NotModelledError: the architecture has no such tensor.
        """
        if self.architecture is None:
            return tensor
        if tensor.endswith("rotary_emb.inv_freq"):
            return None
        module, _, last = tensor.rpartition(".")
        found = _IN_BLOCK.fullmatch(module)
        known = _WHOLE.get(module) if found is None else _BLOCK.get(found[2])
        if known is None or last not in ("weight", "bias"):
            raise NotModelledError(f"what llama.cpp calls {tensor!r} of {self.model_type}")
        return f"{known}.{last}" if found is None else f"blk.{found[1]}.{known}.{last}"

    def turned(self, tensor: str) -> int:
        """How many heads' rows are interleaved; 0 where rows stay in order."""
        if self.architecture != "llama":
            return 0
        module = tensor.rpartition(".")[0]
        return self.heads if module.endswith("q_proj") else self.kv_heads if module.endswith("k_proj") else 0


def model_of(config: Mapping[str, Any] | None) -> Model:
    """The architecture of a config.

    Raises:
        NotModelledError: it scales its rotary positions, for which llama.cpp wants a tensor of factors.
    """
    model_type = str((config or {}).get("model_type", "unknown"))
    if config is None or model_type not in KNOWN:
        return Model(None, model_type)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise NotModelledError(f"GGUF's way to say the rotary scaling {kind!r}", where="config.json")
    heads = int(config["num_attention_heads"])
    return Model(KNOWN[model_type], model_type, heads, int(config.get("num_key_value_heads") or heads))


def pairs_of(model: Model, config: Mapping[str, Any] | None, folder: Folder) -> dict[str, bytes]:
    """What a file says of its model and tokenizer."""
    architecture = model.architecture or model.model_type
    found = {
        "general.architecture": value("text", architecture),
        "general.name": value("text", folder.title),
    }
    if model.architecture is None or config is None:
        return found
    config = {**config, **(config.get("rope_parameters") or {})}
    config.setdefault("rope_theta", 10000.0)
    config["num_key_value_heads"] = model.kv_heads
    head = config.get("head_dim") or config["hidden_size"] // model.heads
    for key, ours in (COMMON | HEAD).items():
        if config.get(ours) is not None:
            found[f"{architecture}.{key}"] = value("float32" if ours in _FLOATS else "uint32", config[ours])
    found[f"{architecture}.rope.dimension_count"] = value("uint32", head)
    if config.get("head_dim"):
        found[f"{architecture}.attention.value_length"] = value("uint32", head)
    return found | _tokenizer(model, config, folder)


def _tokenizer(model: Model, config: Mapping[str, Any], folder: Folder) -> dict[str, bytes]:
    """The tokenizer of a tokenizer.json of byte pairs; nothing where there is none."""
    if "tokenizer.json" not in folder.names():
        return {}
    found = read_object(folder.open("tokenizer.json"), LARGEST_TOKENIZER)
    inner = found.get("model")
    where = f"{folder.where}: tokenizer.json"
    if not isinstance(inner, dict) or inner.get("type") != "BPE" or not isinstance(inner.get("vocab"), dict):
        kind = inner.get("type") if isinstance(inner, dict) else None
        raise NotModelledError(f"GGUF's form of a tokenizer of the type {kind!r}", where=where)
    tokens: dict[int, str] = {number: token for token, number in inner["vocab"].items()}
    is_bytes = bool(inner.get("byte_fallback"))
    types = dict.fromkeys(tokens, 1)
    if is_bytes:
        types |= {number: 6 for number, token in tokens.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
    for added in found.get("added_tokens") or ():
        tokens[added["id"]] = added["content"]
        types[added["id"]] = 3 if added.get("special") else 4
    count = max([*tokens, int(config.get("vocab_size") or 1) - 1]) + 1
    for number in range(count):
        if number not in tokens:
            tokens[number], types[number] = f"[PAD{number}]", 5
    listed = [tokens[i] for i in range(count)]
    if not all(isinstance(token, str) for token in listed):
        raise InputError("has a token that is no text", where=where)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in inner.get("merges") or ()]
    pairs = {
        "tokenizer.ggml.model": value("text", "llama" if is_bytes else "gpt2"),
        "tokenizer.ggml.tokens": value("text[]", listed),
        "tokenizer.ggml.token_type": value("int32[]", [types[i] for i in range(count)]),
    }
    if is_bytes:
        pairs["tokenizer.ggml.scores"] = value("float32[]", [-float(i) for i in range(count)])
    else:
        pairs["tokenizer.ggml.pre"] = value("text", _PRE[str(model.architecture)])
        pairs["tokenizer.ggml.merges"] = value("text[]", merges)
    for name in ("bos", "eos", "pad"):
        said = config.get(f"{name}_token_id")
        one = said[0] if isinstance(said, list) and said else said
        if isinstance(one, int):
            key = {"pad": "padding"}.get(name, name)
            pairs[f"tokenizer.ggml.{key}_token_id"] = value("uint32", one)
    return pairs
