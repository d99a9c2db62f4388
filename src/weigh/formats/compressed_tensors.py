"""compressed-tensors: what llm-compressor writes and vLLM reads, a scheme for each group of layers.

Names and shapes as its compressors make them (compressed-tensors 0.20, `compressors/`): packed integers of 1 to 8 bits,
plain int8 and FP8, NVFP4, MXFP4, MXFP6 and MXFP8. A scheme's targets are class names, module names or patterns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import FLOAT8_E4M3, FLOAT32, INT8, INT32, INT64, UINT8, DType
from weigh.errors import InputError, NotModelledError
from weigh.formats.base import EMBEDDING, Format, Stored, Weight, beside, ceil, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

WORD = 32
PACK, INT, FLOAT, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
NVFP4, MXFP4, MXFP6, MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized"
FORMATS = (PACK, INT, FLOAT, NAIVE, NVFP4, MXFP4, MXFP6, MXFP8)
BLOCKS = {NVFP4: 16, MXFP4: 32, MXFP6: 32, MXFP8: 32}
"""Inputs that share a scale, where the format says so."""
BESIDE = (
    "weight_scale weight_zero_point weight_shape weight_g_idx weight_global_scale input_scale input_zero_point "
    "input_global_scale output_scale output_zero_point k_scale v_scale q_scale"
).split()


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one group of layers is stored."""

    targets: tuple[str, ...]
    format: str
    bits: int
    floating: bool
    strategy: str
    """ "tensor", "channel", "group", "tensor_group" or "block"."""
    group: int
    """Inputs that share a scale, of the strategy "group"."""
    block: tuple[int, int]
    """Rows and columns that share one, of the strategy "block"."""
    symmetric: bool
    ordered: bool
    """Activation order: the group of each input is stored."""
    static: bool
    """The activations' scale is stored."""
    static_zero: bool
    """And their zero."""

    def groups(self, weight: Weight) -> tuple[int, ...]:
        """The shape of its scales."""
        if self.format in BLOCKS:
            return weight.rows, weight.columns // BLOCKS[self.format]
        if self.strategy == "group":
            return weight.rows, ceil(weight.columns, self.group)
        if self.strategy == "block":
            return ceil(weight.rows, self.block[0]), ceil(weight.columns, self.block[1])
        return (weight.rows, 1) if self.strategy == "channel" else (1,)


@dataclass(frozen=True, slots=True)
class CompressedTensors(Format):
    """Its schemes."""

    method: ClassVar[str] = "compressed-tensors"
    schemes: tuple[Scheme, ...]
    ignored: tuple[str, ...]
    """Modules that stay."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        nested = found.get("quantization_config")
        found = nested if isinstance(nested, Mapping) else found
        groups = found.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise InputError("is missing", where=f"{where}: config_groups", hint="Give the groups' schemes.")
        sparsity = (found.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise NotModelledError(f"the sparse format {sparsity!r}", where=where)
        made = tuple(_scheme(name, group, found, where) for name, group in groups.items())
        return cls(made, words(found, where, "ignore") or ())

    @property
    def title(self) -> str:
        said = dict.fromkeys(f"{s.format} ({s.bits}-bit, {s.strategy})" for s in self.schemes)
        return ", ".join(said)

    def _scheme(self, weight: Weight) -> Scheme | None:
        if weight.kind == EMBEDDING or any(_matches(p, weight.module) for p in self.ignored):
            return None
        return next((s for s in self.schemes if any(_matches(t, weight.module, "Linear") for t in s.targets)), None)

    def converts(self, weight: Weight) -> bool:
        return self._scheme(weight) is not None

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        scheme = self._scheme(weight)
        assert scheme is not None
        groups = scheme.groups(weight)
        codes = _codes(weight, scheme)
        stored = [codes, beside(weight, "weight_scale", groups, _scale_dtype(weight, scheme))]
        if scheme.format == PACK:
            stored.append(beside(weight, "weight_shape", (2,), INT64))
        if not scheme.symmetric:
            packed = (ceil(weight.rows * scheme.bits, WORD), groups[-1])
            shape, dtype = (packed, INT32) if scheme.format == PACK else (groups, INT8)
            stored.append(beside(weight, "weight_zero_point", shape, dtype))
        if scheme.ordered:
            stored.append(beside(weight, "weight_g_idx", (weight.columns,), INT32))
        if scheme.format == NVFP4:
            stored.append(beside(weight, "weight_global_scale", (1,), FLOAT32))
        if scheme.static:
            name, dtype = ("input_global_scale", FLOAT32) if scheme.format == NVFP4 else ("input_scale", weight.dtype)
            stored.append(beside(weight, name, (1,), dtype))
        if scheme.static_zero:
            stored.append(beside(weight, "input_zero_point", (1,), INT8))
        return tuple(stored)

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        module, _, suffix = tensor.name.rpartition(".")
        if suffix in BESIDE:
            return 0
        if suffix != "weight_packed":
            return None
        fitting = (s for s in self.schemes if any(_matches(t, module, "Linear") for t in s.targets))
        scheme = next(fitting, self.schemes[0])
        bits = tensor.num_elements * (WORD if tensor.dtype == "I32" else 8)
        if bits % scheme.bits or (tensor.dtype == "I32" and WORD % scheme.bits and tensor.shape[-1] % scheme.bits):
            raise NotModelledError(f"how many codes of {scheme.bits} bits fill the last word", where=tensor.name)
        return bits // scheme.bits


def _scheme(name: str, group: Any, found: Mapping[str, Any], where: str) -> Scheme:
    where = f"{where}: config_groups: {name}"
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise InputError("has no weights", where=where, hint="Give num_bits, type and strategy.")
    form = group.get("format") or found.get("format") or PACK
    bits, floating = int(weights.get("num_bits") or 8), weights.get("type") == "float"
    if form not in FORMATS:
        raise NotModelledError(f"the format {form!r}", where=where)
    activations = group.get("input_activations") or {}
    static = bool(activations) and activations.get("dynamic") is False
    block = weights.get("block_structure") or (128, 128)
    return Scheme(
        targets=words(group, where, "targets") or ("Linear",),
        format=form,
        bits=bits,
        floating=floating,
        strategy=str(weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")),
        group=int(weights.get("group_size") or 0),
        block=(int(block[0]), int(block[1])),
        symmetric=weights.get("symmetric", True) is not False,
        ordered=weights.get("actorder") in ("group", True),
        static=static or (form == NVFP4 and bool(activations)),
        static_zero=static and activations.get("symmetric") is False,
    )


def _matches(pattern: str, module: str, kind: str = "") -> bool:
    """Whether a target or an exception means a module: `re:` and a pattern, its name or an end of it, or its class."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return pattern in (module, kind) or module.endswith(f".{pattern}")


def _codes(weight: Weight, scheme: Scheme) -> Stored:
    rows, columns = weight.rows, weight.columns
    if scheme.format == PACK:
        shape = (rows, ceil(columns * scheme.bits, WORD))
        return beside(weight, "weight_packed", shape, INT32, weight.elements)
    if scheme.format in (NVFP4, MXFP4, MXFP6):
        shape = (rows, columns * scheme.bits // 8)
        return beside(weight, "weight_packed", shape, UINT8, weight.elements)
    return beside(weight, "weight", (rows, columns), FLOAT8_E4M3 if scheme.floating else INT8, weight.elements)


def _scale_dtype(weight: Weight, scheme: Scheme) -> DType:
    if scheme.format == NVFP4:
        return FLOAT8_E4M3
    return UINT8 if scheme.format in BLOCKS else weight.dtype
