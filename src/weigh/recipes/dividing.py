"""What a mesh of devices makes of a model and of its optimizer, outside of programs that are built parallel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weigh.errors import NotModelledError, UsageError
from weigh.optimizers import Choice, Optimizer, optimizer
from weigh.recipes.training import Training

if TYPE_CHECKING:
    from weigh.techniques import Technique

ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}
"""Stages of DeepSpeed's ZeRO: optimizers around the optimizer."""


def sharded_optimizer(recipe: Training, choice: Choice) -> Optimizer:
    """DeepSpeed's around an optimizer.

    Raises:
        NotModelledError: the settings ask for more than it does here.
    """
    from weigh.optimizers.zero import OFFLOADED_OPTIMIZERS, Zero

    if recipe.offload_optimizer and recipe.optimizer not in OFFLOADED_OPTIMIZERS:
        what = f"{recipe.optimizer} on the host"
        raise NotModelledError(what, where="offload_optimizer", hint=f"Use {' or '.join(OFFLOADED_OPTIMIZERS)}.")
    if recipe.loss_scaling or not recipe.set_to_none:
        raise NotModelledError("a GradScaler or gradients that are kept, under ZeRO,", where="shard")
    if recipe.shard == "zero3":
        from weigh.optimizers.zero3 import Zero3

        return Zero3(
            choice,
            recipe.zero_reduce_bucket_size,
            recipe.zero_sub_group_size,
            recipe.accumulation,
            recipe.offload_optimizer,
        )
    return Zero(
        choice,
        optimizer(choice),
        ZERO[recipe.shard or ""],
        recipe.mesh.shard,
        recipe.rank,
        recipe.accumulation,
        recipe.zero_reduce_bucket_size,
        recipe.zero_overlap_comm,
        recipe.offload_optimizer,
    )


MEGATRON = (
    *("sequence_parallel", "context_exchange", "expert_tensor", "capacity_factor"),
    *("recompute_modules", "pipeline_layout", "virtual_pipeline_group", "defer_embedding_wgrad", "context_heads"),
    *(
        "overlap_expert_communication",
        "token_dispatcher",
        "grouped_experts",
        "router_dtype",
        "permute_fusion",
        "activation_fusion",
    ),
    *("hidden_dropout", "attention_dropout", "deterministic", "gradient_accumulation_fusion", "overlap_grad_reduce"),
    *("masked_softmax_fusion", "softmax_in_fp32"),
    *("precision_aware_optimizer", "exp_avg_dtype", "exp_avg_sq_dtype"),
    *("fp8", "fp8_params", "fp8_amax_history", "overlap_tensor_communication"),
    *("sharding_strategy", "grad_reduce_in_bf16", "mask_in_batch", "local_layers", "own_stand_ins"),
)
"""Settings that only Megatron-LM's loop reads."""


def fuses_adapters(recipe: Training) -> bool:
    """Unsloth's kernels take the place of peft's adapters beside four-bit layers."""
    return recipe.fused_kernels == "unsloth" and recipe.quantization is not None and recipe.lora is not None


def _refuse_settings_of_others(recipe: Training) -> None:
    default = Training()
    for name in MEGATRON:
        if getattr(recipe, name) != getattr(default, name):
            raise NotModelledError(f"{name.replace('_', ' ')} outside of Megatron-LM", where=name)


def _rank_of_shards(recipe: Training) -> int:
    """The rank among those that share what is sharded; replicas are counted first (`DeviceMesh`)."""
    mesh = recipe.mesh
    if mesh.replicas > 1 and recipe.rank < mesh.shard * mesh.replicas:
        return recipe.rank % mesh.shard
    return recipe.rank


def parallel(recipe: Training) -> Iterator[Technique]:
    """What a mesh of devices makes of the model."""
    mesh = recipe.mesh
    _refuse_settings_of_others(recipe)
    if mesh.expert > 1:
        raise NotModelledError("expert parallelism", where="expert")
    if mesh.pipeline > 1 or recipe.virtual_pipeline > 1:
        _check_pipeline(recipe)
    if recipe.offload_parameters and recipe.shard not in ("fsdp1", "fsdp2", "zero3"):
        raise NotModelledError("offloaded parameters outside of FSDP and ZeRO stage 3", where="offload_parameters")
    if mesh.tensor > 1:
        from weigh.techniques.tensor_parallel import TensorParallel

        yield TensorParallel(mesh.tensor)
    if recipe.shard == "fsdp1":
        from weigh.techniques.fsdp1 import FlatShard

        if recipe.adapter is not None:
            raise NotModelledError(f"{recipe.adapter.kind} under FSDP1", where="adapter", hint="Shard by FSDP2.")
        adapters = (".lora_A", ".lora_B") if recipe.lora is not None else ()
        yield FlatShard(
            mesh.shard,
            recipe.param_dtype,
            recipe.reduce_dtype,
            recipe.use_orig_params,
            recipe.reshard_after_forward is not False,
            _rank_of_shards(recipe),
            adapters if not fuses_adapters(recipe) else (),
            recipe.fp32_shards,
            adapters if fuses_adapters(recipe) else (),
            recipe.sync_module_states,
            recipe.offload_parameters,
            recipe.backward_prefetch,
            recipe.forward_prefetch,
            mesh.replicas,
        )
    elif recipe.shard == "distributed_optimizer":
        raise NotModelledError("the distributed optimizer outside of Megatron-LM", where="shard")
    elif recipe.shard == "zero3":
        yield _zero3(recipe)
    elif recipe.shard is not None and recipe.shard not in ZERO:
        from weigh.techniques.fsdp2 import FullyShard

        yield FullyShard(
            mesh.shard,
            mesh.replicas,
            recipe.reshard_after_forward,
            recipe.param_dtype,
            recipe.reduce_dtype,
            _rank_of_shards(recipe),
            recipe.offload_parameters,
        )
    elif recipe.shard is None and mesh.shard * mesh.replicas > 1:
        from weigh.techniques.ddp import DataParallel

        yield DataParallel()


def _check_pipeline(recipe: Training) -> None:
    if recipe.pipeline == 1:
        raise UsageError("there is one stage", where="virtual_pipeline", hint="Give pipeline too.")
    for name, there in (
        ("shard", recipe.shard is not None),
        ("context", recipe.context > 1),
        ("compile", recipe.compile),
        ("loss_scaling", recipe.loss_scaling),
        ("optimizer_in_backward", recipe.optimizer_in_backward),
    ):
        if there:
            raise NotModelledError(f"{name} beside a pipeline, outside of Megatron-LM,", where=name)


def compiled(recipe: Training) -> Technique:
    """`torch.compile` of the model, or of its blocks."""
    from weigh.techniques.compiling import Compiled

    if recipe.checkpointing is not None:
        raise NotModelledError("compiled code around checkpoints", where="compile")
    if recipe.mesh.world > 1:
        raise NotModelledError("one compiled function on several devices", where="compile")
    return Compiled()


def _zero3(recipe: Training) -> Technique:
    from weigh.techniques.zero3 import PartitionedParameters

    if recipe.optimizer is None:
        raise UsageError("ZeRO stage 3 is an optimizer, and there is none", where="optimizer", hint="Choose one.")
    if recipe.quantization is not None:
        raise NotModelledError("ZeRO stage 3 of quantized layers", where="quantization")
    if recipe.mesh.replicas > 1 or recipe.mesh.tensor > 1:
        raise NotModelledError("ZeRO stage 3 with another division of the devices", where="shard")
    if recipe.mesh.shard % recipe.zero_hpz_partition_size:
        what = f"{recipe.mesh.shard} devices do not make groups of {recipe.zero_hpz_partition_size}"
        raise UsageError(what, where="zero_hpz_partition_size", hint="Take a divisor, as many as a machine has.")
    return PartitionedParameters(
        recipe.mesh.shard,
        recipe.rank,
        recipe.zero_prefetch_bucket_size,
        recipe.zero_param_persistence_threshold,
        recipe.zero_max_live_parameters,
        recipe.zero_max_reuse_distance,
        recipe.zero_hpz_partition_size,
        recipe.offload_parameters,
    )
