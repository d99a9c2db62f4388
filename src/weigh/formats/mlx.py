"""MLX: codes packed in 32-bit words, with a scale and a bias a group; embeddings are quantized too.

Shapes as `mlx.nn.quantize` makes them: every layer with a `to_quantized` whose width is a multiple of the group; a
module's own entry in the config changes or excepts it (`mlx_lm.utils.quantize_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import UINT8, UINT32
from weigh.errors import NotModelledError
from weigh.formats.base import Format, Stored, Weight, beside, bits_of, number
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

WORD = 32
TOWERS = ("vision_model", "vision_tower", "visual", "sam_model", "audio_model", "audio_tower")
"""What `mlx_vlm` leaves alone (`skip_multimodal_module` in its utils.py); "visual" is transformers' name of a tower."""


@dataclass(frozen=True, slots=True)
class Mlx(Format):
    """Its settings."""

    method: ClassVar[str] = "mlx"
    bits: int
    group: int
    mode: str
    """ "affine" has scales and biases; "mxfp4" and "mxfp8" have a power of two a group."""
    layers: Mapping[str, Any]
    """Modules with settings of their own; False: it stays."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        mode = str(found.get("mode") or "affine")
        if mode not in ("affine", "mxfp4", "mxfp8"):
            raise NotModelledError(f"MLX's mode {mode!r}", where=where)
        return cls(
            bits=bits_of(found, where, (2, 3, 4, 5, 6, 8)),
            group=number(found, where, "group_size", default=64),
            mode=mode,
            layers={_bare(k): v for k, v in found.items() if isinstance(v, Mapping | bool)},
        )

    @property
    def title(self) -> str:
        return f"{self.bits}-bit MLX ({self.mode}), groups of {self.group}"

    def _own(self, module: str) -> tuple[int, int]:
        own = self.layers.get(_bare(module))
        if not isinstance(own, Mapping):
            return self.bits, self.group
        return own.get("bits", self.bits), own.get("group_size", self.group)

    def converts(self, weight: Weight) -> bool:
        if any(tower in weight.module for tower in TOWERS):
            return False
        return self.layers.get(_bare(weight.module)) is not False and weight.columns % self._own(weight.module)[1] == 0

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        bits, group = self._own(weight.module)
        groups = (weight.rows, weight.columns // group)
        codes = beside(weight, "weight", (weight.rows, weight.columns * bits // WORD), UINT32, weight.elements)
        if self.mode != "affine":
            return codes, beside(weight, "scales", groups, UINT8)
        return codes, beside(weight, "scales", groups, weight.dtype), beside(weight, "biases", groups, weight.dtype)

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        module, _, suffix = tensor.name.rpartition(".")
        if suffix in ("scales", "biases"):
            return 0
        packed = suffix == "weight" and tensor.dtype == "U32"
        return tensor.num_elements * WORD // self._own(module)[0] if packed else None


def _bare(module: str) -> str:
    """A module's name without the wrappers, which MLX nests otherwise than transformers.

    >>> _bare("language_model.model.layers.0.mlp"), _bare("model.language_model.layers.0.mlp")
    ('layers.0.mlp', 'layers.0.mlp')
    """
    return ".".join(part for part in module.split(".") if part not in ("model", "language_model"))
