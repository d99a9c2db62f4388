"""Mamba, as `transformers/models/mamba/modeling_mamba.py` (5.23) writes it, on its slow path.

Shapes: B batch, T length, D hidden size, I intermediate size, N state size, R time step rank, V vocabulary.

The slow path runs where `mamba_ssm` and `causal_conv1d` are not installed: a loop over the length, four ops a token,
each of which keeps what its gradient needs. So does this model, token by token, and takes as long: a prediction for
thousands of tokens runs tens of thousands of ops in every block. Left out: what the fused kernels of those packages
would save and allocate, `mambapy`, `torch.compile`, padding.
"""

# ruff: noqa: N803  the equations' names

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from weigh.dims import Size, bounds
from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    causal_lm_loss,
    slice_logits_to_keep,
)
from weigh.models.config import DERIVED, Keys
from weigh.models.layout import State
from weigh.models.recurrent import (
    Conv1d,
    apply_mask_to_padding_states,
    causal_conv1d_fn,
    causal_conv1d_update,
    linear_layer,
    update_conv_state,
    update_recurrent_state,
)
from weigh.records import dataclass

MODEL_TYPES = ("mamba",)


@dataclass(frozen=True)
class MambaConfig:
    """The settings of `MambaConfig` that shape memory."""

    vocab_size: int = 50280
    hidden_size: int = 768
    state_size: int = 16
    num_hidden_layers: int = 32
    expand: int = 2
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    residual_in_fp32: bool = True
    time_step_rank: int = DERIVED
    tie_word_embeddings: bool = True

    @property
    def intermediate_size(self) -> int:
        """The width of a mixer."""
        return self.expand * self.hidden_size

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys({k: v for k, v in config.items() if (k, v) != ("time_step_rank", "auto")}, where)
        found = keys.fields(cls)
        cls.settle(keys, found)
        return keys.make(cls, found)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """What upstream's `__post_init__` works out, for values `found`."""
        found["time_step_rank"] = found["time_step_rank"] or math.ceil(found["hidden_size"] / 16)
        nn.activation(found["hidden_act"])
        for name in ("use_mambapy", "use_falcon_mambapy"):
            keys.cannot_run(name, "the scan of the package mambapy")


def mamba_states(inner: int, kernel: int, state_size: int) -> tuple[State, ...]:
    """The last inputs of the convolution, and the state of the recurrence, which is computed in fp32."""
    return State("convolution", (inner, kernel)), State("recurrence", (inner, state_size), FLOAT32)


def mamba_selective_state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
) -> Tensor:
    """One token: (B, I) and the state (B, I, N), which is written in place."""
    input_dtype = hidden_states.dtype
    dt = dt + dt_bias.to(dt.dtype)
    dt = ops.softplus(dt)
    dA = ops.exp(dt.float().unsqueeze(-1) * A.float())
    dB = dt.float().unsqueeze(-1) * B.float().unsqueeze(1)
    dBx = dB * hidden_states.float().unsqueeze(-1)
    ssm_state = state.float() * dA + dBx
    ssm_state.to(state.dtype)
    out = ssm_state.to(C.dtype).matmul(C.unsqueeze(-1)).squeeze(-1)
    out = out + hidden_states * D
    out = out * ops.silu(z)
    return out.to(input_dtype)


def mamba_selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    return_last_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence, token by token: (B, I, T), and the last state."""
    batch_size, intermediate_size, seq_len = hidden_states.shape
    input_dtype = hidden_states.dtype
    dt = dt + delta_bias.to(dt.dtype).unsqueeze(-1)
    dt = ops.softplus(dt)
    B = B.transpose(1, 2)
    C = C.transpose(1, 2)
    discrete_A = ops.exp(A.unsqueeze(0).unsqueeze(2) * dt.unsqueeze(3))
    discrete_B = dt.unsqueeze(3) * B.unsqueeze(1).float()
    deltaB_u = discrete_B * hidden_states.unsqueeze(3).float()
    ssm_state = ops.zeros((batch_size, intermediate_size, A.shape[-1]), input_dtype)
    scan_outputs = []
    for _ in range(token_count(seq_len)):
        ssm_state = ops.select(discrete_A, 2) * ssm_state + ops.select(deltaB_u, 2)
        scan_output = ssm_state.to(input_dtype).matmul(ops.select(C, 1).unsqueeze(-1))
        scan_outputs.append(ops.select(scan_output, 2))
    scan_output = ops.stack_last(scan_outputs)
    scan_output = scan_output + hidden_states * D.unsqueeze(0).unsqueeze(2)
    scan_output = scan_output * ops.silu(z)
    return scan_output, ssm_state if return_last_state else None


def token_count(length: Size) -> int:
    """How often the loop runs. Lengths that are many numbers are halved by questions until each run has one."""
    low, high = bounds(length)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if length <= middle else (middle + 1, high)
    return low


class MambaMixer(nn.Module):
    role = nn.MIXER
    tries_inner: ClassVar[bool] = True
    """In training, upstream calls `mamba_inner_fn`, which does nothing here but cost its arguments."""

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.ssm_state_size, self.conv_kernel_size = config.state_size, config.conv_kernel
        self.time_step_rank, self.use_bias = config.time_step_rank, config.use_bias
        self.conv1d = Conv1d(inner, config.conv_kernel, dtype, config.use_conv_bias)
        self.act = nn.Activation(config.hidden_act)
        self.in_proj = nn.Linear(config.hidden_size, inner * 2, dtype, config.use_bias)
        self.x_proj = nn.Linear(inner, self.time_step_rank + self.ssm_state_size * 2, dtype)
        self.dt_proj = nn.Linear(self.time_step_rank, inner, dtype, bias=True)
        self.A_log = nn.parameter((inner, self.ssm_state_size), dtype)
        self.D = nn.parameter((inner,), dtype)
        self.out_proj = nn.Linear(inner, config.hidden_size, dtype, config.use_bias)

    def normalise(self, time_step: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a family does to the projections before the scan."""
        return time_step, B, C

    def forward(self, hidden_states: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        seq_len = hidden_states.shape[1]
        dtype = hidden_states.dtype
        layer = linear_layer(cache, self.path)
        conv_state = recurrent_state = None
        if layer is not None and layer.has_previous_state:
            conv_state, recurrent_state = layer.keys, layer.values
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        projected_states = self.in_proj(hidden_states).transpose(1, 2)
        A = -ops.exp(self.A_log.float())
        dt_bias = self.dt_proj.bias
        assert dt_bias is not None
        if self.tries_inner and self.training and cache is None:
            arguments = [self.out_proj.bias.float()] if self.out_proj.bias is not None else []
            arguments += [self.D.float(), dt_bias.float()]
            del arguments
        hidden_states_B_C, gate = projected_states.split([projected_states.shape[1] // 2] * 2, dim=1)
        conv_weight = self.conv1d.weight
        if conv_state is not None and seq_len == 1:
            hidden_states_B_C = causal_conv1d_update(
                hidden_states_B_C, conv_state, conv_weight.squeeze(1), self.conv1d.bias, self.act
            )
        else:
            if layer is not None:
                hidden_states_B_C = update_conv_state(layer, hidden_states_B_C, self.conv_kernel_size)
            hidden_states_B_C = causal_conv1d_fn(hidden_states_B_C, conv_weight.squeeze(1), self.conv1d.bias, self.act)
            if layer is not None:
                hidden_states_B_C = hidden_states_B_C.narrow(-1, seq_len)
        hidden_states_B_C = apply_mask_to_padding_states(hidden_states_B_C.transpose(1, 2), attention_mask)
        time_step, B, C = self.x_proj(hidden_states_B_C).split(
            [self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1
        )
        time_step, B, C = self.normalise(time_step, B, C)
        time_step = self.dt_proj.weight.matmul(time_step.transpose(1, 2))
        time_proj_bias = dt_bias.float()
        if recurrent_state is not None and seq_len == 1:
            scan_output = mamba_selective_state_update(
                recurrent_state,
                ops.select(hidden_states_B_C.transpose(1, 2), -1),
                ops.select(time_step, -1),
                A,
                ops.select(B, 1),
                ops.select(C, 1),
                self.D,
                ops.select(gate, -1),
                time_proj_bias,
            ).unsqueeze(-1)
        else:
            scan_result = mamba_selective_scan(
                hidden_states_B_C.transpose(1, 2),
                time_step,
                A,
                B.transpose(1, 2),
                C.transpose(1, 2),
                self.D.float(),
                gate,
                time_proj_bias,
                layer is not None,
            )
            scan_output, final_state = scan_result
            if layer is not None and final_state is not None:
                update_recurrent_state(layer, final_state)
        contextualized_states: Tensor = self.out_proj(scan_output.transpose(1, 2).to(dtype))
        return contextualized_states


class MambaBlock(nn.Module):
    role = nn.BLOCK
    mixer_class: ClassVar[type[Any]] = MambaMixer

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = nn.RMSNorm(config.hidden_size, dtype)
        self.mixer = self.mixer_class(config, dtype)

    def forward(self, hidden_states: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        residual = hidden_states
        hidden_states = self.norm(hidden_states.to(self.norm.weight.dtype))
        if self.residual_in_fp32:
            residual = residual.to(FLOAT32)
        hidden_states = self.mixer(hidden_states, cache, attention_mask)
        hidden_states = residual + hidden_states
        return hidden_states


class MambaModel(nn.Module):
    block_class: ClassVar[type[Any]] = MambaBlock

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.Stack(
            "backbone.layers", config.num_hidden_layers, lambda _layer_idx: self.block_class(config, dtype)
        )
        self.norm_f = nn.RMSNorm(config.hidden_size, dtype)

    def mask(self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor | None:
        """What the mixers see of a padding mask: all of it, until the first token is generated."""
        if attention_mask is None or (cache is not None and cache.layers):
            return None
        return attention_mask

    def forward(self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        inputs_embeds = self.embeddings(input_ids)
        attention_mask = self.mask(inputs_embeds, attention_mask, cache)
        hidden_states = inputs_embeds
        for mixer_block in self.layers:
            hidden_states = mixer_block(hidden_states, cache, attention_mask)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.norm_f(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class MambaForCausalLM(CausalModel):
    model_class: ClassVar[type[MambaModel]] = MambaModel
    takes_positions = False

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.cache_layers = config.num_hidden_layers
        self.backbone = self.model_class(config, dtype)
        tied = self.backbone.embeddings if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied, config.hidden_size, config.vocab_size, dtype)

    @property
    def states(self) -> tuple[State, ...]:
        """What a layer keeps."""
        return mamba_states(self.config.intermediate_size, self.config.conv_kernel, self.config.state_size)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return (LayerCache(layout.RECURRENT, states=self.states),) * self.config.num_hidden_layers  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        mamba_outputs = self.backbone(input_ids, cache, attention_mask)
        hidden_states = mamba_outputs
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states.to(self.lm_head.weight.dtype)).float()
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MambaForCausalLM(MambaConfig.read(config, where), dtype)
