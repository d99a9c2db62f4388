"""Gemma 2, as `transformers/models/gemma2/modeling_gemma2.py` (5.23) writes it.

Gemma with norms around attention and MLP, every other layer with a sliding window, and scores and logits that are
softly capped, which sdpa cannot do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, SLIDING, Cache, CausalModel, repeat_kv
from weigh.models.config import DERIVED, Keys
from weigh.models.gemma import GemmaConfig, GemmaDecoderLayer, GemmaModel, GemmaRMSNorm
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("gemma2",)


@dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """The settings of `Gemma2Config` that shape memory."""

    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] = DERIVED
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0

    heads_divide_width = True

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer of two has a window."""
        found["hidden_act"] = keys.word("hidden_activation", default="gelu_pytorch_tanh")
        super().settle(keys, found)
        every = cls.sliding_window_pattern(keys)
        if found["layer_types"] is None:
            found["layer_types"] = tuple(
                SLIDING if (i + 1) % every else FULL for i in range(found["num_hidden_layers"])
            )
        keys.check_layer_types(found)
        if found["sliding_window"] is None:
            where = f"{keys.where}: sliding_window"
            raise InputError("is null", where=where, hint="Give the window's size.")

    @classmethod
    def sliding_window_pattern(cls, _keys: Keys) -> int:
        """One layer of how many has full attention."""
        return 2


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    groups: int,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`eager_attention_forward`: Llama's, with a cap on the scores."""
    key_states = repeat_kv(key, groups)
    value_states = repeat_kv(value, groups)
    attn_weights = query.matmul(key_states.transpose(2, 3)) * 0.125
    if softcap is not None:
        attn_weights = attn_weights / softcap
        attn_weights = ops.tanh(attn_weights)
        attn_weights = attn_weights * softcap
    if mask is not None:
        attn_weights = attn_weights + mask
    attn_weights = ops.softmax(attn_weights, dtype=FLOAT32).to(query.dtype)
    attn_weights = ops.dropout(attn_weights, dropout, True)
    attn_output = attn_weights.matmul(value_states)
    attn_output = attn_output.transpose(1, 2).contiguous()
    return attn_output, attn_weights


class Gemma2Attention(LlamaAttention):
    def __init__(self, config: Gemma2Config, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.eager = partial(eager_attention, softcap=config.attn_logit_softcapping)


class Gemma2DecoderLayer(GemmaDecoderLayer):
    attention_class: ClassVar[type[Any]] = Gemma2Attention

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, dtype)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, dtype)

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
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.pre_feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_feedforward_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class Gemma2Model(GemmaModel):
    layer_class: ClassVar[type[Any]] = Gemma2DecoderLayer

    def mask_types(self) -> Iterable[str]:
        """Both, whether or not there are layers for them."""
        return (FULL, SLIDING)


class Gemma2ForCausalLM(LlamaForCausalLM):
    model_class: ClassVar[type[LlamaModel]] = Gemma2Model

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.final_logit_softcapping = config.final_logit_softcapping

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Capped."""
        if self.final_logit_softcapping is not None:
            logits = logits / self.final_logit_softcapping
            logits = ops.tanh(logits)
            logits = logits * self.final_logit_softcapping
        return logits


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Gemma2ForCausalLM(Gemma2Config.read(config, where), dtype)
