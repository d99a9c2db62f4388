"""Command R7B and A, as `transformers/models/cohere2/modeling_cohere2.py` (5.23) writes it.

Command R with three sliding windows to one full layer, which knows no positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost.tensor import Tensor
from weigh.models.cohere import CohereAttention, CohereDecoderLayer, CohereForCausalLM, CohereModel
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import DecoderConfig
from weigh.records import dataclass

MODEL_TYPES = ("cohere2",)


@dataclass(frozen=True)
class Cohere2Config(DecoderConfig):
    """The settings of `Cohere2Config` that shape memory."""

    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fourth layer has full attention."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            every = keys.size("sliding_window_pattern", default=4)
            layers = range(found["num_hidden_layers"])
            found["layer_types"] = tuple(SLIDING if (i + 1) % every else FULL for i in layers)
        keys.check_layer_types(found)
        if found["sliding_window"] is None:
            raise InputError("is null", where=f"{keys.where}: sliding_window", hint="Give the window's size.")


class Cohere2Attention(CohereAttention):
    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Where the layer has a window."""
        return super().rotate(query, key, position_embeddings) if self.sliding_window is not None else (query, key)


class Cohere2DecoderLayer(CohereDecoderLayer):
    attention_class = Cohere2Attention


class Cohere2Model(CohereModel):
    layer_class = Cohere2DecoderLayer

    def mask_types(self) -> Iterable[str]:
        """Both, whether or not there are layers for them."""
        return (FULL, SLIDING)


class Cohere2ForCausalLM(CohereForCausalLM):
    model_class = Cohere2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Cohere2ForCausalLM(Cohere2Config.read(config, where), dtype)
