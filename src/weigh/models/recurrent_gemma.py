"""RecurrentGemma, as `transformers/models/recurrent_gemma/modeling_recurrent_gemma.py` (5.23) writes it.

Two layers with a linear recurrent unit, then one with a sliding window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import BFLOAT16, FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.cache import label
from weigh.models.common import (
    SLIDING,
    Cache,
    CausalModel,
    RotaryEmbedding,
    attention_interface,
    create_sliding_window_causal_mask,
)
from weigh.models.config import DERIVED, Keys
from weigh.models.gemma import GemmaRMSNorm
from weigh.models.gpt_neox import apply_rotary_pos_emb
from weigh.models.hybrid import LINEAR, HybridConfig, HybridForCausalLM, HybridModel
from weigh.models.layout import State
from weigh.models.llama import LlamaAttention
from weigh.models.mamba import token_count
from weigh.models.recurrent import Conv1d, linear_layer
from weigh.records import dataclass
from weigh.trace.events import RECURRENT_STATE

MODEL_TYPES = ("recurrent_gemma",)


@dataclass(frozen=True)
class RecurrentGemmaConfig(HybridConfig):
    """The settings of `RecurrentGemmaConfig` that shape memory."""

    num_hidden_layers: int = 26
    vocab_size: int = 256000
    hidden_size: int = 2560
    intermediate_size: int = 3 * 2560
    num_attention_heads: int = 10
    lru_width: int = DERIVED
    sliding_window: int = 2048
    conv1d_width: int = 4
    hidden_act: str = "gelu_pytorch_tanh"
    block_types: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    rotary_width: int = DERIVED

    kinds = (SLIDING, LINEAR)
    aliases: ClassVar[Mapping[str, str]] = {
        "attention_window_size": "sliding_window",
        "hidden_activation": "hidden_act",
    }

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolution, a view of one more, and the state, which is kept in fp32."""
        return (
            State("convolution", (self.hidden_size, self.conv1d_width)),
            State("recurrence", (self.lru_width,), FLOAT32),
        )

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The types of the layers come in turn."""
        found["layer_types"] = None
        found["lru_width"] = found["lru_width"] or found["hidden_size"]
        found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=0.5)
        super().settle(keys, found)
        keys.divides("num_attention_heads", found["num_attention_heads"], "lru_width", found["lru_width"])

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        kinds = found["block_types"]
        return LINEAR if kinds[layer_idx % len(kinds)] == "recurrent" else SLIDING


class RecurrentGemmaAttention(LlamaAttention):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.rotary_emb = RotaryEmbedding(config.rotary_width)

    def biases(self, config: Any) -> tuple[bool, bool]:
        """The output always has one."""
        return config.attention_bias, True

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        query_states, key_states, value_states = self.project(hidden_states)
        cos, sin = self.rotary_emb(value_states, positions)
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path, self.sliding_window)
        attention = attention_interface(self.eager)
        dropout = self.attention_dropout if self.training else 0.0
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class RecurrentGemmaRglru(nn.Module):
    def __init__(self, config: RecurrentGemmaConfig, dtype: DType) -> None:
        super().__init__()
        heads = config.num_attention_heads
        width = config.lru_width // heads
        self.recurrent_param = nn.parameter((config.lru_width,), dtype)
        self.input_gate_weight = nn.parameter((heads, width, width), dtype)
        self.input_gate_bias = nn.parameter((heads, width), dtype)
        self.recurrent_gate_weight = nn.parameter((heads, width, width), dtype)
        self.recurrent_gate_bias = nn.parameter((heads, width), dtype)
        self.heads, self.block_width = heads, width
        self.recurrent_states: Tensor | None = None
        """The module keeps the last state, and with it the graph that made it."""

    def forward(self, activations: Tensor, positions: Tensor) -> Tensor:
        batch_size, seq_len, lru_width = activations.shape
        reset = ops.equal_to(positions.unsqueeze(-1))
        reshape_act = activations.reshape(batch_size * seq_len, self.heads, self.block_width)
        reshape_act = reshape_act.permute(1, 0, 2)
        res = ops.baddbmm(self.input_gate_bias.unsqueeze(1), reshape_act, self.input_gate_weight, scaled=False)
        input_gate = ops.sigmoid(res.transpose(0, 1).reshape(batch_size, seq_len, lru_width))
        res = ops.baddbmm(self.recurrent_gate_bias.unsqueeze(1), reshape_act, self.recurrent_gate_weight, scaled=False)
        recurrent_gate = ops.sigmoid(res.transpose(0, 1).reshape(batch_size, seq_len, lru_width))
        log_recurrent_gate = -8.0 * recurrent_gate * ops.softplus(self.recurrent_param)
        recurrent_gate = ops.exp(log_recurrent_gate)
        a_square = ops.exp(2.0 * log_recurrent_gate)
        gated_inputs = activations * input_gate
        multiplier = ops.sqrt_bound_derivative(ops.one_minus(a_square))
        multiplier = reset + ops.bitwise_not(reset) * multiplier
        normalized_x = gated_inputs * multiplier.to(activations.dtype)
        hidden_states, self.recurrent_states = _rnn_scan(normalized_x, recurrent_gate, reset, self.recurrent_states)
        return hidden_states


def _rnn_scan(
    hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token, in fp32."""
    recurrent_gate = recurrent_gate * ops.bitwise_not(reset)
    if hidden_states.shape[1] == 1 and recurrent_states is not None:
        contextualized_states = recurrent_gate.float() * recurrent_states.unsqueeze(1)
        contextualized_states = ops.add_(contextualized_states, hidden_states.float())
        return contextualized_states.to(hidden_states.dtype), ops.select(contextualized_states, 1)
    if hidden_states.shape[1] == 1:
        return hidden_states, ops.select(hidden_states, 1).float()
    if recurrent_states is None:
        recurrent_states = ops.zeros((hidden_states.shape[0], hidden_states.shape[2]), FLOAT32)
    contextualized_states = ops.zeros_as(hidden_states.detach())
    for _ in range(token_count(hidden_states.shape[1])):
        recurrent_states = ops.select(recurrent_gate, 1).float() * recurrent_states
        recurrent_states = recurrent_states + ops.select(hidden_states, 1).float()
        contextualized_states = ops.copy_select(contextualized_states, recurrent_states.to(hidden_states.dtype), 1)
    return contextualized_states, recurrent_states


class RecurrentGemmaRecurrentBlock(nn.Module):
    role = nn.MIXER

    def __init__(self, config: RecurrentGemmaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.lru_width
        self.linear_y = nn.Linear(width, inner, dtype, bias=True)
        self.linear_x = nn.Linear(width, inner, dtype, bias=True)
        self.linear_out = nn.Linear(inner, width, dtype, bias=True)
        self.conv_1d = Conv1d(inner, config.conv1d_width, dtype, bias=True)
        self.rg_lru = RecurrentGemmaRglru(config, dtype)
        self.act_fn = nn.Activation(config.hidden_act)
        self.conv1d_width = config.conv1d_width

    def forward(
        self, input_states: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, None]:
        batch_size, seq_len, _ = input_states.shape
        layer = linear_layer(cache, self.path)
        y_branch = self.linear_y(input_states)
        y_branch = self.act_fn(y_branch)
        x_branch = self.linear_x(input_states)
        x_branch = x_branch.transpose(1, 2)
        weight, bias, kept = self.conv_1d.weight, self.conv_1d.bias, self.conv1d_width - 1
        if layer is None:
            self.rg_lru.recurrent_states = None
            x_branch = ops.conv1d(x_branch, weight, bias, kept).narrow(-1, seq_len)
        else:
            if layer.keys is None:
                shape = (batch_size, input_states.shape[-1], kept)
                layer.keys = label(ops.zeros(shape, input_states.dtype), RECURRENT_STATE)
                layer.values = label(ops.zeros((batch_size, x_branch.shape[1]), FLOAT32), RECURRENT_STATE)
            self.rg_lru.recurrent_states = layer.values
            if seq_len != 1:
                layer.keys = label(ops.pad_dimension(x_branch, -1, kept - seq_len), RECURRENT_STATE)
                x_branch = ops.conv1d(x_branch, weight, bias, kept).narrow(-1, seq_len)
            else:
                conv_state = ops.cat((layer.keys, x_branch), -1)
                x_branch = ops.sum(conv_state * ops.select(weight, 1), (-1,)) + bias  # type: ignore[operator]
                x_branch = x_branch.unsqueeze(-1)
                layer.keys = label(conv_state.narrow(-1, kept, 1), RECURRENT_STATE)
        x_branch = self.rg_lru(x_branch.transpose(1, 2), positions)
        if layer is not None:
            layer.values, self.rg_lru.recurrent_states = self.rg_lru.recurrent_states, None
            if layer.values is not None:
                label(layer.values, RECURRENT_STATE)
        hidden_states = x_branch * y_branch
        hidden_states = self.linear_out(hidden_states)
        return hidden_states, None


class RecurrentGemmaMlp(nn.Module):
    role = nn.MLP

    def __init__(self, config: RecurrentGemmaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size // 2
        self.gate_proj = nn.Linear(width, inner, dtype, bias=True)
        self.up_proj = nn.Linear(width, inner, dtype, bias=True)
        self.down_proj = nn.Linear(inner, width, dtype, bias=True)
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate = self.act_fn(self.gate_proj(hidden_states))
        return self.down_proj(gate * self.up_proj(hidden_states))  # type: ignore[no-any-return]


class RecurrentGemmaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: RecurrentGemmaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.temporal_pre_norm = GemmaRMSNorm(config.hidden_size, dtype)
        if config.layer_types[layer_idx] == LINEAR:
            self.temporal_block: nn.Module = RecurrentGemmaRecurrentBlock(config, dtype)
        else:
            self.temporal_block = RecurrentGemmaAttention(config, dtype, layer_idx)
        self.channel_pre_norm = GemmaRMSNorm(config.hidden_size, dtype)
        self.mlp_block = RecurrentGemmaMlp(config, dtype)

    def forward(
        self,
        activations: Tensor,
        position_embeddings: None,
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        raw_activations = activations
        inputs_normalized = self.temporal_pre_norm(raw_activations)
        hidden_states, _ = self.temporal_block(inputs_normalized, positions, mask, cache)
        residual = hidden_states + raw_activations
        hidden_states = self.channel_pre_norm(residual)
        hidden_states = self.mlp_block(hidden_states)
        hidden_states = hidden_states + residual
        return hidden_states  # type: ignore[no-any-return]


class RecurrentGemmaModel(HybridModel):
    layer_class = RecurrentGemmaDecoderLayer
    norm_class = GemmaRMSNorm
    norm_name = "final_norm"

    def rotary(self, config: Any) -> Any:
        """Every attention has its own."""
        self.normalizer = nn.buffer((), BFLOAT16)

    def causal_mask_mapping(
        self, inputs_embeds: Tensor, cache: Cache | None, positions: Tensor, attention_mask: Tensor | None
    ) -> dict[str, Tensor | None]:
        """One, of windows, for all layers."""
        config: Any = self.config
        window = config.sliding_window
        mask = create_sliding_window_causal_mask(inputs_embeds, cache, positions, attention_mask, window, window)
        return {SLIDING: mask, LINEAR: mask}

    def enter(self, inputs_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled, after the masks are made."""
        return inputs_embeds, inputs_embeds * self.normalizer.to(inputs_embeds.dtype)

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, Any]:
        """None."""
        return {SLIDING: None, LINEAR: None}


class RecurrentGemmaForCausalLM(HybridForCausalLM):
    model_class = RecurrentGemmaModel

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Capped."""
        return ops.tanh(logits / 30.0) * 30.0


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig.read(config, where), dtype)
