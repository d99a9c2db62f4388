"""CodeGen, as `transformers/models/codegen/modeling_codegen.py` (5.23) writes it: GPT-J with one projection for all.

Shapes: B batch, T length, D hidden size, N heads, H head width, R rotated width, V vocabulary.

Queries, values and keys come interleaved in four groups, for the four TPU cores that it was trained on. The rotation is
in fp32, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Keys
from weigh.models.gptj import (
    GPTJBlock,
    GPTJConfig,
    GPTJForCausalLM,
    GPTJModel,
    apply_rotary_pos_emb,
    rotated_and_rest,
)

MODEL_TYPES = ("codegen",)

MP_NUM = 4
"""Groups in which the fused projection is laid out."""


class CodeGenAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPTJConfig, dtype: DType) -> None:
        super().__init__()
        width = config.n_embd
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.num_attention_heads = config.n_head
        self.head_dim = width // config.n_head
        self.qkv_proj = nn.Linear(width, 3 * width, dtype)
        self.out_proj = nn.Linear(width, width, dtype)
        self.rotary_dim = config.rotary_dim
        self.embed_positions = nn.buffer((config.n_positions, config.rotary_dim), FLOAT32)

    def _split_heads(self, x: Tensor) -> Tensor:
        reshaped = x.reshape(*x.shape[:-1], self.num_attention_heads // MP_NUM, self.head_dim)
        reshaped = reshaped.reshape(*x.shape[:-2], -1, self.head_dim)
        return reshaped

    def _merge_heads(self, tensor: Tensor) -> Tensor:
        tensor = tensor.permute(0, 2, 1, 3).contiguous()
        return tensor.view(*tensor.shape[:-2], self.num_attention_heads * self.head_dim)

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = query.to(FLOAT32)
        key = key.to(FLOAT32)
        attn_weights = query.matmul(key.transpose(-1, -2))
        if mask is not None:
            attn_weights = attn_weights + mask
        attn_weights = attn_weights / 8.0
        attn_weights = ops.softmax(attn_weights)
        attn_weights = attn_weights.to(value.dtype)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = attn_weights.matmul(value)
        return attn_output, attn_weights

    def forward(
        self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states)
        qkv_split = qkv.reshape(*qkv.shape[:-1], MP_NUM, -1)
        local_dim = self.head_dim * self.num_attention_heads // MP_NUM
        query, value, key = qkv_split.split(local_dim, dim=-1)
        query = self._split_heads(query)
        key = self._split_heads(key)
        value = self._split_heads(value)
        value = value.permute(0, 2, 1, 3)
        sincos = ops.index_rows(self.embed_positions, positions)
        sin, cos = sincos.split(self.rotary_dim // 2, dim=-1)
        k_rot, k_pass = rotated_and_rest(key, self.rotary_dim)
        q_rot, q_pass = rotated_and_rest(query, self.rotary_dim)
        k_rot = apply_rotary_pos_emb(k_rot, sin, cos)
        q_rot = apply_rotary_pos_emb(q_rot, sin, cos)
        key = ops.cat([k_rot, k_pass], -1)
        query = ops.cat([q_rot, q_pass], -1)
        key = key.permute(0, 2, 1, 3)
        query = query.permute(0, 2, 1, 3)
        if layer_past is not None:
            key, value = layer_past.update(key.to(hidden_states.dtype), value, self.path)
        attn_output, attn_weights = self._attn(query, key, value, mask)
        attn_output = self._merge_heads(attn_output)
        attn_output = self.out_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class CodeGenBlock(GPTJBlock):
    attention = CodeGenAttention


class CodeGenModel(GPTJModel):
    block = CodeGenBlock


class CodeGenForCausalLM(GPTJForCausalLM):
    transformer_class = CodeGenModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    settings = GPTJConfig.read(config, where)
    Keys(config, where).divides(f"{MP_NUM} groups of heads:", MP_NUM, "n_head", settings.n_head)
    return CodeGenForCausalLM(settings, dtype)
