"""Experts: `transformers/integrations/moe.py` (5.23), which runs them group by group, or each pair on its own.

Groups (`grouped_mm`) are upstream's default; `generate` decodes by pairs (`batched_mm`), each with its own copy of an
expert's weights.

Shapes: S pairs of a token and an expert that it chose, E experts, D hidden size, F the experts' inner size.
"""

from __future__ import annotations

from collections.abc import Callable

from weigh.dtypes import FLOAT32, INT32, INT64, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor

BATCHED = "batched_mm"
LOOPED = "looped"


class GatedMLP(nn.Module):
    """`DeepseekV3MLP` and its copies: dense layers, and experts that every token passes through."""

    role = nn.MLP

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str, dtype: DType, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, dtype, bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, dtype, bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, dtype, bias)
        self.act_fn = nn.Activation(hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        down_proj: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj


class Experts(nn.Module):
    """`MixtralExperts` and its copies: every expert's gated MLP, in two tensors."""

    has_bias = False
    is_transposed = False

    def __init__(
        self,
        num_experts: int,
        num_experts_per_tok: int,
        hidden_dim: int,
        intermediate_dim: int,
        hidden_act: str,
        dtype: DType,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        from fractions import Fraction  # takes 3 ms to import, and attention asks this file for its packing

        self.active_share = Fraction(num_experts_per_tok, num_experts)
        self.gate_up_proj = nn.parameter((num_experts, 2 * intermediate_dim, hidden_dim), dtype)
        self.down_proj = nn.parameter((num_experts, hidden_dim, intermediate_dim), dtype)
        self.gate_up_proj_bias: Tensor | None = None
        self.down_proj_bias: Tensor | None = None
        self.act_fn = nn.Activation(hidden_act)

    def apply_gate(self, gate_up_out: Tensor) -> Tensor:
        """(S, 2F) -> (S, F)."""
        gate, up = gate_up_out.split([gate_up_out.shape[-1] // 2] * 2, -1)
        return self.act_fn(gate) * up  # type: ignore[no-any-return]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, D), the experts of each token and their weights, to (tokens, D)."""
        forms = {BATCHED: self.batched_mm, LOOPED: self.looped}
        experts_forward = forms.get(state.overrides.get("experts", ""), self.grouped_mm)
        return experts_forward(hidden_states, top_k_index, top_k_weights)

    def grouped_mm(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`grouped_mm_experts_forward`."""
        num_top_k = top_k_index.shape[-1]
        num_tokens, hidden_dim = hidden_states.shape
        sample_weights = top_k_weights.reshape(-1)
        expert_ids = top_k_index.reshape(-1)
        expert_ids_g, perm = ops.sort(expert_ids)
        selected_hidden_states_g = ops.index_rows(hidden_states, ops.floor_divide(perm))
        sample_weights_g = ops.index_rows(sample_weights, perm)
        histc_input = expert_ids_g.to(FLOAT32 if state.overrides.get("device") == "cpu" else INT32)
        tokens_per_expert = ops.histc(histc_input, self.num_experts)
        offsets = ops.cumsum(tokens_per_expert)
        if offsets.dtype is not INT32:
            offsets = offsets.to(INT32)
        selected_weights, selected_biases = self.gate_up_proj, None
        if self.gate_up_proj_bias is not None:
            selected_biases = ops.index_rows(self.gate_up_proj_bias, expert_ids_g)
        proj_out = _grouped_linear(
            selected_hidden_states_g, selected_weights, offsets, selected_biases, self.is_transposed
        )
        proj_out = self.apply_gate(proj_out)
        selected_weights = self.down_proj
        if self.down_proj_bias is not None:
            selected_biases = ops.index_rows(self.down_proj_bias, expert_ids_g)
        proj_out = _grouped_linear(proj_out, selected_weights, offsets, selected_biases, self.is_transposed)
        weighted_out = proj_out * sample_weights_g.unsqueeze(-1)
        inv_perm = ops.empty_like(perm)
        ops.index_put_(inv_perm, perm, ops.arange(perm.shape[0]))
        weighted_out = ops.index_rows(weighted_out, inv_perm)
        final_hidden_states = ops.sum(weighted_out.view(num_tokens, num_top_k, hidden_dim), (1,))
        return final_hidden_states.to(hidden_states.dtype)

    def looped(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The loop of transformers 4's sparse blocks, for frozen experts, which get even shares of the tokens.

        Raises:
            NotModelledError: the experts are trained, and were parameters of their own then.
        """
        if self.gate_up_proj.requires_grad:
            raise NotModelledError("trained experts that are run one by one", where="looped_experts")
        inner = self.down_proj.shape[-1]

        def expert(_: int, current_state: Tensor) -> Tensor:
            gate_up, w2 = self.gate_up_proj.narrow(0, 1).squeeze(0), self.down_proj.narrow(0, 1).squeeze(0)
            w1, w3 = gate_up.narrow(0, inner), gate_up.narrow(0, inner)
            return ops.linear(self.act_fn(ops.linear(current_state, w1)) * ops.linear(current_state, w3), w2)

        return one_by_one(expert, self.num_experts, hidden_states, top_k_index, top_k_weights)

    def batched_mm(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`batched_mm_experts_forward`."""
        num_top_k = top_k_index.shape[-1]
        num_tokens, hidden_dim = hidden_states.shape
        assert isinstance(num_top_k, int)
        selected_hidden_states = ops.repeat_interleave(hidden_states, num_top_k)
        sample_weights = top_k_weights.reshape(-1)
        expert_ids = top_k_index.reshape(-1)
        selected_weights = ops.index_rows(self.gate_up_proj, expert_ids)
        selected_biases = None
        if self.gate_up_proj_bias is not None:
            selected_biases = ops.index_rows(self.gate_up_proj_bias, expert_ids)
        proj_out = _batched_linear(selected_hidden_states, selected_weights, selected_biases, self.is_transposed)
        proj_out = self.apply_gate(proj_out)
        selected_weights = ops.index_rows(self.down_proj, expert_ids)
        if self.down_proj_bias is not None:
            selected_biases = ops.index_rows(self.down_proj_bias, expert_ids)
        proj_out = _batched_linear(proj_out, selected_weights, selected_biases, self.is_transposed)
        weighted_out = proj_out * sample_weights.unsqueeze(-1)
        final_hidden_states = ops.sum(weighted_out.view(num_tokens, num_top_k, hidden_dim), (1,))
        return final_hidden_states.to(hidden_states.dtype)


def one_by_one(
    expert: Callable[[int, Tensor], Tensor],
    num_experts: int,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The loop of transformers 4's `MixtralSparseMoeBlock` over experts that get even shares of the tokens."""
    num_tokens, hidden_dim = hidden_states.shape
    num_top_k = top_k_index.shape[-1]
    routing_weights = top_k_weights.to(hidden_states.dtype)
    final_hidden_states = ops.zeros((num_tokens, hidden_dim), hidden_states.dtype)
    expert_mask = ops.zeros((num_tokens, num_top_k, num_experts), INT64)
    share = num_tokens * num_top_k // num_experts
    for number in range(num_experts):
        found = ops.nonzero(expert_mask.narrow(-1, 1).squeeze(-1), share)
        top_x = found.narrow(0, 1).squeeze(0)
        current_state = ops.index_rows(hidden_states, top_x)
        current_hidden_states = expert(number, current_state) * ops.index_rows(routing_weights.view(-1, 1), top_x)
        final_hidden_states = ops.index_add_(final_hidden_states, top_x, current_hidden_states)
    return final_hidden_states


def _batched_linear(input: Tensor, weight: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
    if is_transposed:
        out = ops.bmm(input.unsqueeze(1), weight).squeeze(1)
    else:
        out = ops.bmm(weight, input.unsqueeze(-1)).squeeze(-1)
    return out if bias is None else ops.add_(out, bias)


def _grouped_linear(input: Tensor, weight: Tensor, offs: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
    out = ops.grouped_mm(input.to(weight.dtype), weight if is_transposed else weight.transpose(-2, -1), offs)
    return out if bias is None else ops.add_(out, bias)
