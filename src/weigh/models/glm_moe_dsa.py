"""GLM-5, as `transformers/models/glm_moe_dsa/modeling_glm_moe_dsa.py` (5.23) writes it; counted, not run.

DeepSeek-V3.2, where layers may share the indexer of a layer before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v32 import DeepseekV32Config, DeepseekV32ForCausalLM
from weigh.records import dataclass

MODEL_TYPES = ("glm_moe_dsa",)


@dataclass(frozen=True)
class GlmMoeDsaConfig(DeepseekV32Config):
    """The settings of `GlmMoeDsaConfig` that shape memory."""

    vocab_size: int = 154880
    hidden_size: int = 6144
    intermediate_size: int = 12288
    num_hidden_layers: int = 78
    num_attention_heads: int = 64
    num_key_value_heads: int = 64
    q_lora_rank: int = 2048
    v_head_dim: int = 256
    qk_nope_head_dim: int = 192
    n_group: int = 1
    topk_group: int = 1
    index_n_heads: int = 32
    indexer_types: tuple[str, ...] = DERIVED
    index_topk_freq: Count = 1
    index_skip_topk_offset: Count = 2

    @property
    def indexed(self) -> tuple[bool, ...]:
        """Which layers have an indexer of their own."""
        return tuple(name == "full" for name in self.indexer_types)

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Experts and indexers."""
        return list(zip(self.mlp_layer_types, self.indexer_types, strict=True))

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A pattern of letters, or every n-th layer, says who has an indexer."""
        super().settle(keys, found)
        count, pattern = found["num_hidden_layers"], keys.config.get("index_topk_pattern")
        where = f"{keys.where}: indexer_types"
        if found["indexer_types"] is None and pattern is not None:
            found["indexer_types"] = tuple({"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern)
        if found["indexer_types"] is None:
            every, offset = max(found["index_topk_freq"], 1), found["index_skip_topk_offset"]
            found["indexer_types"] = tuple("shared" if max(i - offset + 1, 0) % every else "full" for i in range(count))
        types = found["indexer_types"]
        if len(types) != count or not set(types) <= {"full", "shared"}:
            raise InputError(f"is {types!r}", where=where, hint=f"Give 'full' or 'shared' for each of {count} layers.")


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return DeepseekV32ForCausalLM(GlmMoeDsaConfig.read(config, where), dtype)
