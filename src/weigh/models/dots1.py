"""dots.llm1, as `transformers/models/dots1/modeling_dots1.py` (5.23) writes it.

DeepSeek-V3's layers around Qwen3's attention. How many experts there are has no default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.qwen3 import Qwen3Attention
from weigh.models.sparse import MoeConfig, check_groups, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("dots1",)


@dataclass(frozen=True)
class Dots1Config(MoeConfig):
    """The settings of `Dots1Config` that shape memory."""

    vocab_size: int = 152064
    hidden_size: int = 4608
    intermediate_size: int = 10944
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 62
    n_shared_experts: int = DERIVED
    n_routed_experts: int = DERIVED
    n_group: int = 1
    topk_group: int = 1
    num_experts_per_tok: int = DERIVED
    first_k_dense_replace: Count = 0
    norm_topk_prob: bool = False
    attention_bias: bool = False
    sliding_window: int | None = 4096
    max_window_layers: Count = 62
    layer_types: tuple[str, ...] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The first layers are dense."""
        return first_dense(self.num_hidden_layers, self.first_k_dense_replace)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The last layers have windows."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            window, first = found["sliding_window"], found["max_window_layers"]
            layers = range(found["num_hidden_layers"])
            found["layer_types"] = tuple(SLIDING if window is not None and i >= first else FULL for i in layers)
        keys.check_layer_types(found)
        if found["n_routed_experts"] is not None:
            check_groups(keys, found)


class Dots1DecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = Qwen3Attention


class Dots1Model(LlamaModel):
    layer_class: ClassVar[type[Any]] = Dots1DecoderLayer


class Dots1ForCausalLM(LlamaForCausalLM):
    model_class = Dots1Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Dots1ForCausalLM(Dots1Config.read(config, where), dtype)
