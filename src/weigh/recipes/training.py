"""Training steps: forward, loss, backward, clipping, optimizer step, as a plain PyTorch loop does them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weigh import models
from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64, DType
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.ledger import Ledger, NotSteady
from weigh.ghost.nn import Parameter
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import by_owner, recording
from weigh.ghost.tensor import Tensor
from weigh.kernels import kernels
from weigh.models.common import CausalModel
from weigh.optimizers import Optimizer, optimizer
from weigh.optimizers.base import clip_grad_norm
from weigh.trace.events import BACKWARD, CLIP, FORWARD, GRADIENT, STEP, Trace

if TYPE_CHECKING:
    from weigh.techniques import Technique
    from weigh.techniques.fsdp2 import FullyShard
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
    """transformers' attention implementation: "sdpa", or "eager", the only one of some families."""
    attention_kernel: str | None = None
    """Forces the kernel behind sdpa: "flash", "efficient", "cudnn" or "math"."""
    checkpointing: str | None = None
    """None, "full" (every block, non-reentrant) or "reentrant"."""
    optimizer: str | None = "adamw"
    """ "adamw", "adam", "sgd", or None for a step without one."""
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
    shard: FullyShard | None = None
    """Parameters sharded over ranks (see `weigh.techniques.fsdp2`)."""
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


@dataclass(slots=True)
class TrainingRun:
    """The trace of a training, and what was trained."""

    recipe: Training
    trace: Trace
    parameters: list[Parameter]


def run(config: Mapping[str, Any], recipe: Training, where: str = "config", unroll: bool = False) -> TrainingRun:
    """Train the model of a config for `recipe.steps` steps on ghost tensors.

    Blocks that are alike are run once (`unroll` runs them all); where they turn out not to be alike, they are all run.

    Raises:
        InputError: the config cannot be read.
        UnknownNameError: an unknown optimizer, kernel, ...
    """
    if unroll or any(technique.uneven for technique in techniques(recipe)):
        with unrolled():
            return _run(config, recipe, where)
    try:
        return _run(config, recipe, where)
    except NotSteady:
        with unrolled():
            return _run(config, recipe, where)


def techniques(recipe: Training) -> Iterator[Technique]:
    """The techniques of a recipe, in the order in which they are applied."""
    if recipe.freeze is not None:
        from weigh.techniques.freezing import Freezing

        yield Freezing(recipe.freeze)
    if recipe.lora is not None:
        yield recipe.lora
    if recipe.shard is not None:
        yield recipe.shard
    if recipe.checkpointing is not None:
        from weigh.techniques.checkpointing import Checkpointing

        yield Checkpointing(recipe.checkpointing)


def _run(config: Mapping[str, Any], recipe: Training, where: str) -> TrainingRun:
    models.check_attention(config, recipe.attention)
    chosen = kernels(recipe.device, recipe.attention_kernel, recipe.traced)
    with recording(chosen, traced=recipe.traced, attention=recipe.attention) as ledger:
        model = models.build(config, recipe.dtype, where, to_run=True)
        if recipe.target is not None and not model.encoder_decoder:
            raise UsageError("the model has no decoder that reads a target", where="target", hint="Leave it out.")
        for technique in techniques(recipe):
            technique.apply(model)
        parameters = model.parameters()
        trainable = [p for p in parameters if p.tensor.requires_grad]
        input_ids = ops.input_tensor((recipe.batch, recipe.sequence), INT64)
        labels = input_ids
        if recipe.target is not None or not recipe.labels_are_inputs:
            length = recipe.target if recipe.target is not None else recipe.sequence
            labels = ops.input_tensor((recipe.batch, length), INT64)
        chosen_optimizer = _optimizer(recipe)
        chosen_optimizer.own(trainable)
        if recipe.warm:
            _warm_up(chosen_optimizer, recipe)
        for number in range(recipe.steps):
            _step(model, recipe, ledger, chosen_optimizer, input_ids, labels, number)
        return TrainingRun(recipe, ledger.trace(), parameters)


def _optimizer(recipe: Training) -> Optimizer:
    if recipe.optimizer is None:
        return _NoOptimizer("foreach")
    implementation = recipe.implementation or ("foreach" if recipe.device == "cuda" else "forloop")
    return optimizer(recipe.optimizer, implementation, recipe.momentum, recipe.weight_decay)


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


def _step(
    model: CausalModel, recipe: Training, ledger: Ledger, chosen: Optimizer, input_ids: Any, labels: Any, number: int
) -> None:
    for _ in range(recipe.accumulation):
        ledger.mark(FORWARD, number)
        with autocast(recipe.autocast) if recipe.autocast is not None else nullcontext():
            out = model(input_ids, labels)
            loss = out.loss
        del out
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
        chosen.zero_grad(recipe.set_to_none)
