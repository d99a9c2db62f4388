"""How vLLM, SGLang and TensorRT-LLM have weights stored: as the config says, or by a method that is only named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import dtypes, formats
from weigh.errors import NotModelledError, UsageError
from weigh.formats.prediction import predict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.formats.base import Format
    from weigh.runtimes.engine import Served


def form_of(served: Served, wanted: str | None) -> Format | None:
    """How the weights are stored: as the model's config says, or as is wanted instead.

    Raises:
        UnknownNameError: no such method.
        UsageError: the weights are stored otherwise already.
    """
    own = formats.read(served.config, served.source.where)
    if wanted is None:
        return own
    if own is not None:
        if wanted.partition("_marlin")[0] in own.method.replace("-", "_") or wanted == own.method:
            return own
        what = f"the weights are stored as {own.title}, not as {wanted}"
        raise UsageError(what, where="quantization", hint="Leave it out.")
    return formats.read(dict(served.config) | {"quantization_config": config_of(wanted)}, served.source.where)


def title_of(served: Served, wanted: str | None) -> str | None:
    """How the weights are stored, in words; None where they are as they are computed with."""
    form = form_of(served, wanted)
    return None if form is None else form.title


def stored_otherwise(served: Served, engine: str) -> Iterator[tuple[str, str, str]]:
    """That a checkpoint holds other tensors than its config makes: the config's are weighed, and the difference said.

    Raises:
        NotModelledError: it is a GGUF file.
    """
    checkpoint = served.source.checkpoint
    if checkpoint is None:
        return
    if checkpoint.format == "gguf":
        hint = "--runtime llama.cpp, or name the model whose weights it has."
        raise NotModelledError(f"a GGUF file in {engine}", where=served.source.where, hint=hint)
    dtype = dtypes.get(checkpoint.float_dtype) if checkpoint.float_dtype else served.dtype
    stored = predict(served.model, form_of(served, None), dtype)
    expected = sum(one.num_bytes * one.count for one in stored)
    if abs(checkpoint.num_bytes - expected) > expected // OTHERWISE:
        what = f"weights as the config says, {expected:,} bytes, where the files hold {checkpoint.num_bytes:,}"
        yield what, "files may hold layers that are not loaded, or leave some unquantized", "by that difference"


OTHERWISE = 100
"""A difference of more than one part in so many is said."""

METHODS: dict[str, dict[str, object]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors-fp8": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            }
        },
    },
    "w8a8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
                "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
            }
        },
    },
    "w4a16": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
            }
        },
    },
    "nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                "input_activations": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "dynamic": "local"},
            }
        },
    },
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": []},
}
"""Checkpoints as people publish them, by the method's name: the settings that almost all of them have."""


def config_of(method: str) -> dict[str, object]:
    """The `quantization_config` of a method by its name.

    Raises:
        UsageError: there is no such method.
    """
    from weigh.errors import suggest

    method = method.removesuffix("_marlin")
    if method not in METHODS:
        near = suggest(method, METHODS)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(METHODS)}."
        raise UsageError(f"there is no method {method!r}", where="quantization", hint=hint)
    return dict(METHODS[method])
