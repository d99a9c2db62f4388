"""Ministral 3, as `transformers/models/ministral3/modeling_ministral3.py` (5.23) writes it.

Mistral whose queries grow with their position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("ministral3",)


@dataclass(frozen=True)
class Ministral3Config(DecoderConfig):
    """The settings of `Ministral3Config` that shape memory."""

    vocab_size: int = 131072
    intermediate_size: int = 14336
    num_hidden_layers: int = 34
    num_key_value_heads: int = 8
    head_dim: int = 128
    sliding_window: int | None = None

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Upstream reads `llama_4_scaling_beta` out of the rotary embedding's settings, and fails without it."""
        super().settle(keys, found)
        rope = keys.config.get("rope_parameters") or keys.config.get("rope_scaling")
        if isinstance(rope, Mapping) and None in (
            rope.get("llama_4_scaling_beta"),
            rope.get("original_max_position_embeddings"),
        ):
            keys.cannot_run("rope_parameters", "queries whose scale the config does not give")


def get_llama_4_attn_scale(positions_ids: Tensor) -> Tensor:
    """(1, length) to (1, 1, length, 1)."""
    scaling = 1 + 0.1 * ops.log(1 + ops.floor(positions_ids / 16384))
    return scaling.unsqueeze(1).unsqueeze(3)


class Ministral3Attention(LlamaAttention):
    def rotate(
        self,
        query: Tensor,
        key: Tensor,
        position_embeddings: tuple[Tensor, Tensor, Tensor],  # type: ignore[override]
    ) -> tuple[Tensor, Tensor]:
        """Queries are scaled too."""
        cos, sin, positions = position_embeddings
        query, key = super().rotate(query, key, (cos, sin))
        query = query * get_llama_4_attn_scale(positions).to(query.dtype)
        return query, key


class Ministral3DecoderLayer(LlamaDecoderLayer):
    attention_class = Ministral3Attention


class Ministral3Model(LlamaModel):
    layer_class = Ministral3DecoderLayer

    def position_embeddings(  # type: ignore[override]
        self, hidden_states: Tensor, positions: Tensor
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Cosines, sines, and the positions themselves."""
        cos, sin = self.rotary_emb(hidden_states, positions)
        return dict.fromkeys(self.config.layer_types, (cos, sin, positions))


class Ministral3ForCausalLM(LlamaForCausalLM):
    model_class = Ministral3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Ministral3ForCausalLM(Ministral3Config.read(config, where), dtype)
