"""Formats: how a checkpoint stores quantized weights, one file a method.

`read(config)` finds the method of a `quantization_config`; `predict(model, format, dtype)` says which tensors a
checkpoint of that model has, which of them stay as they are, and what the others are stored as. What a header says of
itself is `parameters_in`'s question: how many of the model's parameters a stored tensor stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weigh.errors import InputError, NotModelledError, UnknownNameError

if TYPE_CHECKING:
    from weigh.formats.base import Format

METHODS = {
    "awq": "weigh.formats.awq:Awq",
    "bitsandbytes": "weigh.formats.bitsandbytes:Bitsandbytes",
    "compressed-tensors": "weigh.formats.compressed_tensors:CompressedTensors",
    "fbgemm_fp8": "weigh.formats.fp8:FbgemmFp8",
    "fp8": "weigh.formats.fp8:FineGrainedFp8",
    "gptq": "weigh.formats.gptq:Gptq",
    "hqq": "weigh.formats.hqq:Hqq",
    "mlx": "weigh.formats.mlx:Mlx",
    "modelopt": "weigh.formats.modelopt:ModelOpt",
    "mxfp4": "weigh.formats.mxfp4:Mxfp4",
    "torchao": "weigh.formats.torchao:TorchAo",
}
"""`quant_method` -> the class that describes it."""

KNOWN = frozenset(
    "aqlm auto-round bitnet eetq fouroversix fp_quant gemma gguf higgs metal mxfp8 nvfp4 quanto quark sinq spqr "
    "vptq".split()
)
"""Methods that transformers 5.23 has besides."""


def settings(config: Mapping[str, Any], where: str = "config") -> Mapping[str, Any] | None:
    """The `quantization_config`, with its `quant_method`; None where the weights are not quantized.

    A multimodal config may hold it beside its language model's, MLX writes it as `quantization`.

    Raises:
        InputError: it is no object.
    """
    nested = config.get("text_config")
    for holder in (config, nested if isinstance(nested, Mapping) else {}):
        found, mlx = holder.get("quantization_config") or holder.get("compression_config"), holder.get("quantization")
        is_mlx = bool(mlx) and not (isinstance(found, Mapping) and "quant_method" in found)
        chosen: Any = mlx if is_mlx else found
        if chosen and not isinstance(chosen, Mapping):
            raise InputError("is no object", where=f"{where}: quantization_config", hint="Give an object.")
        if chosen:
            return {**chosen, "quant_method": "mlx"} if is_mlx else dict(chosen)
    return None


def read(config: Mapping[str, Any], where: str = "config") -> Format | None:
    """How the weights of a config's checkpoint are stored; None where they are not quantized.

    Raises:
        InputError: the `quantization_config` lacks a key or has an impossible value.
        NotModelledError: the method, or one of its settings, is not described.
        UnknownNameError: there is no such method.
    """
    found = settings(config, where)
    if found is None:
        return None
    where = f"{where}: quantization_config"
    method = method_of(found)
    if method in KNOWN:
        raise NotModelledError(f"the quantization method {method!r}", where=where)
    if method not in METHODS:
        raise UnknownNameError("quant_method", method, [*METHODS, *sorted(KNOWN)], where=where)
    module, _, name = METHODS[method].partition(":")
    made: Format = getattr(import_module(module), name).read(found, config, where)
    return made


def method_of(found: Mapping[str, Any]) -> str:
    """The `quant_method`, which old files leave to the other keys.

    >>> method_of({"load_in_4bit": True}), method_of({"zero_point": True, "w_bit": 4})
    ('bitsandbytes', 'awq')
    """
    method = found.get("quant_method") or found.get("quant_type")
    if method is None or not isinstance(method, str):
        if "load_in_4bit" in found or "load_in_8bit" in found:
            return "bitsandbytes"
        if "w_bit" in found:
            return "awq"
        return "modelopt" if "quant_algo" in found or "quantization" in found else "nothing"
    return {"compressed_tensors": "compressed-tensors", "sparseml": "compressed-tensors"}.get(method, method)
