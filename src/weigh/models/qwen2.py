"""Qwen2, as `transformers/models/qwen2/modeling_qwen2.py` (5.23) writes it.

Llama whose queries, keys and values have a bias, and whose later layers may have a sliding window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("qwen2",)


@dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """The settings of `Qwen2Config` that shape memory."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int = 32
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: Count = 28
    layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A window only where it is switched on, and only from layer `max_window_layers` on."""
        super().settle(keys, found)
        if not found["use_sliding_window"]:
            found["sliding_window"] = None
        if found["layer_types"] is None:
            count, first = found["num_hidden_layers"], found["max_window_layers"]
            window = found["sliding_window"] is not None
            found["layer_types"] = tuple(SLIDING if window and i >= first else FULL for i in range(count))
        keys.check_layer_types(found)


class Qwen2Attention(LlamaAttention):
    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return True, False


class Qwen2DecoderLayer(LlamaDecoderLayer):
    attention_class = Qwen2Attention


class Qwen2Model(LlamaModel):
    layer_class: ClassVar[type[Any]] = Qwen2DecoderLayer

    def mask_types(self) -> Iterable[str]:
        """A mask for full attention is always made."""
        return dict.fromkeys([FULL, *self.config.layer_types])


class Qwen2ForCausalLM(LlamaForCausalLM):
    model_class = Qwen2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Qwen2ForCausalLM(Qwen2Config.read(config, where), dtype)
