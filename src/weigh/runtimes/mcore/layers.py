"""What Megatron Core's layers share: how a rank runs them, linear layers over ranks, norms and MLPs.

Mirrors `tensor_parallel/layers.py`, `extensions/transformer_engine.py` and `transformer/mlp.py` (Megatron Core 0.17).
Tensors are (S sequence, B batch, H hidden).
"""

from __future__ import annotations

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import apply
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass, field
from weigh.runtimes.mcore import rows
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.runtimes.mcore.fp8 import Fp8, Fp8Linear, Weight, parameter

FLASH, FUSED, UNFUSED = "flash", "cudnn", "math"


@dataclass(frozen=True, slots=True)
class Setup:
    """How a rank runs its share of the model."""

    tensor: int = 1
    sequence_parallel: bool = False
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    context_exchange: str = "p2p"
    """How attention sees the whole sequence: "p2p" (a ring), "a2a" (the heads are shared instead) or "a2a+p2p"."""
    context_heads: int = 1
    """Ranks of a group that shares heads, with "a2a+p2p"."""
    defer_wgrad: int | None = None
    """Micro-batches for which the output layer's weight waits for its gradients; 0 is all of them."""
    local: bool = False
    """Megatron's own layers instead of Transformer Engine's."""
    fused_wgrad: bool = True
    """`gradient_accumulation_fusion`."""
    own_stand_ins: bool = True
    """Megatron's own output layer keeps a stand-in for its gradient."""
    attention: str = FUSED
    recompute: frozenset[str] = frozenset()
    """What selective recomputation runs again (`--recompute-modules`)."""
    loss: str = "vocab_parallel"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    capacity_factor: float | None = None
    """Every expert takes so many times its even share of the tokens; None: what comes, taken as even."""
    dispatcher: str = "alltoall"
    """How tokens come to their experts: "alltoall", or "allgather" (every rank of the experts sees all tokens)."""
    grouped: bool = True
    """All experts of a rank in one grouped product (`--moe-grouped-gemm`), or one by one."""
    router_dtype: DType | None = None
    """`--moe-router-dtype`: of the experts' weights for each token; None is the model's."""
    permute_fusion: bool = False
    """`--moe-permute-fusion`: Transformer Engine puts tokens in the order of their experts."""
    activation_fusion: bool = True
    """`bias_activation_fusion`: activation, bias and weight in one kernel, where there is one."""
    masked_softmax_fusion: bool = True
    """Megatron's own attention has one kernel for scale, mask and softmax."""
    softmax_in_fp32: bool = False
    """Without that kernel."""
    deterministic: bool = False
    fp8: Fp8 | None = None
    """How linear layers of blocks compute in FP8, where they do."""
    overlapped: bool = False
    """`--tp-comm-overlap`: gathers and scattered sums go through user buffers while products run."""
    scratch: rows.Scratch = field(default_factory=dict)

    @property
    def sequence_ranks(self) -> int:
        """Tensor ranks that have different parts of the sequence outside of the linear layers."""
        return self.tensor if self.sequence_parallel else 1


class ParallelLinear(nn.Module):
    """`ColumnParallelLinear` (cut by outputs), `RowParallelLinear` (by inputs), or a layer that every rank has."""

    def __init__(
        self,
        setup: Setup,
        inputs: int,
        outputs: int,
        dtype: DType,
        kind: str,
        bias: bool = False,
        own: bool = False,
    ) -> None:
        super().__init__()
        column, row = kind == "column", kind == "row"
        self.setup, self.own = setup, own or setup.local
        self.fp8 = None if self.own else setup.fp8
        inputs, outputs = inputs // (setup.tensor if row else 1), outputs // (setup.tensor if column else 1)
        self.gathers = setup.sequence_ranks if column else 1
        self.scatters = setup.sequence_ranks if row else 1
        self.weight = weight_of((outputs, inputs), dtype, self.fp8)
        self.fp8_weight = None if self.fp8 is None else Weight(self.fp8)
        self.bias = nn.parameter((outputs,), dtype) if bias else None
        self.deferred: rows.Deferred | None = None

    def drain(self) -> None:
        """Compute the gradients that were deferred, once the schedule is through (`drain_embedding_wgrad_compute`)."""
        if self.deferred is not None:
            self.deferred.drain(self.gathers, self.setup.scratch)

    def forward(self, x: Tensor) -> Tensor:
        """Without the bias, which whoever called adds (`skip_bias_add`)."""
        if self.fp8 is not None:
            return apply(  # type: ignore[no-any-return]
                Fp8Linear,
                x,
                self.weight,
                fp8=self.fp8,
                held=self.fp8_weight,
                gathers=self.gathers,
                scatters=self.scatters,
                fused=self.setup.fused_wgrad,
                overlapped=self.setup.overlapped,
                scratch=self.setup.scratch,
            )
        out: Tensor = apply(
            rows.Linear,
            x,
            self.weight,
            gathers=self.gathers,
            scatters=self.scatters,
            fused=self.setup.fused_wgrad,
            cached=not self.setup.local and (self.setup.own_stand_ins or not self.own),
            scratch=self.setup.scratch,
            own=self.own,
            deferred=self.deferred,
            overlapped=self.setup.overlapped and not self.own,
        )
        return out


def weight_of(shape: tuple[int, ...], dtype: DType, fp8: Fp8 | None) -> Tensor:
    """A weight, of one byte an element where it is FP8 itself."""
    return parameter(shape, dtype) if fp8 is not None and fp8.params else nn.parameter(shape, dtype)


class ExpertLinear(ParallelLinear):
    """A layer of one expert: whole here, or a share that needs no exchange of its own (`explicit_expert_comm`)."""

    def __init__(self, setup: Setup, inputs: int, outputs: int, dtype: DType) -> None:
        super().__init__(setup, inputs, outputs, dtype, "all")


class Norm(nn.Module):
    """`TENorm`, or the part of a linear layer that stands for it."""

    role = nn.NORM

    def __init__(self, config: MegatronConfig, width: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)
        self.bias = nn.parameter((width,), dtype) if config.normalization.lower() == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        out: Tensor = apply(rows.Norm, x.contiguous(), self.weight, self.bias)
        return out


def with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """A bias that the product adds as it goes: it costs a gradient, and no tensor."""
    return x if bias is None else apply(rows.EpilogueBias, x, bias)


def activated(x: Tensor, bias: Tensor | None, weights: Tensor | None, config: MegatronConfig, setup: Setup) -> Tensor:
    """GELU, SwiGLU or squared ReLU of `x` and its bias, times a weight for each row of an expert.

    One kernel does it for SwiGLU, and for GELU with a bias and without weights; else PyTorch does one after the other.
    """
    kind = config.activation
    if setup.activation_fusion and (kind == "swiglu" or (kind == "gelu" and bias is not None and weights is None)):
        return apply(rows.Activation, x, bias, weights, gated=kind == "swiglu")  # type: ignore[no-any-return]
    if bias is not None:
        x = x + bias
    if kind == "swiglu":
        glu, linear = x.split(x.shape[-1] // 2, -1)
        del x
        x = ops.silu(glu) * (linear + 0.0)
        del glu, linear
    else:
        x = ops.gelu(x) if kind == "gelu" else ops.pow(ops.relu(x), 2)
    return x if weights is None else (x * weights.unsqueeze(-1)).to(x.dtype)


class MLP(nn.Module):
    """Two layers with the activation, and the bias before it, in one kernel."""

    role = nn.MLP

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, width: int, norm: bool = True) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        self.pre_mlp_layernorm = Norm(config, config.hidden_size, dtype) if norm else None
        outputs = width * (2 if config.gated_linear_unit else 1)
        self.linear_fc1 = ParallelLinear(setup, config.hidden_size, outputs, dtype, "column", config.add_bias_linear)
        self.linear_fc2 = ParallelLinear(setup, width, config.hidden_size, dtype, "row", config.add_bias_linear)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states if self.pre_mlp_layernorm is None else self.pre_mlp_layernorm(hidden_states)
        x = activated(self.linear_fc1(x), self.linear_fc1.bias, None, self.config, self.setup)
        return self.linear_fc2(x)  # type: ignore[no-any-return]
