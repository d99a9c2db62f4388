"""Megatron Core's mixture of experts: router, ways to the ranks that have the experts, experts.

Mirrors `transformer/moe/` (Megatron Core 0.17).
"""

from __future__ import annotations

from functools import partial

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import apply
from weigh.ghost.tensor import Tensor
from weigh.runtimes.mcore import rows
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.runtimes.mcore.fp8 import Fp8Linear, Weight
from weigh.runtimes.mcore.layers import MLP, ExpertLinear, Norm, Setup, activated, weight_of
from weigh.runtimes.mcore.recompute import WithoutOutput
from weigh.techniques.checkpointing import reentrant_checkpoint


class TEGroupedMLP(nn.Module):
    """This rank's experts; their weights are parameters each, of which one tensor here stands for all of a kind."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        local = config.num_moe_experts // setup.expert
        width = config.moe_ffn_hidden_size // setup.expert_tensor
        outputs = width * (2 if config.gated_linear_unit else 1)
        fp8 = setup.fp8
        self.weight1 = weight_of((local, outputs, config.hidden_size), dtype, fp8)
        self.weight2 = weight_of((local, config.hidden_size, width), dtype, fp8)
        self.fp8_weights = None if fp8 is None else (Weight(fp8), Weight(fp8))

    def forward(self, tokens: Tensor, probs: Tensor) -> Tensor:
        if self.fp8_weights is not None:
            return self._in_fp8(tokens, probs, *self.fp8_weights)
        linear = partial(apply, rows.GroupedLinear, fused=self.setup.fused_wgrad, scratch=self.setup.scratch)
        part = WithoutOutput(self._activated) if "moe_act" in self.setup.recompute else None
        x = (self._activated if part is None else part)(linear(tokens, self.weight1), probs)
        out: Tensor = linear(x, self.weight2)
        return out if part is None else part.drop(out)

    def _activated(self, x: Tensor, probs: Tensor) -> Tensor:
        return activated(x, None, probs, self.config, self.setup)

    def _in_fp8(self, tokens: Tensor, probs: Tensor, held1: Weight, held2: Weight) -> Tensor:
        """Tokens of each expert are filled up to whole rows of scales, which costs a copy (`Fp8Padding`)."""
        tokens = rows.exchanged(tokens, "te::fp8_padding")
        linear = partial(
            apply,
            Fp8Linear,
            fp8=self.setup.fp8,
            gathers=1,
            scatters=1,
            fused=self.setup.fused_wgrad,
            overlapped=False,
            scratch=self.setup.scratch,
        )
        part = WithoutOutput(self._activated) if "moe_act" in self.setup.recompute else None
        x = (self._activated if part is None else part)(linear(tokens, self.weight1, held=held1), probs)
        del tokens
        out = linear(x, self.weight2, held=held2)
        return rows.exchanged(out if part is None else part.drop(out), "te::fp8_unpadding")


class Expert(nn.Module):
    """An `MLP` with a weight for each token."""

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        width = config.moe_ffn_hidden_size // setup.expert_tensor
        outputs = width * (2 if config.gated_linear_unit else 1)
        self.linear_fc1 = ExpertLinear(setup, config.hidden_size, outputs, dtype)
        self.linear_fc2 = ExpertLinear(setup, width, config.hidden_size, dtype)

    def forward(self, tokens: Tensor, probs: Tensor) -> Tensor:
        x = activated(self.linear_fc1(tokens), None, probs, self.config, self.setup)
        return self.linear_fc2(x)  # type: ignore[no-any-return]


class SequentialMLP(nn.Module):
    """This rank's experts, run one by one over equal shares of its tokens."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.local = config.num_moe_experts // setup.expert
        for number in range(self.local):
            setattr(self, f"expert{number}", Expert(config, setup, dtype))

    def forward(self, tokens: Tensor, probs: Tensor) -> Tensor:
        experts = [module for _, module in self.children()]
        if self.local == 1:
            return experts[0](tokens, probs)  # type: ignore[no-any-return]
        sizes = even_shares(tokens.shape[0], self.local)
        tokens_list, probs_list = tokens.split(sizes), probs.split(sizes)
        del tokens, probs
        outputs = [expert(*each) for expert, *each in zip(experts, tokens_list, probs_list, strict=True)]
        return ops.cat(outputs, 0)


def even_shares(total: Size, parts: int) -> list[Size]:
    """`total` in `parts` whole numbers that differ by one at most.

    >>> even_shares(10, 4)
    [3, 3, 2, 2]
    """
    rest = total % parts
    return [total // parts + (number < rest) for number in range(parts)]


class MoELayer(nn.Module):
    """Router, dispatch to the ranks that have the experts, experts, and back, in equal shares."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        self.pre_mlp_layernorm = Norm(config, config.hidden_size, dtype)
        self.router = Router(config, setup, dtype)
        self.experts = (TEGroupedMLP if setup.grouped else SequentialMLP)(config, setup, dtype)
        shared = config.moe_shared_expert_intermediate_size
        self.shared_experts = MLP(config, setup, dtype, shared, norm=False) if shared else None

    def places(self, tokens: Size) -> Size:
        """Rows that the experts of all ranks are sent of this rank's tokens."""
        config, factor = self.config, self.setup.capacity_factor
        wanted = tokens * config.moe_router_topk
        if factor is None:
            return wanted
        capacity = -(-(wanted * round(factor * 1000)) // (config.num_moe_experts * 1000))
        return capacity * config.num_moe_experts

    def forward(self, hidden_states: Tensor) -> Tensor:
        recompute = self.setup.recompute
        norm = WithoutOutput(self.pre_mlp_layernorm) if "layernorm" in recompute else None
        x = self.pre_mlp_layernorm(hidden_states) if norm is None else norm(hidden_states)
        out: Tensor = reentrant_checkpoint(self._routed, x) if "moe" in recompute else self._routed(x)
        return out if norm is None else norm.drop(out)

    def _routed(self, x: Tensor) -> Tensor:
        setup, shape = self.setup, x.shape
        probs = self.router(x)
        flat = x.view(shape[0] * shape[1], shape[2])
        send = self._by_all_gather if setup.dispatcher == "allgather" else self._by_all_to_all
        whole = send(flat, probs).view(*shape)
        if self.shared_experts is None:
            return whole
        again = "shared_experts" in setup.recompute
        shared: Tensor = reentrant_checkpoint(self.shared_experts, x) if again else self.shared_experts(x)
        return whole + shared

    def _by_all_to_all(self, flat: Tensor, probs: Tensor) -> Tensor:
        """`MoEAlltoAllTokenDispatcher`."""
        setup, shape = self.setup, flat.shape
        local = self.config.num_moe_experts // setup.expert
        places = self.places(flat.shape[0])
        tokens, weights = apply(rows.Permute, flat, probs, places=places, fused=setup.permute_fusion)
        del probs, flat
        if setup.expert > 1:
            tokens = rows.exchanged(tokens, "nccl::all_to_all")
            weights = rows.exchanged(weights, "nccl::all_to_all")
        if setup.expert_tensor > 1:
            both = places * setup.expert_tensor
            tokens = rows.exchanged(tokens, "nccl::all_gather", (both, shape[1]))
            weights = rows.exchanged(weights, "nccl::all_gather", (both,))
        if local > 1 and setup.expert > 1:
            tokens, weights = rows.exchanged(tokens, "te::sort_chunks"), rows.exchanged(weights, "te::sort_chunks")
        out = self.experts(tokens, weights)
        del tokens, weights
        if local > 1 and setup.expert > 1:
            out = rows.exchanged(out, "te::sort_chunks")
        if setup.expert_tensor > 1:
            out = rows.exchanged(out, "nccl::reduce_scatter", (places, shape[1]))
        if setup.expert > 1:
            out = rows.exchanged(out, "nccl::all_to_all")
        return rows.exchanged(out, "te::moe_unpermute", shape)

    def _by_all_gather(self, flat: Tensor, probs: Tensor) -> Tensor:
        """`MoEAllGatherTokenDispatcher`: all ranks' tokens in a buffer of all layers; summed in the weights' dtype."""
        setup, shape, dtype = self.setup, flat.shape, flat.dtype
        local = self.config.num_moe_experts // setup.expert
        ranks = setup.expert * setup.expert_tensor
        every = shape[0] * ranks
        if ranks > 1:
            probs = rows.exchanged(probs, "nccl::all_gather", (every, probs.shape[1]))
            flat = apply(rows.GatherTokens, flat, ranks=ranks, scratch=setup.scratch)
        probs = rows.exchanged(probs, "aten::contiguous", (every, local))
        chosen = every * self.config.moe_router_topk // setup.expert
        tokens, weights = apply(rows.Permute, flat, probs, places=chosen, fused=setup.permute_fusion)
        weights_dtype = probs.dtype
        del probs, flat
        out = self.experts(tokens, weights)
        del tokens, weights
        out = rows.exchanged(out, "te::moe_unpermute", (every, shape[1]))
        if ranks > 1:
            out = rows.exchanged(out.to(weights_dtype), "nccl::reduce_scatter", shape).to(dtype)
        return out


class Router(nn.Module):
    """`TopKRouter`."""

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.setup = setup
        self.weight = nn.parameter((config.num_moe_experts, config.hidden_size), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(s, b, H) -> probabilities (s x b, experts)."""
        return apply(rows.Route, x, self.weight, dtype=self.setup.router_dtype or x.dtype)  # type: ignore[no-any-return]
