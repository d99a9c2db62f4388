"""Several ranks: FSDP2, DDP and tensor parallelism, over a process group that is fake (of any size) or real (gloo, NCCL)."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from weigh.dtypes import get
from weigh.errors import UsageError
from weigh.measure.job import Parallel
from weigh.measure.training import blocks
from weigh.measure.workload import torch_dtype

STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
"""The splits of transformers' plans that are applied; what a plan splits otherwise stays whole."""


def rank() -> int:
    """Which of the processes this is."""
    return int(os.environ.get("RANK", "0"))


def start(parallel: Parallel, device: str, fake: bool) -> DeviceMesh:
    """Join the other ranks. Outside of a fake mode: the mesh wants values."""
    if fake:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=parallel.world)
    else:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return init_device_mesh(device, (parallel.world,))


def stop() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def distribute(model: Any, parallel: Parallel, mesh: DeviceMesh) -> Any:
    """The model, each rank with its part.

    Raises:
        UsageError: the model has no stack of blocks, or transformers no plan to split it.
    """
    if parallel.shard == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if parallel.shard == "tensor":
        return _split(model, mesh)
    settings: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": parallel.reshard}
    if parallel.compute_dtype is not None or parallel.reduce_dtype is not None:
        settings["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=_dtype(parallel.compute_dtype), reduce_dtype=_dtype(parallel.reduce_dtype)
        )
    for block in blocks(model):
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    return model


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else torch_dtype(get(name))


def _split(model: Any, mesh: DeviceMesh) -> Any:
    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None)
    base = getattr(model, "base_model_prefix", "")
    if not plan:
        hint = "Shard it by fsdp2, or take a family with a plan."
        raise UsageError(f"transformers has no plan for {model.config.model_type}", where="shard", hint=hint)
    patterns = [
        (re.compile(f"{base}.{key}".replace(".", r"\.").replace("*", r"\d+")), how) for key, how in plan.items()
    ]
    found = {}
    for name, module in model.named_modules():
        how = next((how for pattern, how in patterns if pattern.fullmatch(name)), None)
        if how in STYLES and isinstance(module, torch.nn.Linear):
            found[name] = STYLES[how]()
    if not found:
        raise UsageError("the plan of transformers splits no linear layer", where="shard", hint="Shard it by fsdp2.")
    return parallelize_module(model, mesh, found)
