"""GraniteMoE with windows, as `transformers/models/granitemoe_swa/modeling_granitemoe_swa.py` (5.23) writes it.

Counted, not run. GraniteMoE with a shared expert, sinks in every attention, and one rotary embedding for each base of
the frequencies. It has no sdpa.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel, ModuleList, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.granitemoeshared import (
    GraniteMoeSharedConfig,
    GraniteMoeSharedDecoderLayer,
    GraniteMoeSharedForCausalLM,
    GraniteMoeSharedModel,
)
from weigh.models.llama import DecoderConfig, LlamaAttention
from weigh.records import dataclass

MODEL_TYPES = ("granitemoe_swa",)


@dataclass(frozen=True)
class GraniteMoeSWAConfig(GraniteMoeSharedConfig):
    """The settings of `GraniteMoeSWAConfig` that shape memory."""

    sliding_window: int | None = 128
    layer_types: tuple[str, ...] = DERIVED
    bases: int = 1
    """How many different bases the layers' frequencies have."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fourth layer has full attention, the first one too."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if i % 4 else FULL for i in range(found["num_hidden_layers"]))
        keys.check_layer_types(found)
        bases = keys.config.get("layer_rope_theta")
        if bases is not None:
            if not isinstance(bases, list | tuple) or len(bases) != found["num_hidden_layers"]:
                hint = "Give a number or null for each layer."
                raise InputError(f"is {bases!r}", where=f"{keys.where}: layer_rope_theta", hint=hint)
            found["bases"] = len({base for base in bases if base})


class GraniteMoeSWAAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.sinks = nn.parameter((config.num_attention_heads,), dtype)


class GraniteMoeSWADecoderLayer(GraniteMoeSharedDecoderLayer):
    attention_class = GraniteMoeSWAAttention


class GraniteMoeSWAModel(GraniteMoeSharedModel):
    layer_class = GraniteMoeSWADecoderLayer

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.rotary_embs = ModuleList([RotaryEmbedding(config.head_dim) for _ in range(config.bases)])


class GraniteMoeSWAForCausalLM(GraniteMoeSharedForCausalLM):
    model_class = GraniteMoeSWAModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GraniteMoeSWAForCausalLM(GraniteMoeSWAConfig.read(config, where), dtype)
