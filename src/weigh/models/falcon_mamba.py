"""Falcon Mamba, as `transformers/models/falcon_mamba/modeling_falcon_mamba.py` (5.23) writes it, on its slow path.

Mamba with norms of the time step, B and C that have no weights to train.
"""

# ruff: noqa: N803  the equations' names

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.mamba import MambaBlock, MambaConfig, MambaForCausalLM, MambaMixer, MambaModel
from weigh.records import dataclass

MODEL_TYPES = ("falcon_mamba",)


@dataclass(frozen=True)
class FalconMambaConfig(MambaConfig):
    """The settings of `FalconMambaConfig` that shape memory."""


class FalconMambaWeightlessRMSNorm(nn.Module):
    """The weight is a buffer that only the kernels read."""

    role = nn.NORM

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.buffer((width,), dtype)

    def _norm(self, x: Tensor) -> Tensor:
        return x * ops.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x.float()).to(x.dtype)


class FalconMambaMixer(MambaMixer):
    def __init__(self, config: MambaConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.dt_layernorm = FalconMambaWeightlessRMSNorm(config.intermediate_size, dtype)
        self.b_layernorm = FalconMambaWeightlessRMSNorm(config.state_size, dtype)
        self.c_layernorm = FalconMambaWeightlessRMSNorm(config.state_size, dtype)

    def normalise(self, time_step: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time_step = self.dt_layernorm(time_step)
        B = self.b_layernorm(B)
        C = self.c_layernorm(C)
        return time_step, B, C


class FalconMambaBlock(MambaBlock):
    mixer_class = FalconMambaMixer


class FalconMambaModel(MambaModel):
    block_class = FalconMambaBlock


class FalconMambaForCausalLM(MambaForCausalLM):
    model_class = FalconMambaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return FalconMambaForCausalLM(FalconMambaConfig.read(config, where), dtype)
