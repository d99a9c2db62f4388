"""GGUF: which tensors llama.cpp's converter and quantizer make of a model, from its config alone.

`predict(source, model, "Q4_K_M")` returns what a header would: a `Checkpoint`, so that what reads files reads
predictions too. Split files, hand-made mixtures and projectors are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from weigh import dtypes
from weigh.errors import NotModelledError
from weigh.formats.gguf.mixes import BASE as FILE_TYPES
from weigh.formats.gguf.mixes import NEWER, OLDER, Tensor, Traits, named, numbered, quantize
from weigh.formats.gguf.names import converted
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.gguf_config import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.ghost.nn import Module

__all__ = ["FILE_TYPES", "architecture_of", "numbered", "predict"]

_SAME = {
    **dict.fromkeys(("mistral", "mixtral", "ministral"), "llama"),
    "gemma3_text": "gemma3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "kimi_k2": "deepseek2",
    "granitemoehybrid": "granitehybrid",
    "nemotron_h": "nemotron_h",
    "mamba2": "mamba2",
    "falcon_mamba": "mamba",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2moe",
    "llama4_text": "llama4",
    "gemma3n_text": "gemma3n",
}
"""Families that are one architecture to llama.cpp with others, or whose headers are not read."""


_CONVERTED: WeakKeyDictionary[Module, dict[object, list[Tensor]]] = WeakKeyDictionary()
"""What the converter makes of models, for all file types."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """GGUF's name of a family.

    Raises:
        NotModelledError: it is not known.
    """
    family = str(config.get("model_type"))
    found = _SAME.get(family) or next((name for name, (known, _) in ARCHITECTURES.items() if known == family), None)
    if found is None:
        raise NotModelledError(f"{family} as GGUF", where="model_type")
    return found


def predict(
    config: Mapping[str, Any], model: Module, file_type: str, imatrix: bool = True, release: str = NEWER
) -> Checkpoint:
    """The tensors of a GGUF file of a model.

    `imatrix` says that the quantizer had an importance matrix. `release` is the quantizer's ("2025", "2026").

    Raises:
        NotModelledError: the architecture, or a parameter's name in GGUF, is not known.
        UnknownNameError: there is no such file type.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    architecture, file_type = architecture_of(text), named(file_type)
    own = dtypes.FLOAT16 if file_type in ("F16", "MXFP4_MOE") or file_type.startswith("TQ") else dtypes.BFLOAT16
    own = dtypes.FLOAT32 if file_type == "F32" else own
    known = _CONVERTED.setdefault(model, {})
    key = architecture, own, release != OLDER
    if key not in known:
        known[key] = converted(model, architecture, own, text, divides_latent=release != OLDER)
    tensors = known[key]
    made = quantize(tensors, file_type, traits(architecture, text), imatrix, release)
    return Checkpoint(
        {t.name: _stored(t) for t in made},
        "gguf",
        {"general.architecture": architecture, "general.file_type": file_type},
        where=f"{architecture} in {file_type}",
    )


def traits(architecture: str, config: Mapping[str, Any]) -> Traits:
    """What the quantizer asks of a model, from its config."""
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 0
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    keys = config.get("num_key_value_heads") or heads
    experts = next((config[k] for k in ("n_routed_experts", "num_local_experts", "num_experts") if config.get(k)), 0)
    is_70b = layers == 80 and (architecture in ("qwen2", "deci") or (architecture == "llama" and heads != keys))
    return Traits(architecture, layers, heads // keys, experts, is_70b)


def _stored(tensor: Tensor) -> StoredTensor:
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    num_bytes = rows * tensor.dtype.num_bytes(tensor.shape[-1])
    return StoredTensor(tensor.name, tensor.shape, tensor.dtype.name, num_bytes, "")
