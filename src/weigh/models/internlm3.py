"""InternLM3, which transformers 5.23 runs as Llama (`models/internlm3/configuration_internlm3.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.llama import LlamaConfig, LlamaForCausalLM
from weigh.records import dataclass

MODEL_TYPES = ("internlm3",)


@dataclass(frozen=True)
class InternLM3Config(LlamaConfig):
    """The settings of `InternLM3Config` that shape memory."""

    vocab_size: int = 128512
    intermediate_size: int = 10240
    num_hidden_layers: int = 48
    num_key_value_heads: int = 2
    head_dim: int = 128

    aliases: ClassVar[Mapping[str, str]] = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Llama has one setting for the biases of all of its attention."""
        super().settle(keys, found)
        if found["attention_bias"] != found["mlp_bias"]:
            where = f"{keys.where}: qkv_bias"
            raise InputError("differs from bias", where=where, hint="Set both, or neither, as upstream asks.")


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return LlamaForCausalLM(InternLM3Config.read(config, where), dtype)
