"""bitsandbytes: NF4, FP4 and LLM.int8() as `Params4bit` and `Linear8bitLt` load them.

A tensor of 4 bits has a JSON text beside it. With double quantization the text holds the mean of the scales, which is
known last: in fp32, of at most 9 digits, so that the text can be padded to the length that was planned.
"""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from weigh.errors import InputError
from weigh.formats.bitsandbytes import BLOCK, NESTED_BLOCK
from weigh.quant.checkpoint.targets.base import Encoder, Rows, Target, kept_modules
from weigh.records import dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.weights import Weights

TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class FourBit(Target):
    """Four bits a weight."""

    name: ClassVar[str] = "bitsandbytes"
    code: str = "nf4"
    """ "nf4" or "fp4"."""
    double_quantization: bool = False
    """Whether the scales are quantized again."""
    compute: str = "bfloat16"
    """What the loaded model computes in: the source's own number format."""

    def of(self, weights: Weights, config: Mapping[str, Any] | None) -> Target:
        own = TORCH.get(weights.checkpoint.float_dtype or "")
        return self if own is None else replace(self, compute=own)

    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": self.code,
            "bnb_4bit_use_double_quant": self.double_quantization,
            "bnb_4bit_compute_dtype": self.compute,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": kept_modules(kept),
        }

    def cut(self, tensor: StoredTensor) -> int:
        return BLOCK

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        return 10 * -(-prod(shape) // BLOCK) if self.double_quantization else 0  # the scales, less their mean, as codes

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return FourBitEncoder(self, tensor)


class FourBitEncoder(Encoder):
    """Codes as they come; the scales at once where they are quantized too."""

    def __init__(self, target: FourBit, tensor: StoredTensor) -> None:
        from weigh import quant

        self.target, self.tensor = target, tensor
        self.quantizer = quant.get(target.code)
        self.scales: Any = None
        self.at = 0

    def encode(self, slab: Any) -> dict[str, Any]:
        parts = self.quantizer.quantize(slab).parts
        if not self.target.double_quantization:
            return {"weight": parts["codes"], "weight.absmax": parts["absmax"]}
        if self.scales is None:
            import numpy as np

            self.scales = np.empty(-(-self.tensor.num_elements // BLOCK), np.float32)
        count = len(parts["absmax"])
        self.scales[self.at : self.at + count] = parts["absmax"]
        self.at += count
        return {"weight": parts["codes"]}

    def finish(self) -> dict[str, Any]:

        from weigh.quant import codebooks
        from weigh.quant.four_bit import nest

        book = codebooks.nf4() if self.target.code == "nf4" else codebooks.fp4()
        found = {"weight.quant_map": book.values}
        more: dict[str, Any] = {}
        if self.target.double_quantization:
            nested = nest(self.scales)
            found |= {"weight.absmax": nested["absmax"], "weight.nested_absmax": nested["nested_absmax"]}
            found["weight.nested_quant_map"] = codebooks.dynamic().values
            more = {"nested_offset": nested["nested_offset"]}
        found[f"weight.quant_state.bitsandbytes__{self.target.code}"] = self._state(**more)
        return found

    def _state(self, nested_offset: Any = None) -> Any:
        import numpy as np

        said: dict[str, Any] = {
            "quant_type": self.target.code,
            "blocksize": BLOCK,
            "dtype": TORCH[self.tensor.dtype],
            "shape": list(self.tensor.shape),
        }
        length = 0
        if nested_offset is not None:
            said |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
            said["nested_offset"] = float(str(nested_offset))
            length = self.target.outputs(self.tensor)[-1].num_bytes
        text = json.dumps(said).encode().ljust(length)
        return np.frombuffer(text, np.uint8)


@dataclass(frozen=True, slots=True)
class Int8(Target):
    """LLM.int8(): a scale a row of the weight in fp16."""

    name: ClassVar[str] = "bitsandbytes"

    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": False,
            "load_in_8bit": True,
            "llm_int8_threshold": 6.0,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": kept_modules(kept),
        }

    def cut(self, tensor: StoredTensor) -> int:
        return tensor.shape[-1]

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return Int8Encoder(tensor)


class Int8Encoder(Rows):
    """Rows as they come."""

    def __init__(self, tensor: StoredTensor) -> None:
        super().__init__("absmax_row", tensor, {"codes": "weight", "absmax": "SCB"}, half=True)

    def finish(self) -> dict[str, Any]:
        import numpy as np

        return {"weight_format": np.zeros((), np.uint8)}


def check_state(text: bytes, where: str) -> dict[str, Any]:
    """The JSON beside a tensor of 4 bits.

    Raises:
        InputError: it is none, or says what this format does not have.
    """
    try:
        found = json.loads(text)
        shape, block = found["shape"], found["blocksize"]
        if not all(isinstance(size, int) and size > 0 for size in shape) or not isinstance(block, int) or block < 1:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError("is no state of bitsandbytes", where=where, hint="The file is damaged.") from None
    result: dict[str, Any] = found
    return result
