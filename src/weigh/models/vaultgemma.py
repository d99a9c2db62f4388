"""VaultGemma, as `transformers/models/vaultgemma/modeling_vaultgemma.py` (5.23) writes it: Gemma 2, fewer norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.gemma import GemmaRMSNorm
from weigh.models.gemma2 import Gemma2Attention, Gemma2Config, Gemma2ForCausalLM, Gemma2Model
from weigh.models.llama import LlamaMLP

MODEL_TYPES = ("vaultgemma",)


class VaultGemmaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Gemma2Attention(config, dtype, layer_idx)
        self.mlp = LlamaMLP(config, dtype)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, dtype)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.pre_feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class VaultGemmaModel(Gemma2Model):
    layer_class = VaultGemmaDecoderLayer


class VaultGemmaForCausalLM(Gemma2ForCausalLM):
    model_class = VaultGemmaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return VaultGemmaForCausalLM(Gemma2Config.read(config, where), dtype)
