"""What checkpoints are rewritten to: one file a format, found by the word that `--to` takes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weigh.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from weigh.quant.checkpoint.targets.base import Target

_PACKAGE = "weigh.quant.checkpoint.targets"
NAMES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "nf4": ("bitsandbytes", "FourBit", {"code": "nf4"}, "bitsandbytes NF4 in blocks of 64"),
    "fp4": ("bitsandbytes", "FourBit", {"code": "fp4"}, "bitsandbytes FP4 in blocks of 64"),
    "int8": ("bitsandbytes", "Int8", {}, "bitsandbytes LLM.int8(): a scale a row"),
    "w4a16": ("compressed_tensors", "PackedInt", {"bits": 4}, "compressed-tensors int4 in groups of 128"),
    "w8a16": ("compressed_tensors", "PackedInt", {"bits": 8, "group": None}, "compressed-tensors int8, packed"),
    "w8a8": ("compressed_tensors", "PlainInt", {}, "compressed-tensors int8, activations quantized as they come"),
    "fp8": ("compressed_tensors", "PlainFloat", {}, "compressed-tensors FP8 with a scale a row"),
    "nvfp4": ("compressed_tensors", "Nvfp4", {}, "compressed-tensors NVFP4 in blocks of 16"),
    "mxfp4": ("compressed_tensors", "Mxfp4", {}, "compressed-tensors MXFP4 in blocks of 32"),
    "fp8-block": ("block_fp8", "BlockFp8", {}, "FP8 in blocks of 128 x 128, as DeepSeek-V3 stores it"),
}
"""The word for every target, where it is, the settings that the word stands for, and what it is."""
GGUF = "q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs tq1_0 tq2_0 f16 bf16".split()
"""Targets that are written as one GGUF file."""


def words() -> dict[str, str]:
    """Every word, and what it means."""
    return {**{name: says for name, (*_, says) in NAMES.items()}, **{name: f"GGUF {name.upper()}" for name in GGUF}}


def find(name: str, **settings: Any) -> Target:
    """The target of that word, with the settings that are not None.

    Raises:
        UnknownNameError: there is no such target.
        UsageError: it has no such setting.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    lower = name.lower()
    if lower in GGUF:
        module, kind, preset = "gguf", "Gguf", {"type": lower}
    elif lower in NAMES:
        module, kind, preset, _ = NAMES[lower]
    else:
        raise UnknownNameError("format", name, words(), where="--to")
    made = getattr(import_module(f"{_PACKAGE}.{module}"), kind)
    for key in given:
        if key not in made.__dataclass_fields__:
            raise UsageError(f"{name} has no such setting", where=f"--{key.replace('_', '-')}", hint="Leave it out.")
    target: Target = made(**{**preset, **given})
    return target
