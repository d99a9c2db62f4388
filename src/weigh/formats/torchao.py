"""torchao: int8, float8 and unpacked small integers, as transformers saves them.

A weight that is a tensor subclass is written as its parts (`flatten_tensor_state_dict` of torchao 0.18,
`prototype/safetensors`): `0.weight` becomes `0._weight_qdata`, `0._weight_scale`, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import FLOAT8_E4M3, FLOAT32, INT8, DType
from weigh.errors import InputError, NotModelledError
from weigh.formats.base import EMBEDDING, EXPERTS, HEAD, Format, Stored, Weight, left_alone, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

INTEGERS = ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")
FLOATS = ("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig")
UNPACKED = "IntxWeightOnlyConfig"
PARTS = ("_scale", "_zero_point", "_act_pre_scale", "_act_scale")


@dataclass(frozen=True, slots=True)
class TorchAo(Format):
    """Its settings."""

    method: ClassVar[str] = "torchao"
    config: str
    """The name of the configuration class."""
    group: int | None
    """Inputs that share a scale; None: a row."""
    embeddings: bool
    """Embeddings and the output layer are converted too."""
    skipped: tuple[str, ...] | None
    """Modules that stay; None: the output layer."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        kind = found.get("quant_type")
        default = kind.get("default", kind) if isinstance(kind, Mapping) else None
        if not isinstance(default, Mapping) or "_type" not in default:
            raise InputError("is no configuration", where=f"{where}: quant_type", hint="Give the object with _type.")
        name, data = str(default["_type"]), default.get("_data") or {}
        if name not in (*INTEGERS, *FLOATS, UNPACKED):
            raise NotModelledError(f"torchao's {name}", where=where)
        granularity = data.get("granularity") or {}
        inner = granularity.get("_data") or {} if isinstance(granularity, Mapping) else {}
        if name in FLOATS and isinstance(granularity, Mapping) and granularity.get("_type") == "PerTensor":
            raise NotModelledError("torchao's float8 with a scale a tensor", where=where)
        group = inner.get("group_size") if name == UNPACKED else None
        skipped = words(found, where, "modules_to_not_convert")
        return cls(name, group, bool(found.get("include_input_output_embeddings")), skipped)

    @property
    def title(self) -> str:
        return f"torchao's {self.config}"

    def converts(self, weight: Weight) -> bool:
        if weight.kind == EXPERTS or (weight.kind == EMBEDDING and not self.embeddings):
            return False
        if weight.kind == HEAD and not self.embeddings and self.skipped is None:
            return False
        return not left_alone(weight.module, self.skipped or ())

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        codes = FLOAT8_E4M3 if self.config in FLOATS else INT8
        groups = (weight.rows, 1 if self.group is None else weight.columns // self.group)
        scale = weight.dtype if self.config == UNPACKED else FLOAT32
        stored = [
            _part(weight, "qdata", (weight.rows, weight.columns), codes, weight.elements),
            _part(weight, "scale", groups, scale),
        ]
        if self.config not in FLOATS:
            stored.append(_part(weight, "zero_point", groups, INT8))
        return tuple(stored)

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        suffix = tensor.name.rpartition(".")[2]
        return 0 if suffix.startswith("_") and suffix.endswith(PARTS) else None


def _part(weight: Weight, part: str, shape: tuple[int, ...], dtype: DType, parameters: int = 0) -> Stored:
    return Stored(f"{weight.module}._weight_{part}", shape, dtype, parameters)
