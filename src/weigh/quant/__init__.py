"""The quantization laboratory: every method's arithmetic, on real arrays (`pip install 'weigh[lab]'`).

A quantizer is a frozen dataclass of settings that turns an array into the parts that are stored (`Packed`) and back,
and says from a shape alone what they take. One file a family of methods; `get` finds them by name and imports numpy
only then. What files hold beside the parts (names, JSON, tables) is the checkpoint writers' matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from weigh.quant.base import Quantizer

NAMES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "absmax_tensor": ("absmax", "Absmax", {"scope": "tensor"}),
    "absmax_row": ("absmax", "Absmax", {"scope": "row"}),
    "absmax_column": ("absmax", "Absmax", {"scope": "column"}),
    "int8": ("absmax", "Absmax", {"scope": "row", "half": True}),
    "absmax_block": ("blockwise", "BlockAbsmax", {}),
    "dynamic": ("blockwise", "Dynamic", {}),
    "dynamic_unsigned": ("blockwise", "Dynamic", {"signed": False}),
    "nf4": ("four_bit", "FourBit", {"code": "nf4"}),
    "nf4_double": ("four_bit", "FourBit", {"code": "nf4", "double_quantization": True}),
    "fp4": ("four_bit", "FourBit", {"code": "fp4"}),
    "fp4_double": ("four_bit", "FourBit", {"code": "fp4", "double_quantization": True}),
    "zeropoint": ("zeropoint", "ZeroPoint", {}),
    "int8_channel": ("integers", "Integers", {"bits": 8, "scope": "row"}),
    "int4": ("integers", "Integers", {}),
    "int4_asymmetric": ("integers", "Integers", {"symmetric": False}),
    "fp8": ("floats", "Float8", {"scope": "row"}),
    "fp8_tensor": ("floats", "Float8", {"scope": "tensor"}),
    "fp8_block": ("floats", "Float8", {"scope": "block"}),
    "fp8_e5m2": ("floats", "Float8", {"dtype": "fp8_e5m2"}),
    "mxfp4": ("mx", "Mx", {"rule": "even"}),
    "mxfp8": ("mx", "Mx", {"element": "fp8_e4m3"}),
    "mxfp8_e5m2": ("mx", "Mx", {"element": "fp8_e5m2"}),
    "nvfp4": ("mx", "NvFp4", {}),
    **{
        name: ("ggml", "Ggml", {"type": name})
        for name in (
            "q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs tq1_0 tq2_0 q1_0 q2_0 "
            "iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s"
        ).split()
    },
    "mxfp4_ggml": ("ggml", "Ggml", {"type": "mxfp4"}),
    "nvfp4_ggml": ("ggml", "Ggml", {"type": "nvfp4_ggml"}),
    "sparse_24": ("pruning", "TwoOfFour", {}),
    "sparse": ("pruning", "Unstructured", {}),
    "cast_bf16": ("floats", "Cast", {"dtype": "bf16"}),
    "cast_fp16": ("floats", "Cast", {"dtype": "fp16"}),
    "cast_fp8_e4m3": ("floats", "Cast", {"dtype": "fp8_e4m3"}),
    "cast_fp8_e5m2": ("floats", "Cast", {"dtype": "fp8_e5m2"}),
}
"""Every quantizer's name: its module, its class, and the settings that the name stands for."""


def get(name: str, **settings: Any) -> Quantizer:
    """The quantizer of that name, with `settings` over its defaults.

    >>> get("nf4", block=128).bits_per_weight((4096, 4096))
    4.25

    Raises:
        UnknownNameError: no quantizer has that name, or it has no such setting.
        UsageError: a setting is impossible.
        InputError: numpy or ml_dtypes is missing.
    """
    if name not in NAMES:
        raise UnknownNameError("quantizer", name, NAMES)
    require()
    from importlib import import_module

    from weigh.records import fields

    module, kind, preset = NAMES[name]
    found = getattr(import_module(f"weigh.quant.{module}"), kind)
    known = [f.name for f in fields(found)]
    for setting in settings:
        if setting not in known:
            raise UnknownNameError("setting", setting, known, where=name)
    quantizer: Quantizer = found(**{**preset, **settings})
    return quantizer


def parse(spec: str) -> Quantizer:
    """The quantizer that a word of the command line means.

    >>> parse("nf4:block=128,double_quantization=true").bits_per_weight((4096, 4096))
    4.0634765625

    Raises:
        UsageError: a setting is spelled or valued wrongly.
        UnknownNameError: as `get`.
    """
    name, _, rest = spec.partition(":")
    settings = {}
    for word in filter(None, rest.split(",")):
        key, equals, value = word.partition("=")
        settings[key] = _value(value) if equals else True
    return get(name, **settings)


def _value(word: str) -> Any:
    if word in ("true", "false"):
        return word == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def require() -> None:
    """Raises an error that says what to install where numpy or ml_dtypes is missing.

    Raises:
        InputError: one is.
    """
    from importlib import import_module

    for name in ("numpy", "ml_dtypes"):
        try:
            import_module(name)
        except ImportError:
            what = f"the quantization laboratory needs {name}, which is not installed"
            raise InputError(what, hint="Run: pip install 'weigh[lab]'") from None


__all__ = ["NAMES", "get", "parse", "require"]
