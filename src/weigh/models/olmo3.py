"""OLMo 3, as `transformers/models/olmo3/modeling_olmo3.py` (5.23) writes it.

OLMo 2 with three sliding windows to one full layer, and a rotary embedding for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, SLIDING, CausalModel, cos_sin
from weigh.models.config import DERIVED, Keys
from weigh.models.gemma3_text import Gemma3RotaryEmbedding
from weigh.models.llama import DecoderConfig, LlamaForCausalLM
from weigh.models.olmo2 import Olmo2Config, Olmo2Model
from weigh.records import dataclass

MODEL_TYPES = ("olmo3",)


@dataclass(frozen=True)
class Olmo3Config(Olmo2Config):
    """The settings of `Olmo3Config` that shape memory."""

    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fourth layer has full attention; each type of layer has its own rotary embedding."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if (i + 1) % 4 else FULL for i in range(found["num_hidden_layers"]))
        keys.check_layer_types(found)
        if found["sliding_window"] is None:
            raise InputError("is null", where=f"{keys.where}: sliding_window", hint="Give the window's size.")
        for layer_type in found["layer_types"]:
            keys.rope_type(layer_type)


class Olmo3RotaryEmbedding(Gemma3RotaryEmbedding):
    """Cosines and sines stay in fp32."""

    def forward(self, x: Tensor, positions: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        return cos_sin(positions, getattr(self, f"{layer_type}_inv_freq"), None)


class Olmo3Model(Olmo2Model):
    def rotary(self, config: DecoderConfig) -> nn.Module:
        """One for each type of layer."""
        return Olmo3RotaryEmbedding(config)

    def mask_types(self) -> Iterable[str]:
        """Both, whether or not there are layers for them."""
        return (FULL, SLIDING)

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Made one after the other."""
        position_embeddings = {}
        for layer_type in sorted(set(self.config.layer_types)):
            position_embeddings[layer_type] = self.rotary_emb(hidden_states, positions, layer_type)
        return position_embeddings


class Olmo3ForCausalLM(LlamaForCausalLM):
    model_class = Olmo3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Olmo3ForCausalLM(Olmo3Config.read(config, where), dtype)
