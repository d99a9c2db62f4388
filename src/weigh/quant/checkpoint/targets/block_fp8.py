"""FP8 in blocks of 128 x 128 with fp32 scales beside it, as DeepSeek-V3's files and transformers' `fp8` have it.

The scales are called `weight_scale_inv`, and weights are codes times scales all the same. Blocks at the edges are
smaller where sizes are no multiples of 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from weigh.quant.checkpoint.targets.base import Encoder, Rows, Target, kept_modules
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.sources.checkpoint import StoredTensor

SIDE = 128


@dataclass(frozen=True, slots=True)
class BlockFp8(Target):
    """The format has no settings."""

    name: ClassVar[str] = "fp8"

    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [SIDE, SIDE],
            "modules_to_not_convert": kept_modules(kept),
        }

    def cut(self, tensor: StoredTensor) -> int:
        return SIDE * tensor.shape[-1]

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return Rows("fp8_block", tensor, {"codes": "weight", "scale": "weight_scale_inv"})
