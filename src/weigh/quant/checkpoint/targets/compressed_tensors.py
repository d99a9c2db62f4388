"""compressed-tensors: what llm-compressor writes and vLLM reads. Scales are in the model's number format.

One scheme for all linear layers but those named under `ignore`. Of activations only the dynamic schemes are written,
which store nothing: their scales are found when the model runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from weigh import dtypes
from weigh.errors import UsageError
from weigh.formats import compressed_tensors as layout
from weigh.quant.checkpoint.targets.base import Encoder, Rows, Target, kept_modules
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.sources.checkpoint import StoredTensor

CODES_AND_SCALES = {"codes": "weight", "scale": "weight_scale"}
PACKED = {"codes": "weight_packed", "scale": "weight_scale"}


@dataclass(frozen=True, slots=True)
class CompressedTensors(Target):
    """What its formats share."""

    name: ClassVar[str] = "compressed-tensors"
    format: ClassVar[str]

    def weights(self) -> dict[str, Any]:
        """The `QuantizationArgs` of the weights."""
        raise NotImplementedError

    def activations(self) -> dict[str, Any] | None:
        """Those of the activations."""
        return None

    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        group = {
            "targets": ["Linear"],
            "weights": {"dynamic": False, "symmetric": True, **self.weights()},
            "input_activations": self.activations(),
            "output_activations": None,
            "format": self.format,
        }
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": self.format,
            "config_groups": {"group_0": group},
            "ignore": kept_modules(kept),
            "kv_cache_scheme": None,
        }

    def cut(self, tensor: StoredTensor) -> int:
        return tensor.shape[-1]


@dataclass(frozen=True, slots=True)
class PackedInt(CompressedTensors):
    """Integers in words of 32 bits."""

    format: ClassVar[str] = layout.PACK
    bits: int = 4
    """4 or 8."""
    group: int | None = 128
    """Inputs that share a scale; None: a row's."""

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 1:
            raise UsageError(f"is {self.group}", where="--group", hint="Give a number from 1 on.")

    def weights(self) -> dict[str, Any]:
        strategy = "channel" if self.group is None else "group"
        return {"num_bits": self.bits, "type": "int", "strategy": strategy, "group_size": self.group}

    def refuses(self, tensor: StoredTensor) -> str | None:
        if self.group is not None and tensor.shape[-1] % self.group:
            return f"has rows of {tensor.shape[-1]:,}, no whole groups of {self.group}"
        return None

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return PackedIntEncoder(self, tensor)


class PackedIntEncoder(Rows):
    """Rows as they come; the shape of the matrix at the end."""

    def __init__(self, target: PackedInt, tensor: StoredTensor) -> None:
        scope = {"scope": "row"} if target.group is None else {"scope": "group", "group": target.group}
        stored = dtypes.get(tensor.dtype).name
        super().__init__("int4", tensor, PACKED, bits=target.bits, scale_dtype=stored, **scope)
        self.shape = tensor.shape

    def encode(self, slab: Any) -> dict[str, Any]:
        from weigh.quant.bits import pack_words

        found = super().encode(slab)
        if found["weight_packed"].itemsize == 1:
            found["weight_packed"] = pack_words(found["weight_packed"].view("u1") ^ 0x80, 8)
        return found

    def finish(self) -> dict[str, Any]:
        import numpy as np

        return {"weight_shape": np.array(self.shape, np.int64)}


@dataclass(frozen=True, slots=True)
class PlainInt(CompressedTensors):
    """int8 with a scale a row; activations in int8 too, token by token."""

    format: ClassVar[str] = layout.INT

    def weights(self) -> dict[str, Any]:
        return {"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None}

    def activations(self) -> dict[str, Any]:
        return {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}

    def encoder(self, tensor: StoredTensor) -> Encoder:
        stored = dtypes.get(tensor.dtype).name
        return Rows("int8_channel", tensor, CODES_AND_SCALES, scale_dtype=stored)


@dataclass(frozen=True, slots=True)
class PlainFloat(CompressedTensors):
    """FP8 with a scale a row; activations in FP8 too, token by token."""

    format: ClassVar[str] = layout.FLOAT

    def weights(self) -> dict[str, Any]:
        return {"num_bits": 8, "type": "float", "strategy": "channel", "group_size": None}

    def activations(self) -> dict[str, Any]:
        return {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}

    def encoder(self, tensor: StoredTensor) -> Encoder:
        stored = dtypes.get(tensor.dtype).name
        return Rows("fp8", tensor, CODES_AND_SCALES, scale_dtype=stored)


@dataclass(frozen=True, slots=True)
class Blocks(CompressedTensors):
    """FP4 in blocks of a row."""

    block: ClassVar[int]

    def refuses(self, tensor: StoredTensor) -> str | None:
        if tensor.shape[-1] % self.block:
            return f"has rows of {tensor.shape[-1]:,}, no whole blocks of {self.block}"
        return None


@dataclass(frozen=True, slots=True)
class Mxfp4(Blocks):
    """MXFP4."""

    format: ClassVar[str] = layout.MXFP4
    block: ClassVar[int] = layout.BLOCKS[layout.MXFP4]

    def weights(self) -> dict[str, Any]:
        return {
            "num_bits": 4,
            "type": "float",
            "strategy": "group",
            "group_size": self.block,
            "scale_dtype": "torch.uint8",
            "zp_dtype": "torch.uint8",
        }

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return Rows("mxfp4", tensor, PACKED)


@dataclass(frozen=True, slots=True)
class Nvfp4(Blocks):
    """NVFP4, whose scales have a scale of the whole matrix: it is read twice."""

    format: ClassVar[str] = layout.NVFP4
    block: ClassVar[int] = layout.BLOCKS[layout.NVFP4]

    def weights(self) -> dict[str, Any]:
        return {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": self.block,
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        }

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return Nvfp4Encoder(tensor)


class Nvfp4Encoder(Rows):
    """Looks for the largest magnitude, then takes rows as they come."""

    surveys = True

    def __init__(self, tensor: StoredTensor) -> None:
        super().__init__("nvfp4", tensor, PACKED)
        self.amax = 0.0
        self.whole: Any = None

    def survey(self, slab: Any) -> None:
        least, most = float(slab.min()), float(slab.max())
        self.amax = max(self.amax, -least, most)

    def encode(self, slab: Any) -> dict[str, Any]:
        from weigh.records import replace

        self.quantizer = replace(self.quantizer, amax=self.amax)
        parts = self.quantizer.quantize(slab.reshape(-1, self.columns)).parts
        self.whole = parts.pop("global_scale")
        return {self.names[name]: part for name, part in parts.items()}

    def finish(self) -> dict[str, Any]:
        return {"weight_global_scale": self.whole}
