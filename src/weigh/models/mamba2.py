"""Mamba 2, as `transformers/models/mamba2/modeling_mamba2.py` (5.23) writes it, on its slow path.

Shapes: B batch, T length, D hidden size, I intermediate size, H heads, P head width, G groups, N state size, V
vocabulary. Within the scan, as upstream's einsums have it: b batch, c chunk, l and s places within a chunk, h head, p
head width, n state.

The slow path runs where `mamba_ssm` and `causal_conv1d` are not installed: chunks of the sequence against each other,
as attention does it, every score of every head in fp32.
"""

# ruff: noqa: N803  the equations' names

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dims import Size
from weigh.dtypes import BOOL, FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Keys
from weigh.models.layout import State
from weigh.models.mamba import MambaBlock, MambaForCausalLM, MambaModel
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

MODEL_TYPES = ("mamba2",)


@dataclass(frozen=True)
class Mamba2Sizes:
    """The sizes of a mixer, which every family calls by its own names."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    n_groups: int
    state_size: int
    conv_kernel: int
    chunk_size: int
    use_bias: bool
    out_bias: bool
    use_conv_bias: bool
    hidden_act: str

    @property
    def conv_dim(self) -> int:
        """The channels of the convolution: the inputs, and every group's B and C."""
        return self.intermediate_size + 2 * self.n_groups * self.state_size

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolution, and the state of the recurrence."""
        return (
            State("convolution", (self.conv_dim, self.conv_kernel)),
            State("recurrence", (self.num_heads, self.head_dim, self.state_size), FLOAT32),
        )

    def check(self, keys: Keys) -> None:
        """Raises `InputError` where the heads do not make up the width, or the groups do not divide them."""
        if self.intermediate_size != self.num_heads * self.head_dim:
            raise InputError(
                f"{self.num_heads} heads of {self.head_dim} are not {self.intermediate_size} wide",
                where=f"{keys.where}: the heads of the mixers",
                hint="Change their number, their width, or the width of the mixer.",
            )
        keys.divides("the number of groups", self.n_groups, "the heads of the mixers", self.num_heads)


@dataclass(frozen=True)
class Mamba2Config:
    """The settings of `Mamba2Config` that shape memory."""

    num_heads: int = 128
    head_dim: int = 64
    vocab_size: int = 32768
    hidden_size: int = 4096
    state_size: int = 128
    num_hidden_layers: int = 64
    expand: int = 2
    conv_kernel: int = 4
    n_groups: int = 8
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    residual_in_fp32: bool = True
    chunk_size: int = 256
    tie_word_embeddings: bool = False

    @property
    def intermediate_size(self) -> int:
        """The width of a mixer."""
        return self.expand * self.hidden_size

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        found = keys.fields(cls)
        made = keys.make(cls, found)
        nn.activation(made.hidden_act)
        made.mixer.check(keys)
        return made

    @property
    def mixer(self) -> Mamba2Sizes:
        """The sizes of a mixer."""
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            n_groups=self.n_groups,
            state_size=self.state_size,
            conv_kernel=self.conv_kernel,
            chunk_size=self.chunk_size,
            use_bias=self.use_bias,
            out_bias=self.use_bias,
            use_conv_bias=self.use_conv_bias,
            hidden_act=self.hidden_act,
        )


def pad_tensor_by_size(input_tensor: Tensor, pad_size: Size) -> Tensor:
    """Zeros behind the last token."""
    return ops.pad_dimension(input_tensor, 1, pad_size)


def reshape_into_chunks(input_tensor: Tensor, pad_size: Size, chunk_size: int) -> Tensor:
    """(B, T, ...) to (B, chunks, chunk size, ...)."""
    input_tensor = pad_tensor_by_size(input_tensor, pad_size)
    return input_tensor.reshape(input_tensor.shape[0], -1, chunk_size, *input_tensor.shape[2:])


def segment_sum(input_tensor: Tensor) -> Tensor:
    """The sums of every stretch that ends where the row says: (..., l) to (..., l, l)."""
    chunk_size = input_tensor.shape[-1]
    input_tensor = input_tensor.unsqueeze(-1).expand(*input_tensor.shape, chunk_size)
    mask = ops.tril(ops.ones((chunk_size, chunk_size), BOOL))
    input_tensor = ops.masked_fill_value(input_tensor, ops.logical_not(mask))
    tensor_segsum = ops.running_sum(input_tensor, -2)
    mask = ops.tril(ops.ones((chunk_size, chunk_size), BOOL))
    tensor_segsum = ops.masked_fill_value(tensor_segsum, ops.logical_not(mask))
    return tensor_segsum


class MambaRMSNormGated(nn.Module):
    role = nn.NORM

    def __init__(self, width: int, groups: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)
        self.groups = groups

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        hidden_states = hidden_states * ops.silu(gate.to(FLOAT32))
        *prefix_dims, last_dim = hidden_states.shape
        hidden_states_group = hidden_states.view(*prefix_dims, self.groups, last_dim // self.groups)
        variance = hidden_states_group.pow(2).mean(-1, keepdim=True)
        hidden_states_group = hidden_states_group * ops.rsqrt(variance + 1e-6)
        hidden_states = hidden_states_group.view(*prefix_dims, last_dim)
        return self.weight * hidden_states.to(input_dtype)


def mamba2_selective_state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z: Tensor | None = None,
) -> Tensor:
    """One token: (B, H, P) and the state (B, H, P, N), which is written in place."""
    batch_size, num_heads, head_dim = hidden_states.shape
    num_groups, state_size = B.shape[1], B.shape[-1]
    dt = dt + dt_bias.to(dt.dtype)
    dt = ops.softplus(dt)
    dt = dt.unsqueeze(-1)
    dA = ops.exp(dt.float() * A.float())
    B = B.reshape(batch_size, num_groups, 1, state_size)
    B = B.expand(batch_size, num_groups, num_heads // num_groups, state_size).contiguous()
    B = B.reshape(batch_size, num_heads, 1, state_size)
    dB = dt * B
    dBx = dB * hidden_states.unsqueeze(-1)
    ssm_states = state * dA + dBx
    ssm_states.to(state.dtype)
    C = C.reshape(batch_size, num_groups, 1, state_size)
    C = C.expand(batch_size, num_groups, num_heads // num_groups, state_size).contiguous()
    C = C.reshape(batch_size, num_heads, state_size)
    ssm_states = ssm_states.to(C.dtype)
    ssm_states_reshaped = ssm_states.view(batch_size * num_heads, head_dim, state_size)
    C_reshaped = C.view(batch_size * num_heads, state_size, 1)
    out = ops.bmm(ssm_states_reshaped, C_reshaped)
    out = out.view(batch_size, num_heads, head_dim)
    out = (out + hidden_states * D).to(out.dtype)
    if z is not None:
        out = out * ops.silu(z)
    return out.to(hidden_states.dtype)


def mamba2_chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor,
    dt_bias: Tensor,
    initial_states: Tensor | None,
    return_final_states: bool,
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence in chunks: (B, T, H, P), and the last state (B, H, P, N)."""
    batch_size, sequence_length, num_heads, head_dim = hidden_states.shape
    repeats = num_heads // B.shape[2]
    assert isinstance(repeats, int)
    dt = dt + dt_bias.to(dt.dtype)
    dt = ops.softplus(dt)
    dt = ops.clamp_range(dt)
    hidden_states = hidden_states.float()
    B = ops.repeat_along(B.float(), 2, repeats)
    C = ops.repeat_along(C.float(), 2, repeats)
    pad_size = (chunk_size - sequence_length % chunk_size) % chunk_size
    D_residual = D.unsqueeze(-1) * pad_tensor_by_size(hidden_states, pad_size)
    hidden_states = hidden_states * dt.unsqueeze(-1).float()
    A = A.to(hidden_states.dtype) * dt.float()
    hidden_states, A, B, C = [reshape_into_chunks(tensor, pad_size, chunk_size) for tensor in (hidden_states, A, B, C)]
    A = A.permute(0, 3, 1, 2)
    A_cumsum = ops.running_sum(A, -1)
    L = ops.exp(segment_sum(A))
    G = ops.einsum("bclhn,bcshn->bclsh", C, B)
    M = G * L.permute(0, 2, 3, 4, 1)
    Y_diag = ops.einsum("bclsh,bcshp->bclhp", M, hidden_states)
    decay_states = ops.exp(A_cumsum.narrow(-1, 1) - A_cumsum)
    B_decay = B * decay_states.permute(0, 2, 3, 1).unsqueeze(-1)
    states = ops.einsum("bclhn,bclhp->bchpn", B_decay, hidden_states)
    if initial_states is not None:
        previous_states = initial_states.unsqueeze(1).to(states.dtype)
    else:
        previous_states = ops.zeros_as(states.narrow(1, 1).detach())
    states = ops.cat([previous_states, states], 1)
    decay_chunk = ops.exp(segment_sum(ops.pad_dimension(ops.select(A_cumsum, -1), -1, 1))).transpose(1, 3)
    new_states = ops.einsum("bzch,bzhpn->bchpn", decay_chunk, states)
    states, final_state = new_states.narrow(1, new_states.shape[1] - 1), ops.select(new_states, 1)
    state_decay_out = ops.exp(A_cumsum)
    C_times_states = ops.einsum("bclhn,bchpn->bclhp", C, states)
    Y_off = C_times_states * state_decay_out.permute(0, 2, 3, 1).unsqueeze(-1)
    output = (Y_diag + Y_off).contiguous()
    output = output.reshape(batch_size, -1, num_heads, head_dim)
    output = output + D_residual
    if pad_size > 0:
        output = output.narrow(1, sequence_length)
    return output, final_state if return_final_states else None


class Mamba2Mixer(nn.Module):
    role = nn.MIXER
    gates_state_update = False
    """The gate is applied with the last token's update, and not after it."""

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        sizes: Mamba2Sizes = config.mixer
        inner = self.intermediate_size = sizes.intermediate_size
        self.num_heads, self.head_dim, self.n_groups = sizes.num_heads, sizes.head_dim, sizes.n_groups
        self.ssm_state_size, self.conv_kernel_size = sizes.state_size, sizes.conv_kernel
        self.chunk_size, self.conv_dim = sizes.chunk_size, sizes.conv_dim
        self.conv1d = Conv1d(self.conv_dim, sizes.conv_kernel, dtype, sizes.use_conv_bias)
        self.act = nn.Activation(sizes.hidden_act)
        projection_size = inner + self.conv_dim + self.num_heads
        self.in_proj = nn.Linear(sizes.hidden_size, projection_size, dtype, sizes.use_bias)
        self.dt_bias = nn.parameter((self.num_heads,), dtype)
        self.A_log = nn.parameter((self.num_heads,), dtype)
        self.add_norm(config, dtype)
        self.D = nn.parameter((self.num_heads,), dtype)
        self.out_proj = nn.Linear(inner, sizes.hidden_size, dtype, sizes.out_bias)

    def add_norm(self, config: Any, dtype: DType) -> None:
        """The norm of the output, if the family has one."""
        self.norm: nn.Module = MambaRMSNormGated(self.intermediate_size, self.n_groups, dtype)

    def project(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) to gates, inputs and time steps."""
        return self.in_proj(hidden_states)  # type: ignore[no-any-return]

    def gate_output(self, scan_output: Tensor, gate: Tensor) -> Tensor:
        """What comes between the scan and the last projection."""
        return self.norm(scan_output, gate)  # type: ignore[no-any-return]

    def forward(self, hidden_states: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        batch_size, seq_len, _ = hidden_states.shape
        dtype = hidden_states.dtype
        layer = linear_layer(cache, self.path)
        conv_state = recurrent_state = None
        if layer is not None and layer.has_previous_state:
            conv_state, recurrent_state = layer.keys, layer.values
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        projected_states = self.project(hidden_states)
        A = -ops.exp(self.A_log.float())
        if self.training and cache is None:  # an argument of `mamba2_split_conv1d_scan_combined`, which does nothing
            self.conv1d.weight.squeeze(1)
        gate, hidden_states_B_C, dt = projected_states.split(
            [self.intermediate_size, self.conv_dim, self.num_heads], dim=-1
        )
        hidden_states_B_C = hidden_states_B_C.transpose(1, 2)
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
        group_size = self.n_groups * self.ssm_state_size
        hidden_states, B, C = hidden_states_B_C.split([self.intermediate_size, group_size, group_size], dim=-1)
        if recurrent_state is not None and seq_len == 1:
            hidden_states = hidden_states.view(batch_size, self.num_heads, self.head_dim)
            dt = dt.transpose(1, 2).expand(batch_size, self.num_heads, self.head_dim)
            A = A.unsqueeze(1).unsqueeze(2).expand(self.num_heads, self.head_dim, self.ssm_state_size)
            B = B.view(batch_size, self.n_groups, self.ssm_state_size)
            C = C.view(batch_size, self.n_groups, self.ssm_state_size)
            D = self.D.unsqueeze(1).expand(self.num_heads, self.head_dim)
            dt_bias = self.dt_bias.unsqueeze(1).expand(self.num_heads, self.head_dim)
            z = gate.view(batch_size, self.num_heads, self.head_dim) if self.gates_state_update else None
            scan_output = mamba2_selective_state_update(recurrent_state, hidden_states, dt, A, B, C, D, dt_bias, z)
            del z
            scan_output = scan_output.view(batch_size, 1, -1)
            if self.gates_state_update:
                return self.out_proj(scan_output.to(dtype))  # type: ignore[no-any-return]
        else:
            scan_result = mamba2_chunk_scan(
                hidden_states.view(batch_size, seq_len, self.num_heads, self.head_dim),
                dt,
                A,
                B.view(batch_size, seq_len, self.n_groups, self.ssm_state_size),
                C.view(batch_size, seq_len, self.n_groups, self.ssm_state_size),
                self.chunk_size,
                self.D,
                self.dt_bias,
                recurrent_state,
                layer is not None,
            )
            scan_output, final_state = scan_result
            if layer is not None and final_state is not None:
                update_recurrent_state(layer, final_state)
            scan_output = scan_output.reshape(batch_size, seq_len, -1)
        scan_output = self.gate_output(scan_output, gate)
        contextualized_states: Tensor = self.out_proj(scan_output.to(dtype))
        return contextualized_states


class Mamba2Block(MambaBlock):
    mixer_class = Mamba2Mixer


class Mamba2Model(MambaModel):
    block_class = Mamba2Block

    def mask(self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor | None:
        """`create_recurrent_attention_mask`: none, for nothing is padded, which it has to look at."""
        if attention_mask is not None and inputs_embeds.shape[1] != 1:
            ops.any_(ops.equal_to(attention_mask))
        return None


class Mamba2ForCausalLM(MambaForCausalLM):
    model_class = Mamba2Model

    @property
    def states(self) -> tuple[State, ...]:
        """What a layer keeps."""
        return self.config.mixer.states  # type: ignore[no-any-return]


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Mamba2ForCausalLM(Mamba2Config.read(config, where), dtype)
