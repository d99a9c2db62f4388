"""SmolLM3, as `transformers/models/smollm3/modeling_smollm3.py` (5.23) writes it.

Llama with layers that know no positions, which may have sliding windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from weigh.models.qwen2 import Qwen2Model
from weigh.records import dataclass

MODEL_TYPES = ("smollm3",)


@dataclass(frozen=True)
class SmolLM3Config(DecoderConfig):
    """The settings of `SmolLM3Config` that shape memory."""

    vocab_size: int = 128256
    hidden_size: int = 2048
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: tuple[bool, ...] = DERIVED
    no_rope_layer_interval: int = 4
    layer_types: tuple[str, ...] = DERIVED
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Windows, and positions."""
        return list(zip(self.layer_types, self.no_rope_layers, strict=False))

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fourth layer knows no positions, and those alone may have a window."""
        super().settle(keys, found)
        count, every = found["num_hidden_layers"], found["no_rope_layer_interval"]
        if found["no_rope_layers"] is None:
            found["no_rope_layers"] = tuple((i + 1) % every != 0 for i in range(count))
        if len(found["no_rope_layers"]) < count:
            raise InputError("is too short", where=f"{keys.where}: no_rope_layers", hint="Give one for every layer.")
        if found["layer_types"] is None:
            window = found["use_sliding_window"] and found["sliding_window"] is not None
            rope = found["no_rope_layers"]
            found["layer_types"] = tuple(SLIDING if window and not rope[i] else FULL for i in range(count))
        keys.check_layer_types(found)


class SmolLM3Attention(LlamaAttention):
    def __init__(self, config: SmolLM3Config, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.use_rope = config.no_rope_layers[layer_idx]

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Where the layer knows positions."""
        return super().rotate(query, key, position_embeddings) if self.use_rope else (query, key)


class SmolLM3DecoderLayer(LlamaDecoderLayer):
    attention_class = SmolLM3Attention


class SmolLM3Model(Qwen2Model):
    layer_class = SmolLM3DecoderLayer


class SmolLM3ForCausalLM(LlamaForCausalLM):
    model_class = SmolLM3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return SmolLM3ForCausalLM(SmolLM3Config.read(config, where), dtype)
