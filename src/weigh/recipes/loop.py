"""The loop of a training as a plain PyTorch script writes it: forward, loss, backward, clipping, optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from weigh import models
from weigh.dims import Size
from weigh.dtypes import FLOAT16, INT32, INT64, UINT8
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.host import where_updates_are
from weigh.ghost.state import by_owner, no_grad, state
from weigh.ghost.tensor import Tensor
from weigh.kernels import fused_kernels
from weigh.kernels.losses import loss_kernel
from weigh.kernels.workspaces import Workspaces
from weigh.models.common import CausalModel
from weigh.models.experts import LOOPED
from weigh.optimizers import Choice, Optimizer, implementation_of, kind_of, optimizer
from weigh.optimizers.base import clip_grad_norm
from weigh.optimizers.in_backward import InBackward
from weigh.optimizers.scaler import GradScaler
from weigh.recipes.dividing import ZERO, compiled, fuses_adapters, parallel, sharded_optimizer
from weigh.recipes.training import PROGRAM_OF_LOSS, Training
from weigh.trace.events import BACKWARD, CLIP, EVALUATE, FORWARD, STEP

if TYPE_CHECKING:
    from weigh.techniques import Technique
    from weigh.techniques.adapters.base import Adapter


class StagePeak(NamedTuple):
    """A steady step of one pipeline stage."""

    stage: int
    rank: int
    """The first of the stage's."""
    in_flight: int
    """Passes forward that wait for theirs back, at most."""
    peak: int
    """Bytes, in blocks of 512."""


def _checked(recipe: Training, adapter: Adapter) -> Adapter:
    """An adapter that can be used beside the rest of a recipe."""
    adapter.check(recipe.checkpointing is not None, recipe.mesh.context > 1)
    if recipe.mesh.tensor > 1:
        raise NotModelledError("adapters of layers that tensor parallelism cuts", where="tensor")
    return adapter


def _packed(recipe: Training) -> Technique:
    """Layers of AWQ or HQQ."""
    from weigh.techniques.awq import Awq
    from weigh.techniques.hqq import Hqq

    if recipe.upcast or recipe.shard:
        raise NotModelledError(f"{recipe.quantization} layers, upcast or sharded,", where="quantization")
    if recipe.quantization == "awq":
        return Awq(128 if recipe.group_size is None else recipe.group_size)
    if recipe.autocast is not None or recipe.group_size == 0:
        raise NotModelledError("hqq layers under autocast, or without groups,", where="quantization")
    return Hqq(recipe.group_size or 64)


class Loop:
    """A training as a plain PyTorch script writes it. Runtimes override what they do otherwise."""

    zero_grad_first: ClassVar[bool] = False
    """`zero_grad` stands before the forward pass, so that a step leaves its gradients; else after the update."""

    waits_after: ClassVar[tuple[str, ...]] = ()
    """Phases after which the script reads a value, so that the host waits for the device."""

    offloads: ClassVar[bool] = True
    """Activations can wait on the host."""

    no_sync: ClassVar[bool] = False
    """Under FSDP1 the gradients of all micro-batches but the last are summed whole, on every rank."""

    own_parallelism: ClassVar[bool] = False
    """Stages, and batches and attention where devices share a sequence, are the program's own."""

    unpacked_gptq: ClassVar[bool] = False
    """GPTQ's layers unpack their weights by single operations (see `weigh.techniques.gptq`)."""
    peft: ClassVar[bool] = True
    """Adapters are peft's; programs that bring their own have LoRA alone."""
    early_bitsandbytes: ClassVar[bool] = False
    """Four-bit layers are those of bitsandbytes before 0.43."""

    def stages(self, config: Mapping[str, Any], recipe: Training, where: str) -> tuple[StagePeak, ...]:
        """A steady step on each pipeline stage, where the program has some."""
        return ()

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The model, before any technique."""
        if recipe.pipeline > 1:
            from weigh.recipes.pipelining import build_stages

            return build_stages(config, recipe, where)
        return models.build(config, recipe.dtype, where, to_run=True)

    def attention(self, recipe: Training) -> str:
        """Which implementation of attention runs."""
        return recipe.attention + (f" ({recipe.attention_kernel})" if recipe.attention_kernel else "")

    def builds_share(self, recipe: Training) -> bool:
        """`build` makes the part of the model that one rank has."""
        return recipe.pipeline > 1

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """The techniques of a recipe, in the order in which they are applied.

        Raises:
            WeighError: one of them is not known here.
        """
        if recipe.quantization is not None and recipe.looped_experts:
            from weigh.techniques.looped_experts import LoopedExperts

            yield LoopedExperts()
        if recipe.double_quantization and recipe.quantization not in ("nf4", "fp4"):
            hint = "Leave it out, or quantize to nf4 or fp4."
            raise UsageError("only four-bit scales can be quantized too", where="double_quantization", hint=hint)
        if recipe.quantization in ("awq", "hqq"):
            yield _packed(recipe)
        elif recipe.quantization == "gptq":
            from weigh.techniques.gptq import Gptq

            if recipe.upcast:
                raise UsageError("beside GPTQ's layers nothing is upcast", where="upcast", hint="Leave it out.")
            group_size = 128 if recipe.group_size is None else recipe.group_size
            storage = recipe.dtype if recipe.shard is not None else INT32
            yield Gptq(group_size, storage, self.unpacked_gptq)
        elif recipe.quantization is not None:
            from weigh.techniques.quantization import Quantization

            storage = recipe.dtype if recipe.shard is not None else UINT8
            early = self.early_bitsandbytes
            yield Quantization(recipe.quantization, recipe.double_quantization, storage, recipe.upcast, early)
        if recipe.freeze is not None:
            from weigh.techniques.freezing import Freezing

            yield Freezing(recipe.freeze)
        if recipe.tuned is not None:
            yield _checked(recipe, recipe.tuned)
        if fuses_adapters(recipe):
            from weigh.techniques.fused_lora import FusedLora

            yield FusedLora()
        yield from parallel(recipe)
        yield from self._of_activations(recipe)

    def _of_activations(self, recipe: Training) -> Iterator[Technique]:
        """Which activations are kept, and where."""
        if recipe.checkpointing is not None:
            from weigh.techniques.checkpointing import Checkpointing

            yield Checkpointing(recipe.checkpointing, every=recipe.checkpoint_every)
        elif recipe.checkpoint_every > 1:
            raise UsageError("nothing is checkpointed", where="checkpoint_every", hint="Give checkpointing too.")
        if recipe.compile and recipe.offload_activations:
            raise NotModelledError("compiled models whose activations wait on the host", where="compile")
        if recipe.compile:
            yield compiled(recipe)
        if recipe.offload_activations:
            yield self.offloading(recipe)

    def offloading(self, recipe: Training) -> Technique:
        """How activations are taken to the host and back."""
        from weigh.techniques.offloading import SaveOnHost

        return SaveOnHost()

    def optimizer(self, recipe: Training) -> Optimizer:
        """The optimizer, before it owns parameters."""
        if recipe.optimizer is None:
            return _NoOptimizer(Choice("none"))
        if recipe.shard is not None and (recipe.optimizer_in_backward or not kind_of(recipe.optimizer).shardable):
            what = "an optimizer in the backward pass" if recipe.optimizer_in_backward else recipe.optimizer
            raise NotModelledError(f"{what} over shards", where="optimizer", hint="Leave out shard.")
        if recipe.mesh.data > 1 and (recipe.optimizer_in_backward or kind_of(recipe.optimizer).hooks):
            what = "an update in the backward pass, which goes before gradients are summed over devices,"
            raise NotModelledError(what, where="optimizer", hint="Take one device for the data.")
        on_host = recipe.offload_parameters and recipe.shard in ("fsdp1", "fsdp2")
        implementation = recipe.implementation or implementation_of(
            recipe.optimizer, "cpu" if on_host else recipe.device
        )
        choice = Choice(
            recipe.optimizer,
            implementation,
            recipe.momentum,
            recipe.weight_decay,
            recipe.projection_rank,
            recipe.projection_targets,
            recipe.optimizer_block,
        )
        if recipe.optimizer_in_backward:
            if kind_of(recipe.optimizer).hooks:
                hint = "Leave it out."
                raise UsageError(f"{recipe.optimizer} has hooks of its own", where="optimizer_in_backward", hint=hint)
            return InBackward(choice)
        return sharded_optimizer(recipe, choice) if recipe.shard in ZERO else optimizer(choice)

    def scaler(self, recipe: Training) -> GradScaler | None:
        """What scales the loss, if anything does."""
        if not recipe.loss_scaling:
            return None
        if recipe.dtype is FLOAT16 and not (recipe.tuned is not None and recipe.tuned.autocast_adapter):
            raise UsageError(
                "a GradScaler refuses gradients in fp16",
                where="loss_scaling",
                hint="Keep the parameters in fp32 under fp16 autocast.",
            )
        return GradScaler()

    def kernels(self, recipe: Training, family: str) -> dict[str, Any]:
        """The kernels that differ from the device's usual ones."""
        if recipe.loss in PROGRAM_OF_LOSS:
            program = PROGRAM_OF_LOSS[recipe.loss]
            what = f"the loss {recipe.loss} is {program}'s, and not of the program that runs here"
            raise UsageError(what, where="loss", hint=f"Take another, or --runtime {program}.")
        fused = fused_kernels(recipe.fused_kernels, family)
        experts = {"experts": LOOPED} if recipe.looped_experts else {}
        return (
            {"compute_capability": recipe.compute_capability}
            | loss_kernel(recipe.loss)
            | fused
            | {"repeat_kv": recipe.repeat_kv}
            | experts
        )

    def workspaces(self, recipe: Training, model: CausalModel) -> Workspaces:
        """What libraries take of the allocator's memory as phases begin."""
        return Workspaces(recipe.compute_capability)

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss of a micro-batch; the logits die with the output."""
        with autocast(recipe.autocast) if recipe.autocast is not None else nullcontext():
            out = model(input_ids, labels)
            loss: Tensor = out.loss
        return loss

    def micro_batches(
        self,
        model: CausalModel,
        recipe: Training,
        chosen: Optimizer,
        input_ids: Tensor,
        labels: Tensor,
        number: int,
        scaler: GradScaler | None,
    ) -> None:
        """One after the other, each forward and back."""
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
            if scaler is not None:
                scaler.scale(loss).backward()
            else:
                loss.backward()
            del loss

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
        """One step: every micro-batch forward and back, then the update."""
        ledger = state.ledger
        flat = getattr(model, "fsdp1", None)
        schedule = getattr(model, "schedule", None)
        if schedule is not None:
            schedule.step(chosen, input_ids, labels, number, self.zero_grad_first)
        else:
            self.micro_batches(model, recipe, chosen, input_ids, labels, number, scaler)
        with flat.where_updates_are() if flat is not None else where_updates_are(model), by_owner():
            if recipe.clip and not chosen.clips:
                ledger.mark(CLIP, number)
                if scaler is not None:
                    scaler.unscale(chosen)
                clip_grad_norm(chosen.parameters)
            ledger.mark(STEP, number)
            if scaler is not None:
                scaler.unscale(chosen)
            chosen.step()
            if scaler is not None:
                scaler.update()
            if not self.zero_grad_first:
                chosen.zero_grad(recipe.set_to_none)

    def evaluate(self, model: CausalModel, recipe: Training) -> None:
        """An evaluation: batches without a graph, of each of which the loss is read.

        Raises:
            NotModelledError: predictions are kept, and how the program does so was not read.
        """
        if recipe.eval_keeps != "loss":
            raise NotModelledError("predictions that are kept, outside of the Trainer,", where="eval_keeps")
        model.train(False)
        with no_grad():
            for number in range(2):  # a second batch does what all others do
                state.ledger.mark(EVALUATE, number)
                input_ids, labels = batch_of(model, recipe, recipe.eval_batch or recipe.batch)
                self.loss(model, recipe, input_ids, labels)


PLAIN = Loop()


def batch_of(model: CausalModel, recipe: Training, batch: Size) -> tuple[Tensor, Tensor]:
    """What a model reads, and the labels (batch, length)."""
    whole = model.inputs(batch, recipe.sequence, recipe.dtype)
    if recipe.target is None and recipe.labels_are_inputs and model.features is None:
        labels = whole
    else:
        labels = ops.input_tensor((batch, recipe.target or recipe.sequence), INT64)
    if recipe.context == 1:
        return whole, labels
    if model.features is not None or recipe.target is not None:
        raise NotModelledError("an encoder and a decoder that share their sequences", where="context")
    return _piece(whole, recipe), _piece(labels, recipe)


def context_rank(recipe: Training) -> int:
    """Ranks that share a sequence stand next to each other, around those that share layers (torchtitan's mesh)."""
    return recipe.rank // recipe.tensor % recipe.context


def _piece(whole: Tensor, recipe: Training) -> Tensor:
    """A rank's piece of the tokens, for which the batch is resized in place: its storage stays as large as it was."""
    if recipe.sequence % (2 * recipe.context):
        what = f"{recipe.context} devices do not share {recipe.sequence} tokens, two pieces each"
        raise UsageError(what, where="context", hint=f"Take a multiple of {2 * recipe.context}.")
    shape = whole.shape[0], recipe.sequence // recipe.context
    return Tensor(whole.storage, shape, None, whole.dtype, shape[0] * shape[1])


class _NoOptimizer(Optimizer):
    """Gradients are made and dropped."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """Nothing."""
        return []

    def step(self) -> None:
        """Nothing."""
