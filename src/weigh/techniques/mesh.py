"""The devices of a job as a mesh with named axes, as PyTorch's `DeviceMesh` and Megatron's `parallel_state` have it."""

from __future__ import annotations

from weigh.errors import UsageError
from weigh.records import dataclass


@dataclass(frozen=True, slots=True)
class Mesh:
    """How many devices each kind of parallelism has; what is left over shares the data."""

    world: int = 1
    """Devices in all."""
    tensor: int = 1
    """That share each layer."""
    pipeline: int = 1
    """Stages that share the layers."""
    context: int = 1
    """That share each sequence."""
    expert: int = 1
    """That share the experts; they stand among those of one pipeline stage."""
    expert_tensor: int | None = None
    """That share each expert; None is as many as share each layer."""
    replicas: int = 1
    """Of those that share the data, groups that hold all parameters (hybrid sharding)."""

    def __post_init__(self) -> None:
        for name in ("world", "tensor", "pipeline", "context", "expert", "replicas"):
            if getattr(self, name) < 1:
                raise UsageError(f"is {getattr(self, name)}", where=name, hint="It must be at least 1.")
        used = self.tensor * self.pipeline * self.context
        if self.world % used:
            raise UsageError(
                f"{self.world} devices cannot be divided into tensor {self.tensor} x pipeline {self.pipeline} x "
                f"context {self.context}",
                where="mesh",
                hint=f"Their product, {used}, must divide the number of devices (nodes x gpus_per_node).",
            )
        if self.data % self.replicas:
            raise UsageError(
                f"{self.data} devices that share the data do not make {self.replicas} equal replicas",
                where="replicas",
                hint=f"Give a divisor of {self.data}.",
            )
        stage, group = self.world // self.pipeline, self.expert * (self.expert_tensor or self.tensor)
        if stage % group:
            raise UsageError(
                f"{stage} devices of a stage do not divide into groups of {group} that share the experts",
                where="expert",
                hint="Devices that share the experts, times those that share each of them, must divide a stage's.",
            )

    @property
    def data(self) -> int:
        """Devices that have data of their own."""
        return self.world // (self.tensor * self.pipeline * self.context)

    @property
    def shard(self) -> int:
        """Devices over which parameters, gradients or states are sharded: data and context, without replicas."""
        return self.data * self.context // self.replicas
