"""CWM, as `transformers/models/cwm/modeling_cwm.py` (5.23) writes it: Llama with windows in three layers of four."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import DecoderConfig, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("cwm",)


@dataclass(frozen=True)
class CwmConfig(DecoderConfig):
    """The settings of `CwmConfig` that shape memory."""

    vocab_size: int = 128256
    hidden_size: int = 6144
    intermediate_size: int = 21504
    num_hidden_layers: int = 64
    num_attention_heads: int = 48
    num_key_value_heads: int = 8
    head_dim: int = 128
    mlp_bias: bool = False
    sliding_window: int = 8192
    layer_types: tuple[str, ...] = DERIVED

    heads_divide_width = True

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer of four has full attention."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if i % 4 else FULL for i in range(found["num_hidden_layers"]))
        keys.check_layer_types(found)


class CwmModel(LlamaModel):
    def mask_types(self) -> Iterable[str]:
        """Both, whether or not there are layers for them."""
        return (FULL, SLIDING)


class CwmForCausalLM(LlamaForCausalLM):
    model_class = CwmModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return CwmForCausalLM(CwmConfig.read(config, where), dtype)
