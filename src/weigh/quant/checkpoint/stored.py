"""Matrices that a checkpoint holds quantized: which tensors make up each, and its values, slab by slab.

The tensors' names say what they are, whatever the config claims; the config gives what names and shapes cannot (the
bits of packed integers). What comes out has the model's own number format, rounded once from fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import lcm, prod
from typing import TYPE_CHECKING, Any

from weigh import dtypes, formats
from weigh.errors import InputError, NotModelledError
from weigh.formats.bitsandbytes import NESTED_BLOCK
from weigh.formats.compressed_tensors import CompressedTensors
from weigh.quant.checkpoint.layout import SPELLED
from weigh.quant.checkpoint.targets.bitsandbytes import check_state
from weigh.records import dataclass
from weigh.sources.checkpoint import StoredTensor
from weigh.sources.opened import damaged

if TYPE_CHECKING:
    from weigh.sources.weights import Weights

STATE = "weight.quant_state.bitsandbytes__"
_TORCH = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TABLES = ("weight.quant_map", "weight.nested_quant_map", "weight_format", "weight_shape", "input_scale")


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix."""

    tensor: StoredTensor
    """What it stands for: its name, shape and number format without quantization."""
    parts: Mapping[str, StoredTensor]
    """What is stored, by the parts of the quantizer."""
    quantizer: str
    """Whose parts these are."""
    settings: tuple[tuple[str, Any], ...] = ()
    """The quantizer's."""
    offset: float | None = None
    """The mean of scales that are quantized themselves."""

    @property
    def num_bytes(self) -> int:
        """Of codes and scales, without tables and texts."""
        return sum(part.num_bytes for part in self.parts.values())

    @property
    def title(self) -> str:
        """How it is stored, in a few words."""
        said = {"absmax_row": "int8 (LLM.int8())", "int8_channel": "int8", "fp8_block": "FP8, blocks of 128 x 128"}
        settings = dict(self.settings)
        if self.quantizer == "int4":
            group = f", groups of {settings['group']}" if "group" in settings else ", a scale a row"
            return f"int{settings['bits']}{group}"
        if self.quantizer in ("nf4", "fp4"):
            double = ", double quantization" if self.offset is not None else ""
            return f"{self.quantizer.upper()}, blocks of {settings['block']}{double}"
        return said.get(self.quantizer, self.quantizer.upper().removesuffix("_GGML"))

    @property
    def state(self) -> int:
        """Bytes that stay in memory while it is read: the scales of scales."""
        return 0 if self.offset is None else 12 * prod(self.parts["absmax"].shape)

    def cut(self) -> int:
        """Slabs are of a multiple of so many elements."""
        if self.quantizer in ("nf4", "fp4"):
            return int(dict(self.settings)["block"])
        return self.tensor.shape[-1] * (128 if self.quantizer == "fp8_block" else 1)

    def slabs(self, weights: Weights, size: int, cut: int = 1) -> Iterator[Any]:
        """The values, flat, in their own number format: about `size` bytes at a time, multiples of `cut` elements."""
        import numpy as np

        from weigh import quant
        from weigh.quant.arrays import numpy_dtype
        from weigh.quant.base import Packed

        quantizer: Any = quant.get(self.quantizer, **dict(self.settings))
        dtype = dtypes.get(self.tensor.dtype)
        kind, elements, columns = numpy_dtype(dtype), self.tensor.num_elements, self.tensor.shape[-1]
        unit = lcm(self.cut(), cut)
        step = max(size // dtype.itemsize // unit, 1) * unit
        at = dict.fromkeys(self.parts, 0)
        whole = self._whole(weights)
        for start in range(0, elements, step):
            count = min(step, elements - start)
            shape = (count,) if self.quantizer in ("nf4", "fp4") else (count // columns, columns)
            parts = {}
            for name, part in quantizer.layout(shape).items():
                length = part.num_bytes
                if name in whole:
                    parts[name] = (
                        whole[name] if name != "absmax" else whole[name][start // self.cut() :][: part.shape[0]]
                    )
                    continue
                data = weights.read(self.parts[name], at[name], length)
                at[name] += length
                found = np.frombuffer(data, numpy_dtype(part.dtype))
                parts[name] = found.reshape(part.shape)
            self._rebias(parts)
            yield quantizer.dequantize(Packed(parts, shape, dtype)).reshape(-1).astype(kind, copy=False)
        for name, end in at.items():
            if name not in whole and name != "nested" and end != self.parts[name].num_bytes:
                said = f"has {self.parts[name].num_bytes:,} bytes, and {end:,} belong to {list(self.tensor.shape)}"
                raise damaged(self.parts[name].name, said)

    def _rebias(self, parts: dict[str, Any]) -> None:
        """Words of 8-bit codes are biased by 128, int8 is not."""
        stored = self.parts.get("codes")
        if self.quantizer == "int4" and stored is not None and parts["codes"].itemsize == 1:
            parts["codes"] = (parts["codes"].view("u1") ^ 0x80).view("i1")

    def _whole(self, weights: Weights) -> dict[str, Any]:
        """What every slab needs."""
        import numpy as np

        found = {}
        if "global_scale" in self.parts:
            part = self.parts["global_scale"]
            found["global_scale"] = np.frombuffer(weights.read(part, 0, part.num_bytes), np.float32)
        if self.offset is not None:
            from weigh.quant.four_bit import unnest

            codes, scales = (weights.read(self.parts[n], 0, self.parts[n].num_bytes) for n in ("absmax", "nested"))
            found["absmax"] = unnest(
                {
                    "absmax": np.frombuffer(codes, np.uint8),
                    "nested_absmax": np.frombuffer(scales, np.float32),
                    "nested_offset": np.float32(self.offset),
                }
            )
        return found


def read(
    weights: Weights, config: Mapping[str, Any] | None, dtype: str | None = None
) -> tuple[tuple[StoredTensor, ...], dict[str, Matrix]]:
    """The tensors that a checkpoint stands for, in its order, and those among them that are stored quantized, by name.

    `dtype` is what the values are given in instead of the model's own number format.

    Raises:
        InputError: a part is missing, or parts contradict each other.
        NotModelledError: the method is not one of those that are read.
    """
    stored = weights.checkpoint.tensors
    form = formats.read(config) if config else None
    plain = SPELLED[dtypes.get(dtype or _own(config)).name]
    spelled = plain if dtype else "F32"
    matrices: dict[str, Matrix] = {}
    used: set[str] = set()
    for name, tensor in stored.items() if weights.checkpoint.format == "gguf" else ():
        block = dtypes.get("nvfp4_ggml" if tensor.dtype == "NVFP4" else tensor.dtype)
        if block.kind == "block":
            size = dtypes.get(spelled).num_bytes(tensor.num_elements)
            logical = StoredTensor(name, tensor.shape, spelled, size, tensor.file)
            quantizer = "mxfp4_ggml" if block.name == "mxfp4" else block.name
            matrices[name] = Matrix(logical, {"blocks": tensor}, quantizer)
            used.add(name)
    for name, tensor in stored.items() if weights.checkpoint.format != "gguf" else ():
        module, _, last = name.rpartition(".")
        found = _matrix(weights, stored, module, last, tensor, form, plain, bool(dtype))
        if found is not None:
            matrix, names = found
            matrices[name] = matrix
            used.update(names)
    if form is not None and not matrices:
        raise NotModelledError(f"reading the values of {form.title}", where=weights.folder.where)
    listed = [matrices[n].tensor if n in matrices else t for n, t in stored.items() if n in matrices or n not in used]
    return tuple(listed), {m.tensor.name: m for m in matrices.values()}


def _own(config: Mapping[str, Any] | None) -> str:
    """The number format of a model, as its config says it."""
    config = config or {}
    nested = config.get("text_config") or {}
    return str(next((c[k] for c in (config, nested) for k in ("dtype", "torch_dtype") if c.get(k)), "bfloat16"))


def _matrix(
    weights: Weights,
    stored: Mapping[str, StoredTensor],
    module: str,
    last: str,
    tensor: StoredTensor,
    form: Any,
    plain: str,
    forced: bool,
) -> tuple[Matrix, list[str]] | None:
    """The matrix whose codes a tensor is, and the names of everything that belongs to it; None where it is none."""

    def there(suffix: str) -> StoredTensor | None:
        return stored.get(f"{module}.{suffix}")

    def made(shape: tuple[int, ...], parts: dict[str, str], quantizer: str, dtype: str = plain, **more: Any) -> Any:
        found = {}
        for part, suffix in parts.items():
            held = there(suffix)
            if held is None:
                raise InputError("is missing", where=f"{module}.{suffix}", hint="The checkpoint is damaged.")
            found[part] = held
        size = dtypes.get(dtype).num_bytes(prod(shape))
        logical = StoredTensor(f"{module}.weight", shape, dtype, size, tensor.file)
        offset = more.pop("offset", None)
        names = [t.name for t in found.values()] + [f"{module}.{table}" for table in _TABLES if there(table)]
        return Matrix(logical, found, quantizer, tuple(more.items()), offset), names

    if last == "weight" and there("weight.absmax") is not None:
        return _four_bit(weights, stored, module, plain if forced else None, made)
    if last == "weight" and tensor.dtype == "I8" and there("SCB") is not None:
        return made(tensor.shape, {"codes": "weight", "absmax": "SCB"}, "absmax_row")
    if last == "weight" and there("weight_scale_inv") is not None:
        return made(tensor.shape, {"codes": "weight", "scale": "weight_scale_inv"}, "fp8_block")
    if last == "weight" and tensor.dtype in ("I8", "F8_E4M3") and (scale := there("weight_scale")) is not None:
        if there("weight_zero_point") is not None:
            raise NotModelledError("reading int8 with zero points", where=tensor.name)
        quantizer = "int8_channel" if tensor.dtype == "I8" else "fp8"
        scope = "row" if scale.shape == (tensor.shape[0], 1) else "tensor"
        if scope == "tensor" and scale.num_elements != 1:
            raise NotModelledError(f"scales of the shape {list(scale.shape)}", where=tensor.name)
        parts = {"codes": "weight", "scale": "weight_scale"}
        more = {"scope": scope, "scale_dtype": dtypes.get(scale.dtype).name}
        return made(tensor.shape, parts, quantizer, **more)
    if last == "weight_packed":
        return _packed(weights, there, tensor, form, made)
    return None


def _four_bit(weights: Weights, stored: Mapping[str, StoredTensor], module: str, dtype: str | None, made: Any) -> Any:
    name = next((n for n in (f"{module}.{STATE}nf4", f"{module}.{STATE}fp4") if n in stored), None)
    if name is None:
        raise InputError("is missing", where=f"{module}.{STATE}nf4", hint="The checkpoint is damaged.")
    said = check_state(weights.read(stored[name], 0, stored[name].num_bytes), name)
    parts = {"codes": "weight", "absmax": "weight.absmax"}
    if "nested_offset" in said:
        parts["nested"] = "weight.nested_absmax"
        if said.get("nested_blocksize") != NESTED_BLOCK:
            raise NotModelledError(f"scales in blocks of {said.get('nested_blocksize')!r}", where=name)
    spelled = dtype or _TORCH.get(str(said.get("dtype")), "BF16")
    offset = said.get("nested_offset")
    kind = name.rpartition("__")[2]
    matrix, names = made(tuple(said["shape"]), parts, kind, spelled, block=said["blocksize"], offset=offset)
    codes = matrix.parts["codes"]
    if codes.num_bytes != -(-matrix.tensor.num_elements // 2):
        raise InputError(f"has {codes.num_bytes:,} bytes of codes for {said['shape']}", where=codes.name)
    return matrix, [*names, name]


def _packed(weights: Weights, there: Any, tensor: StoredTensor, form: Any, made: Any) -> Any:
    rows, scale = tensor.shape[0], there("weight_scale")
    if scale is None:
        raise InputError("is missing", where=tensor.name.replace("_packed", "_scale"))
    if tensor.dtype == "U8":
        wide = (rows, tensor.shape[1] * 2)
        if there("weight_global_scale") is not None:
            parts = {"codes": "weight_packed", "scale": "weight_scale", "global_scale": "weight_global_scale"}
            return made(wide, parts, "nvfp4")
        return made(wide, {"codes": "weight_packed", "scale": "weight_scale"}, "mxfp4")
    held = there("weight_shape")
    if held is None or not isinstance(form, CompressedTensors):
        raise InputError("has no weight_shape or no config", where=tensor.name)
    data = weights.read(held, 0, held.num_bytes)
    shape = tuple(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))
    scheme = form.schemes[0]
    if there("weight_zero_point") is not None or there("weight_g_idx") is not None:
        raise NotModelledError("reading packed integers with zero points or activation order", where=tensor.name)
    more: dict[str, Any] = {"bits": scheme.bits, "scale_dtype": dtypes.get(scale.dtype).name, "scope": "row"}
    if scheme.strategy == "group":
        more |= {"scope": "group", "group": scheme.group}
    if tensor.shape != (rows, -(-shape[1] * scheme.bits // 32)) or shape[0] != rows:
        raise InputError(f"has the shape {list(tensor.shape)} for {list(shape)}", where=tensor.name)
    return made(shape, {"codes": "weight_packed", "scale": "weight_scale"}, "int4", **more)
