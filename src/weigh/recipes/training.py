"""Training steps: forward, loss, backward, clipping, optimizer step, as a plain PyTorch loop does them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weigh import models
from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64, DType
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.ledger import Ledger, NotSteady
from weigh.ghost.nn import Parameter
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import by_owner, recording, state
from weigh.ghost.tensor import Tensor
from weigh.kernels import fused_kernels, kernels
from weigh.kernels.losses import loss_kernel
from weigh.kernels.workspaces import Workspaces
from weigh.models.common import CausalModel
from weigh.optimizers import Optimizer, optimizer
from weigh.optimizers.base import clip_grad_norm
from weigh.techniques.mesh import Mesh
from weigh.trace.events import BACKWARD, CLIP, FORWARD, GRADIENT, STEP, Trace

if TYPE_CHECKING:
    from weigh.techniques import Technique
    from weigh.techniques.lora import Lora


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained. Sizes may be arrays' dimensions (see `weigh.dims`)."""

    batch: Size = 1
    """Sequences in a micro-batch on one device."""
    sequence: Size = 1024
    """Tokens in a sequence."""
    target: Size | None = None
    """Tokens in a target, where a decoder reads one beside the sequence; None is as many as in the sequence."""
    dtype: DType = FLOAT32
    """Of all parameters."""
    autocast: DType | None = None
    """The lower precision of `torch.autocast`, or None."""
    attention: str = "sdpa"
    """transformers' attention implementation: "sdpa", "flash_attention_2", or "eager", all that some families have."""
    attention_kernel: str | None = None
    """Forces the kernel behind sdpa: "flash", "efficient", "cudnn" or "math"."""
    repeat_kv: bool = False
    """flash_attention_2 copies keys and values for every query head first (some families of transformers before
    4.48)."""
    loss: str = "upcast"
    """How the loss is made of the logits: "upcast" (in fp32), "shifted" (in fp32, of a shifted copy: transformers
    before 4.50), "rebound" (likewise, and the model drops the logits of its own dtype: before 4.46), "native" (of a
    shifted copy in the logits' own dtype), "liger_fused_linear" (with the head, chunk by chunk: Liger's kernel)."""
    fused_kernels: str | None = None
    """Triton kernels in place of the cross entropy, the RMS norms and the rotary embedding: "unsloth"."""
    checkpointing: str | None = None
    """None, "full" (every block, non-reentrant) or "reentrant"."""
    optimizer: str | None = "adamw"
    """ "adamw", "adam", "sgd", "paged_adamw" (bitsandbytes, in fp32), or None for a step without one."""
    implementation: str | None = None
    """ "foreach", "fused" or "forloop"; None is the device's default."""
    momentum: float = 0.0
    """Of SGD."""
    weight_decay: float | None = None
    """None is PyTorch's default of the optimizer."""
    clip: bool = False
    """Clip the norm of the gradients."""
    accumulation: int = 1
    """Micro-batches in a step."""
    set_to_none: bool = True
    """`zero_grad` drops the gradients; False keeps them."""
    freeze: str | None = None
    """A part to freeze (see `weigh.techniques.freezing`)."""
    lora: Lora | None = None
    """Adapters beside frozen layers (see `weigh.techniques.lora`)."""
    quantization: str | None = None
    """How frozen linear layers are stored: "nf4", "nf4_double" (with double quantization); None: in `dtype`."""
    compute_capability: str = "8.0"
    """Of the CUDA device: it decides how large the matrix library's workspaces are."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 1
    """Devices in each machine."""
    shard: str | None = None
    """What the devices that share the data also share: "fsdp2", "fsdp1" (parameters, gradients and states)."""
    replicas: int = 1
    """Groups of devices that each hold everything once (hybrid sharding)."""
    reshard_after_forward: bool | None = None
    """FSDP: drop the gathered parameters after the forward pass; None is its default, all but the root's."""
    param_dtype: DType | None = None
    """FSDP's mixed precision: parameters are gathered, and the model runs, in this dtype."""
    reduce_dtype: DType | None = None
    """FSDP's mixed precision: gradients are reduced in this dtype; None is that of the gradients."""
    fp32_shards: bool = False
    """FSDP1: flat parameters that are trained are held in fp32 (accelerate under mixed precision)."""
    use_orig_params: bool = True
    """FSDP1: the optimizer sees the original parameters."""
    tensor: int = 1
    """Devices that share each layer."""
    pipeline: int = 1
    """Stages that share the layers."""
    context: int = 1
    """Devices that share each sequence."""
    expert: int = 1
    """Devices that share the experts."""
    rank: int = 0
    """Which device is weighed."""
    meta_init: bool = True
    """A sharded model is never whole on the device: it is built on the meta device or on the host, and its shards are
    put on the device unit by unit."""
    device: str = "cuda"
    """Whose kernels run: "cuda" or "cpu"."""
    steps: int = 2
    """Steps to run: the first makes the optimizer's state, the second is the steady state."""
    warm: bool = False
    """The optimizer's state (and gradients that are kept) are there from the start: the first step is a steady one."""
    labels_are_inputs: bool = False
    """The labels are the input ids themselves, not a tensor of their own."""
    traced: bool = False
    """Run as a dispatch mode over fake tensors sees it (for comparison with recorded witnesses)."""

    @property
    def mesh(self) -> Mesh:
        """The devices. Raises `UsageError` where they do not divide."""
        world = self.nodes * self.gpus_per_node
        return Mesh(world, self.tensor, self.pipeline, self.context, self.expert, self.replicas)


@dataclass(slots=True)
class TrainingRun:
    """The trace of a training, and what was trained."""

    recipe: Training
    trace: Trace
    parameters: list[Parameter]


class Loop:
    """A training as a plain PyTorch script writes it. Runtimes override what they do otherwise."""

    zero_grad_first: ClassVar[bool] = False
    """`zero_grad` stands before the forward pass, so that a step leaves its gradients; else after the update."""

    no_sync: ClassVar[bool] = False
    """Under FSDP1 the gradients of all micro-batches but the last are summed whole, on every rank."""

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The model, before any technique."""
        if recipe.quantization is not None:
            raise NotModelledError(f"{recipe.quantization} weights", where="quantization")
        return models.build(config, recipe.dtype, where, to_run=True)

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """The techniques of a recipe, in the order in which they are applied.

        Raises:
            WeighError: one of them is not known here.
        """
        if recipe.freeze is not None:
            from weigh.techniques.freezing import Freezing

            yield Freezing(recipe.freeze)
        if recipe.lora is not None:
            yield recipe.lora
        yield from parallel(recipe)
        if recipe.checkpointing is not None:
            from weigh.techniques.checkpointing import Checkpointing

            yield Checkpointing(recipe.checkpointing)

    def optimizer(self, recipe: Training) -> Optimizer:
        """The optimizer, before it owns parameters."""
        if recipe.optimizer is None:
            return _NoOptimizer("foreach")
        implementation = recipe.implementation or ("foreach" if recipe.device == "cuda" else "forloop")
        return optimizer(recipe.optimizer, implementation, recipe.momentum, recipe.weight_decay)

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss of a micro-batch; the logits die with the output."""
        with autocast(recipe.autocast) if recipe.autocast is not None else nullcontext():
            out = model(input_ids, labels)
            loss: Tensor = out.loss
        return loss

    def step(
        self, model: CausalModel, recipe: Training, chosen: Optimizer, input_ids: Tensor, labels: Tensor, number: int
    ) -> None:
        """One step: every micro-batch forward and back, then the update."""
        ledger = state.ledger
        flat = getattr(model, "fsdp1", None)
        for micro_batch in range(recipe.accumulation):
            if flat is not None and self.no_sync:
                flat.sync_gradients = micro_batch == recipe.accumulation - 1
            ledger.mark(FORWARD, number)
            if self.zero_grad_first and micro_batch == 0:
                with by_owner():
                    chosen.zero_grad(recipe.set_to_none)
            loss = self.loss(model, recipe, input_ids, labels)
            if recipe.accumulation > 1:
                loss = loss / recipe.accumulation
            if loss.node is None:
                raise UsageError(
                    "the loss depends on nothing that wants a gradient",
                    hint="A reentrant checkpoint needs inputs that do: use full checkpointing, or freeze less.",
                )
            ledger.mark(BACKWARD, number)
            loss.backward()
            del loss
        with by_owner():
            if recipe.clip:
                ledger.mark(CLIP, number)
                clip_grad_norm(chosen.parameters)
            ledger.mark(STEP, number)
            chosen.step()
            if not self.zero_grad_first:
                chosen.zero_grad(recipe.set_to_none)


PLAIN = Loop()


def run(
    config: Mapping[str, Any], recipe: Training, where: str = "config", unroll: bool = False, loop: Loop = PLAIN
) -> TrainingRun:
    """Train the model of a config for `recipe.steps` steps on ghost tensors.

    Blocks that are alike are run once (`unroll` runs them all); where they turn out not to be alike, they are all run.

    Raises:
        InputError: the config cannot be read.
        UnknownNameError: an unknown optimizer, kernel, ...
    """
    if unroll or any(technique.uneven for technique in loop.techniques(recipe)):
        with unrolled():
            return _run(config, recipe, where, loop)
    try:
        return _run(config, recipe, where, loop)
    except NotSteady:
        with unrolled():
            return _run(config, recipe, where, loop)


def parallel(recipe: Training) -> Iterator[Technique]:
    """What a mesh of devices makes of the model."""
    mesh = recipe.mesh
    for axis in ("pipeline", "context", "expert"):
        if getattr(mesh, axis) > 1:
            raise NotModelledError(f"{axis} parallelism", where=axis)
    if mesh.tensor > 1:
        from weigh.techniques.tensor_parallel import TensorParallel

        yield TensorParallel(mesh.tensor)
    if recipe.shard == "fsdp1":
        from weigh.techniques.fsdp1 import FlatShard

        if mesh.replicas > 1:
            raise NotModelledError("hybrid sharding with FSDP1", where="replicas")
        yield FlatShard(
            mesh.shard,
            recipe.param_dtype,
            recipe.reduce_dtype,
            recipe.use_orig_params,
            recipe.reshard_after_forward is not False,
            recipe.rank,
            (".lora_A", ".lora_B") if recipe.lora is not None else (),
            recipe.fp32_shards,
        )
    elif recipe.shard is not None:
        from weigh.techniques.fsdp2 import FullyShard

        yield FullyShard(
            mesh.shard,
            mesh.replicas,
            recipe.reshard_after_forward,
            recipe.param_dtype,
            recipe.reduce_dtype,
            recipe.rank,
        )


def _run(config: Mapping[str, Any], recipe: Training, where: str, loop: Loop) -> TrainingRun:
    models.check_attention(config, recipe.attention)
    chosen = kernels(recipe.device, recipe.attention_kernel, recipe.traced) | loss_kernel(recipe.loss)
    chosen |= fused_kernels(recipe.fused_kernels, str(config.get("model_type"))) | {"repeat_kv": recipe.repeat_kv}
    with recording(chosen, traced=recipe.traced, attention=recipe.attention) as ledger:
        techniques = tuple(loop.techniques(recipe))
        state.trailing = max((t.trailing for t in techniques), default=0)
        model = _build(config, recipe, where, loop, techniques)
        parameters = model.parameters()
        trainable = [p for p in parameters if p.tensor.requires_grad]
        input_ids = ops.input_tensor((recipe.batch, recipe.sequence), INT64)
        labels = input_ids
        if recipe.target is not None or not recipe.labels_are_inputs:
            length = recipe.target if recipe.target is not None else recipe.sequence
            labels = ops.input_tensor((recipe.batch, length), INT64)
        chosen_optimizer = loop.optimizer(recipe)
        chosen_optimizer.own(trainable)
        if recipe.warm:
            _warm_up(chosen_optimizer, recipe)
        if recipe.device == "cuda" and not recipe.traced:
            ledger.on_phase = Workspaces(recipe.compute_capability).begin
        for number in range(recipe.steps):
            loop.step(model, recipe, chosen_optimizer, input_ids, labels, number)
        return TrainingRun(recipe, ledger.trace(), parameters)


def _build(
    config: Mapping[str, Any], recipe: Training, where: str, loop: Loop, techniques: tuple[Technique, ...]
) -> CausalModel:
    """The model with its techniques; where one shards it, the rest is built beside the device (`meta_init`)."""
    ledger = state.ledger
    beside = recipe.meta_init and any(t.materialises for t in techniques)
    if beside:
        state.ledger = Ledger()
    model = loop.build(config, recipe, where)
    if recipe.target is not None and not model.encoder_decoder:
        raise UsageError("the model has no decoder that reads a target", where="target", hint="Leave it out.")
    for technique in techniques:
        if technique.materialises and beside:
            ledger.repeats.extend(state.ledger.repeats)
            state.ledger = ledger
        technique.apply(model)
    if beside:
        for module in model.modules():
            for _, tensor in module.own_tensors():
                tensor.storage.move_to(ledger)
    return model


def _warm_up(chosen: Optimizer, recipe: Training) -> None:
    chosen.prepare()
    if not recipe.set_to_none:
        for parameter in chosen.parameters:
            parameter.tensor.grad = ops.zeros_like(parameter.tensor, GRADIENT)


class _NoOptimizer(Optimizer):
    """Gradients are made and dropped."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """Nothing."""
        return []

    def step(self) -> None:
        """Nothing."""
