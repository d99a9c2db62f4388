"""Several ranks: FSDP2, DDP, tensor parallelism, over a process group that is fake (any size) or real (gloo, NCCL)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from weigh.errors import NotModelledError, UsageError
from weigh.measure.training import blocks
from weigh.measure.workload import torch_dtype

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.recipes.training import Training

AXES = ("replicate", "shard", "tensor")
"""The mesh's dimensions, from the slowest network to the fastest."""
STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": partial(ColwiseParallel, output_layouts=Replicate()),
    "rowwise_split_input": partial(RowwiseParallel, input_layouts=Replicate()),
}
"""The splits of transformers' plans that are applied; what a plan splits otherwise stays whole."""


def rank() -> int:
    """Which of the processes this is."""
    return int(os.environ.get("RANK", "0"))


def start(recipe: Training, fake: bool) -> DeviceMesh:
    """Join the other ranks. Outside of a fake mode: the mesh wants values.

    Raises:
        NotModelledError: a kind of parallelism that is not run here.
    """
    mesh = recipe.mesh
    for axis in ("pipeline", "context", "expert"):
        if getattr(mesh, axis) > 1:
            raise NotModelledError(f"a real run of {axis} parallelism", where=axis)
    if fake and recipe.shard is not None and mesh.tensor > 1:
        raise NotModelledError(
            "FSDP2 over tensor parallelism on fake tensors", where="tensor", hint="Trace one of them."
        )
    if fake and recipe.shard is None and mesh.data > 1:
        hint = "Leave one device for the data, or `weigh measure` it."
        raise NotModelledError("DDP on fake tensors", where="shard", hint=hint)
    if fake:
        dist.init_process_group("fake", store=FakeStore(), rank=recipe.rank, world_size=mesh.world)
    else:
        dist.init_process_group("nccl" if recipe.device == "cuda" else "gloo")
    sizes = {"replicate": mesh.replicas, "shard": mesh.shard, "tensor": mesh.tensor}
    names = tuple(name for name in AXES if sizes[name] > 1 or name == "shard")
    return init_device_mesh(recipe.device, tuple(sizes[name] for name in names), mesh_dim_names=names)


def stop() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def distribute(model: Any, recipe: Training, mesh: DeviceMesh) -> Any:
    """The model, each rank with its part: layers are split first, then what is left of them is sharded.

    Raises:
        UsageError: the model has no stack of blocks, or transformers no plan to split it.
    """
    names = mesh.mesh_dim_names or ()
    if "tensor" in names:
        model = _split(model, mesh["tensor"])
    if recipe.shard is None:
        return model if mesh["shard"].size() == 1 else torch.nn.parallel.DistributedDataParallel(model)
    data = tuple(name for name in names if name != "tensor")
    settings: dict[str, Any] = {"mesh": mesh[data], "reshard_after_forward": recipe.reshard_after_forward}
    if recipe.param_dtype is not None or recipe.reduce_dtype is not None:
        settings["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=_dtype(recipe.param_dtype), reduce_dtype=_dtype(recipe.reduce_dtype)
        )
    if recipe.offload_parameters:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=recipe.device == "cuda" and torch.cuda.is_available())
    for block in blocks(model):
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    return model


def _dtype(dtype: DType | None) -> torch.dtype | None:
    return None if dtype is None else torch_dtype(dtype)


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
