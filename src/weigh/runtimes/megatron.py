"""Megatron-LM: pretraining with Megatron Core's GPT model, gradient buffers, optimizers and pipeline schedules.

Read: Megatron Core 0.17 (`megatron/core`, `megatron/training/training.py`, `arguments.py`, `pretrain_gpt.py`) and
Transformer Engine 2.11. What its layers keep is in `weigh.runtimes.mcore`.

- One step: gradients of all micro-batches go into a buffer that stays; the optimizer's moments are made by the first.
- Attention: Transformer Engine takes cuDNN's kernel from compute capability 9 on and FlashAttention before, and
  (`--deterministic-mode`) FlashAttention from 10 on (`dot_product_attention/utils.py`, `get_attention_backend`).
- Transformer Engine's workspace: 32 MiB + 1 KiB from compute capability 9 on, else 4 MiB (`cpp_extensions/gemm.py`).
- Passes of two micro-batches that overlap (`--overlap-moe-expert-parallel-comm`) are run one after the other.
- Experts: tokens go by all-to-all or are gathered (`--moe-token-dispatcher-type`), through grouped products or one
  by one, in equal shares.
- Not described: other dispatchers, packed sequences, CUDA graphs, offloading, FP8 inside of attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, INT64, UINT8
from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.ghost import nn, ops
from weigh.ghost.autograd import backward
from weigh.ghost.nn import Parameter
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels.workspaces import LARGE, Workspaces, workspace_bytes
from weigh.models.common import CausalModel
from weigh.optimizers import Optimizer
from weigh.optimizers.scaler import GradScaler
from weigh.recipes.loop import Loop, StagePeak
from weigh.recipes.training import VOCAB_PARALLEL_LOSSES, Training
from weigh.records import dataclass
from weigh.runtimes import Runtime
from weigh.runtimes.mcore.buffers import (
    BUCKET,
    BUCKET_PER_RANK,
    GradBuffer,
    MixedPrecisionOptimizer,
    Muon,
    PrecisionAwareOptimizer,
    Sharing,
    main_grad_dtype,
)
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.runtimes.mcore.experts import TEGroupedMLP
from weigh.runtimes.mcore.fp8 import BY_TENSOR, Fp8, is_fp8
from weigh.runtimes.mcore.fsdp import Group, fully_shard
from weigh.runtimes.mcore.layers import FLASH, FUSED, UNFUSED, ExpertLinear, Setup
from weigh.runtimes.mcore.model import GPTModel, GPTStage, Stage
from weigh.runtimes.mcore.recompute import MODULES
from weigh.runtimes.mcore.schedules import Action, chunks_of, schedule, stages_of
from weigh.techniques import Technique
from weigh.techniques.checkpointing import Checkpointing
from weigh.trace.events import BACKWARD, FORWARD, STEP, WORKSPACE

OWN_STAND_INS = (0, 14)
"""From this release on Megatron's own layers use Transformer Engine's stand-ins for gradients added elsewhere."""
SOFTMAX_IN_PLACE = (0, 8)
"""From this release of Megatron Core on the loss subtracts the highest logit in place."""
ELSEWHERE = (
    *("freeze", "lora", "adapter", "autocast", "param_dtype", "reduce_dtype", "target", "fused_kernels"),
    *("quantization", "optimizer_in_backward", "loss_scaling", "ema"),
)
"""Settings of other loops."""
SHARDS = ("distributed_optimizer", "megatron_fsdp")
MOMENTS = {"adam": 2, "adamw": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands: tensor ranks are next to each other, then context, data and pipeline (`parallel_state`)."""

    tensor: int
    context: int
    data: int
    pipeline: int

    @classmethod
    def of(cls, recipe: Training) -> Place:
        """The place of `recipe.rank`. Raises `UsageError` where there is no such rank."""
        mesh, rank = recipe.mesh, recipe.rank
        if rank >= mesh.world:
            raise UsageError(f"there is no rank {rank} of {mesh.world}", where="rank", hint="Ranks start at 0.")
        rest, tensor = divmod(rank, mesh.tensor)
        rest, context = divmod(rest, mesh.context)
        pipeline, data = divmod(rest, mesh.data)
        return cls(tensor, context, data, pipeline)


class Megatron(Loop):
    """`pretrain` of `megatron/training/training.py`."""

    offloads = False
    own_parallelism = True

    def kernels(self, recipe: Training, family: str) -> dict[str, Any]:
        """The loss is the model's own."""
        if recipe.loss not in VOCAB_PARALLEL_LOSSES:
            raise NotModelledError(f"the loss {recipe.loss!r} in Megatron-LM", where="loss")
        return {}

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """Full recomputation of every layer; the rest is the model's own."""
        for name in ELSEWHERE:
            if getattr(recipe, name):
                raise NotModelledError(f"{name} in Megatron-LM", where=name)
        if recipe.shard not in (None, *SHARDS):
            raise NotModelledError(f"{recipe.shard} in Megatron-LM", where="shard")
        if recipe.checkpoint_every > 1:
            raise NotModelledError("Megatron-LM's groups of recomputed layers", where="checkpoint_every")
        if recipe.checkpointing in ("full", "reentrant"):
            yield Checkpointing("reentrant")

    def attention(self, recipe: Training) -> str:
        return _attention(recipe)

    def stages(self, config: Mapping[str, Any], recipe: Training, where: str) -> tuple[StagePeak, ...]:
        if recipe.pipeline == 1:
            return ()
        from weigh.runtimes.mcore.ranks import stage_peaks

        return stage_peaks(config, recipe, where)

    def builds_share(self, recipe: Training) -> bool:
        return max(recipe.mesh.tensor, recipe.mesh.pipeline, recipe.mesh.expert) > 1

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The rank's stages and their gradient buffers."""
        if recipe.dtype not in (BFLOAT16, FLOAT16):
            raise NotModelledError(f"Megatron-LM in {recipe.dtype.name}", where="dtype", hint="Use bf16 or fp16.")
        shape = MegatronConfig.read(config, where)
        setup = _setup(shape, recipe)
        model = GPTModel(shape, setup, recipe.dtype, _stages(shape, recipe))
        nn.name_modules(model)
        if recipe.shard == "megatron_fsdp":
            _fully_shard(model, recipe)
        else:
            for _ in _buffers(model, recipe):  # the parameters' hooks keep them
                pass
        return model

    def optimizer(self, recipe: Training) -> Optimizer:
        """Adam over this rank's share, once `build` has made the buffers."""
        copies = main_grad_dtype(recipe.dtype, recipe.grad_reduce_in_bf16) is not FLOAT32
        if recipe.optimizer == "muon":
            if recipe.shard is not None or recipe.dtype is not BFLOAT16:
                raise NotModelledError("Muon whose states are shared, or in fp16, in Megatron-LM", where="optimizer")
            return Muon(copies)
        if recipe.optimizer not in MOMENTS:
            raise NotModelledError(f"the optimizer {recipe.optimizer!r} in Megatron-LM", where="optimizer")
        if recipe.precision_aware_optimizer:
            return PrecisionAwareOptimizer(recipe.exp_avg_dtype, recipe.exp_avg_sq_dtype)
        return MixedPrecisionOptimizer(copies, recipe.dtype is FLOAT16, MOMENTS[recipe.optimizer])

    def workspaces(self, recipe: Training, model: CausalModel) -> Any:
        """PyTorch's where PyTorch multiplies (the output layer, Megatron's own layers), and TE's (the router too)."""
        assert isinstance(model, GPTModel)
        setup, chunks = model.setup, model.chunks
        experts = bool(model.config.num_moe_experts)
        torchs = setup.local or any(c.last for c in chunks)
        grouped = any(isinstance(m, TEGroupedMLP) for m in model.modules())
        overlapped = USER_BUFFER_STREAMS * setup.overlapped
        return _Workspaces(recipe, torchs, (experts or not setup.local) + GROUPED_STREAMS * grouped, overlapped)

    def actions(self, recipe: Training) -> Iterator[Action]:
        """The passes of a step, in order."""
        stages = recipe.pipeline, Place.of(recipe).pipeline, recipe.accumulation, chunks_of(recipe)
        return schedule(*stages, recipe.virtual_pipeline_group, recipe.overlap_expert_communication)

    def step(
        self,
        model: CausalModel,
        recipe: Training,
        chosen: Optimizer,
        input_ids: Tensor,
        labels: Tensor,
        number: int,
        scaler: GradScaler | None = None,
    ) -> None:
        """`train_step`: zero the buffers, run the schedule, update."""
        assert isinstance(model, GPTModel)
        ledger = state.ledger
        waiting: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        for action in self.actions(recipe):
            chunk, key = model.chunks[action.chunk], (action.chunk, action.micro_batch)
            if action.forward:
                ledger.mark(FORWARD, number)
                if action.micro_batch == 0:
                    chosen.zero_grad()
                waiting[key] = _forward(chunk, recipe)
            else:
                ledger.mark(BACKWARD, number)
                _received, out = waiting.pop(key)  # sent back with its gradient, and let go of
                _backward(chunk, out)
                del _received, out
        for chunk in model.chunks:
            if chunk.last:
                chunk.output_layer.drain()
        if model.fsdp is not None:
            model.fsdp.finish()
        ledger.mark(STEP, number)
        chosen.step()


def _forward(chunk: GPTStage, recipe: Training) -> tuple[Tensor | None, Tensor]:
    """`forward_step`: what came from the stage before and what goes to the next, which is let go of once sent."""
    setup = chunk.setup
    length = recipe.sequence // setup.context
    received = None
    if not chunk.first:
        received = empty(
            (length // setup.sequence_ranks, recipe.batch, chunk.config.hidden_size), recipe.dtype, "nccl::recv"
        )
        received.requires_grad = True
        chunk.input_tensor = received
    batch = _batch(chunk, recipe, length)
    out = chunk(received, batch[0], batch[0])
    if not chunk.last:
        out.storage.release()
        return received, out
    loss = out.view(-1).mean(0)
    return received, loss / recipe.accumulation if recipe.accumulation > 1 else loss


def _batch(chunk: GPTStage, recipe: Training, length: Size) -> list[Tensor]:
    """`get_batch`: tokens and positions on the first stage, labels and their weights on the last, the mask on both."""
    made = [ops.input_tensor((recipe.batch, length), INT64)]
    if chunk.first or chunk.last:
        made += [ops.input_tensor((recipe.batch, length), dtype) for dtype in (INT64, INT64, FLOAT32)]
        if recipe.mask_in_batch:
            made.append(ops.input_tensor((recipe.batch, 1, length, recipe.sequence), BOOL))
    return made


def _backward(chunk: GPTStage, out: Tensor) -> None:
    """`backward_step`: with the gradient that the next stage sent, where there is one."""
    gradient = None if chunk.last else empty(out.shape, out.dtype, "nccl::recv")
    backward([out], [gradient])


def _setup(shape: MegatronConfig, recipe: Training) -> Setup:
    expert_tensor = recipe.expert_tensor or recipe.tensor
    for name, divisor, size in (
        ("tensor", recipe.tensor, shape.num_attention_heads),
        ("tensor", recipe.tensor, shape.ffn_hidden_size),
        ("expert", recipe.expert, shape.num_moe_experts or recipe.expert),
        ("expert_tensor", expert_tensor, shape.moe_ffn_hidden_size),
    ):
        if size % divisor:
            raise UsageError(f"{divisor} ranks do not divide {size}", where=name, hint="Give a divisor.")
    if recipe.expert > 1 and not shape.num_moe_experts:
        raise UsageError("the model has no experts", where="expert", hint="Leave it out.")
    if recipe.precision_aware_optimizer and recipe.shard != "distributed_optimizer":
        hint = "Give shard distributed_optimizer."
        raise UsageError("only the distributed optimizer is", where="precision_aware_optimizer", hint=hint)
    if recipe.precision_aware_optimizer and (recipe.dtype is not BFLOAT16 or recipe.fp8 not in (None, "delayed")):
        raise NotModelledError("precision-aware states beside fp16 or FP8", where="precision_aware_optimizer")
    if recipe.defer_embedding_wgrad is not None and (recipe.pipeline == 1 or not recipe.gradient_accumulation_fusion):
        hint = "It needs pipeline stages, and gradients that are added to the buffer as they are made."
        raise UsageError("nothing is deferred here", where="defer_embedding_wgrad", hint=hint)
    if recipe.context % recipe.context_heads or (recipe.context_exchange == "a2a+p2p") != (recipe.context_heads > 1):
        hint = "They divide the devices that share a sequence, and are only needed for a2a+p2p."
        raise UsageError(f"groups of {recipe.context_heads} devices share heads", where="context_heads", hint=hint)
    if recipe.token_dispatcher != "alltoall" and recipe.capacity_factor is not None:
        raise NotModelledError("capacity beside gathered tokens in Megatron-LM", where="capacity_factor")
    for name in recipe.recompute_modules:
        if name not in MODULES:
            raise UnknownNameError("part that can be recomputed", name, MODULES)
    return Setup(
        tensor=recipe.tensor,
        sequence_parallel=recipe.sequence_parallel and recipe.tensor > 1,
        context=recipe.context,
        expert=recipe.expert,
        expert_tensor=expert_tensor if shape.num_moe_experts else 1,
        context_exchange=recipe.context_exchange,
        local=recipe.local_layers,
        fused_wgrad=recipe.gradient_accumulation_fusion,
        own_stand_ins=recipe.own_stand_ins,
        attention=_attention(recipe),
        recompute=frozenset(recipe.recompute_modules) if recipe.checkpointing == "selective" else frozenset(),
        loss=recipe.loss,
        defer_wgrad=recipe.defer_embedding_wgrad,
        context_heads=recipe.context_heads,
        hidden_dropout=recipe.hidden_dropout,
        attention_dropout=recipe.attention_dropout,
        capacity_factor=recipe.capacity_factor,
        dispatcher=recipe.token_dispatcher,
        grouped=recipe.grouped_experts,
        router_dtype=recipe.router_dtype,
        permute_fusion=recipe.permute_fusion,
        activation_fusion=recipe.activation_fusion,
        masked_softmax_fusion=recipe.masked_softmax_fusion,
        softmax_in_fp32=recipe.softmax_in_fp32,
        deterministic=recipe.deterministic,
        fp8=_fp8(recipe),
        overlapped=recipe.overlap_tensor_communication and recipe.tensor > 1 and recipe.sequence_parallel,
    )


def _fp8(recipe: Training) -> Fp8 | None:
    if recipe.fp8 is None:
        if recipe.fp8_params:
            raise UsageError("weights are FP8, and products are not", where="fp8_params", hint="Give fp8 too.")
        return None
    if recipe.local_layers:
        raise NotModelledError("FP8 in Megatron's own layers", where="fp8")
    if recipe.fp8_params and recipe.fp8 not in BY_TENSOR:
        raise NotModelledError(f"FP8 weights scaled by {recipe.fp8}", where="fp8_params")
    if recipe.fp8_params and recipe.shard == "megatron_fsdp":
        raise NotModelledError("FP8 weights in Megatron-FSDP", where="fp8_params")
    major = int(recipe.compute_capability.partition(".")[0])
    return Fp8(recipe.fp8, major, recipe.fp8_params, recipe.fp8_amax_history)


def _attention(recipe: Training) -> str:
    if recipe.local_layers or recipe.attention == "eager":
        return UNFUSED
    if recipe.attention_kernel is not None:
        if recipe.attention_kernel not in (FLASH, FUSED, UNFUSED):
            raise NotModelledError(f"the kernel {recipe.attention_kernel!r} in Megatron-LM", where="attention_kernel")
        return recipe.attention_kernel
    major = int(recipe.compute_capability.partition(".")[0])
    return FUSED if major == 9 or (major > 9 and not recipe.deterministic) else FLASH


def _stages(shape: MegatronConfig, recipe: Training) -> list[Stage]:
    """The layers of each of the rank's chunks, and whether it has the embedding and the loss."""
    stages, chunks, rank = recipe.pipeline, chunks_of(recipe), Place.of(recipe).pipeline
    if chunks > 1 and stages == 1:
        raise UsageError("there is one pipeline stage", where="virtual_pipeline", hint="Give pipeline too.")
    layout = layout_of(shape, recipe)
    found, start = [], 0
    for number, letters in enumerate(layout):
        layers = range(start, start + letters.count("t"))
        start = layers.stop
        if number % stages == rank:
            found.append(Stage(layers, "E" in letters, "L" in letters, letters.count("m")))
    return found


def layout_of(shape: MegatronConfig, recipe: Training) -> list[str]:
    """The layers of all stages, chunk by chunk, as letters."""
    count, layers = recipe.pipeline * chunks_of(recipe), shape.num_layers
    if recipe.pipeline_layout is None:
        if layers % count:
            hint = "Say with pipeline_layout which stage has which."
            raise UsageError(f"{layers} layers do not divide into {count} stages", where="pipeline", hint=hint)
        each = "t" * (layers // count)
        return ("E" + "|".join([each] * count) + "m" * shape.mtp_num_layers + "L").split("|")
    found = stages_of(recipe.pipeline_layout)
    written = "".join(found)
    if (
        len(found) != count
        or written.count("t") != layers
        or written[0] != "E"
        or written.find("L") != len(written) - 1
    ):
        raise UsageError(
            f"{recipe.pipeline_layout!r} has {len(found)} stages and {written.count('t')} layers",
            where="pipeline_layout",
            hint=f"It must have {count} stages and {layers} layers, E first and L last.",
        )
    if "m" in "".join(found[:-1]):
        raise NotModelledError("layers that predict further tokens before the last stage", where="pipeline_layout")
    if written.count("m") != shape.mtp_num_layers:
        hint = f"The model has {shape.mtp_num_layers}."
        raise UsageError(f"{written.count('m')} layers predict further tokens", where="pipeline_layout", hint=hint)
    return found


def _buffers(model: GPTModel, recipe: Training) -> Iterator[GradBuffer]:
    """Experts, the rest, and of both what is FP8 have one each in a chunk (`group_params_for_buffers`)."""
    mesh, place, setup = recipe.mesh, Place.of(recipe), model.setup
    distributed = recipe.shard == "distributed_optimizer"
    tied = (model.config.share_embeddings or bool(model.config.mtp_num_layers)) and recipe.pipeline > 1
    for number, chunk in enumerate(model.chunks):
        alone = {id(p.tensor) for p in chunk.parameters() if tied and p.place[-1] == "weight" and _is_vocabulary(p)}
        kinds: dict[tuple[bool, bool], list[Parameter]] = {}
        for parameter in chunk.parameters():
            kinds.setdefault((setup.expert > 1 and _is_expert(parameter), is_fp8(parameter.tensor)), []).append(
                parameter
            )
        for (experts, _), group in kinds.items():
            ranks, rank = mesh.shard, (place.data * mesh.context + place.context) % mesh.shard
            if experts:
                model_ranks = setup.expert_tensor * setup.expert
                ranks = mesh.world // mesh.pipeline // model_ranks // mesh.replicas
                rank = recipe.rank % (mesh.world // mesh.pipeline) // model_ranks % ranks
            size = max(BUCKET, BUCKET_PER_RANK * ranks) if recipe.overlap_grad_reduce and number == 0 else None
            sharing = Sharing(ranks, rank, distributed, size)
            yield GradBuffer(group, alone, main_grad_dtype(recipe.dtype, recipe.grad_reduce_in_bf16), sharing)


def _fully_shard(model: GPTModel, recipe: Training) -> None:
    """Megatron-FSDP; the hooks keep its buckets."""
    if recipe.pipeline > 1 or recipe.replicas > 1:
        raise NotModelledError("Megatron-FSDP over pipeline stages, or in replicas", where="shard")
    mesh, place, setup = recipe.mesh, Place.of(recipe), model.setup
    dense = Group(mesh.shard, place.data * mesh.context + place.context)
    each = setup.expert_tensor * setup.expert
    experts = Group(mesh.world // each, recipe.rank // each) if setup.expert > 1 else dense
    grads = main_grad_dtype(recipe.dtype, recipe.grad_reduce_in_bf16)
    model.fsdp = fully_shard(model.chunks[0], recipe.sharding_strategy, dense, experts, _is_expert, grads)


def _is_vocabulary(parameter: Parameter) -> bool:
    return "word_embeddings" in parameter.place or "output_layer" in parameter.place


def _is_expert(parameter: Parameter) -> bool:
    return isinstance(parameter.module, (TEGroupedMLP, ExpertLinear))


USER_BUFFER_STREAMS = 3
"""Streams of products that overlap with communication, which share one workspace (`_NUM_MAX_UB_STREAMS`)."""
GROUPED_STREAMS = 4
"""Streams of a grouped product, each with a workspace (`tex.get_num_cublas_streams`)."""


class _Workspaces(Workspaces):
    """PyTorch's workspaces and Transformer Engine's."""

    def __init__(self, recipe: Training, torchs: bool, te: int, overlapped: int) -> None:
        super().__init__(recipe.compute_capability)
        if recipe.deterministic:  # CUBLAS_WORKSPACE_CONFIG=:4096:8
            self.num_bytes = LARGE
        self.torchs, self.te, self.overlapped = torchs, te, overlapped
        self.te_bytes = LARGE + 1024 if workspace_bytes(recipe.compute_capability) == LARGE else 4 * 1024 * 1024

    def begin(self, phase: str) -> None:
        """A phase begins."""
        for number in range(self.te if phase == FORWARD else 0):
            if f"te{number}" not in self.by_thread:
                made = empty((self.te_bytes,), UINT8, "get_cublas_workspace", purpose=WORKSPACE)
                self.by_thread[f"te{number}"] = made
        if self.overlapped and "ub" not in self.by_thread:
            made = empty((self.overlapped * self.te_bytes,), UINT8, "get_cublas_workspace", purpose=WORKSPACE)
            self.by_thread["ub"] = made
        if self.torchs:
            super().begin(phase)


@dataclass(frozen=True, slots=True)
class MegatronLM(Runtime):
    """`pretrain_gpt.py`."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        """Its defaults: bf16, vocabulary-parallel loss."""
        old = version is not None and version < SOFTMAX_IN_PLACE
        loss = "vocab_parallel_copied" if old else "vocab_parallel"
        found = {"dtype": "bf16", "loss": loss, "implementation": "fused", **words}
        if version is not None:
            found.setdefault("own_stand_ins", version >= OWN_STAND_INS)
        if getattr(found["dtype"], "name", found["dtype"]) == "fp16":
            found.setdefault("steps", 3)  # the first is skipped
        if found.get("shard") == "megatron_fsdp":
            found.setdefault("warm", True)  # reading a checkpoint, even none, makes the states
            found.setdefault("gradient_accumulation_fusion", False)  # not before Transformer Engine 2.10
        return found


_READ = "Megatron Core 0.17, Transformer Engine 2.11"
RUNTIME = MegatronLM("megatron", _READ, loop=Megatron(), software=f"{_READ} and PyTorch 2.13")
