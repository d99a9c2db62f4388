"""GPT-NeoX with a score in the place of its head, as Open-Assistant's `reward_model.py` writes it: counted, not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel, LayerCache
from weigh.models.gpt_neox import GPTNeoXConfig, GPTNeoXModel

MODEL_TYPES = ("gpt_neox_reward_model",)


class GPTNeoXRewardModel(CausalModel):
    def __init__(self, config: GPTNeoXConfig, dtype: DType) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoXModel(config, dtype)
        self.out_proj = nn.Linear(config.hidden_size, 1, dtype, bias=True)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Nothing: it reads an answer once."""
        return ()


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GPTNeoXRewardModel(GPTNeoXConfig.read(config, where), dtype)
