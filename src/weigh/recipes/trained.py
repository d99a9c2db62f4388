"""A training run on ghost tensors: the model built, techniques applied, the steps of a loop, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weigh import models
from weigh.dims import Size
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import ops
from weigh.ghost.host import hosts_of
from weigh.ghost.ledger import Ledger, NotSteady
from weigh.ghost.nn import Parameter
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import inside_unit, recording, state
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels import kernels
from weigh.models.common import CausalModel
from weigh.optimizers import Optimizer
from weigh.recipes.dividing import ZERO
from weigh.recipes.loop import PLAIN, Loop, batch_of, context_rank
from weigh.recipes.training import Training
from weigh.records import dataclass, field, replace
from weigh.trace.events import GRADIENT, OPTIMIZER_STATE, Trace

if TYPE_CHECKING:
    from weigh.techniques import Technique
    from weigh.trace.replay import Streams

OFFLOADED = "shards, their gradients and the optimizer of FSDP, pinned on the host, at their peak"


@dataclass(frozen=True, slots=True)
class Counted:
    """How many parameters there are, adapters among them and packed ones unpacked."""

    total: Size
    trainable: Size
    here: bool = False
    """On this rank alone: nobody built the whole model."""

    @classmethod
    def of(cls, model: CausalModel, here: bool) -> Counted:
        """Those of a model."""
        parameters = model.parameters()
        trained = (p.count * p.numel for p in parameters if p.tensor.requires_grad)
        return cls(sum(p.count * p.numel for p in parameters), sum(trained), here)


@dataclass(slots=True)
class TrainingRun:
    """The trace of a training, and what was trained."""

    recipe: Training
    trace: Trace
    parameters: list[Parameter]
    """What the rank holds."""
    counted: Counted
    """The model's parameters, all ranks together."""
    attention: str
    """How it attends, in the program's words."""
    elsewhere: Mapping[str, Size] = field(default_factory=dict)
    """Bytes outside of the device's allocator, by what and where."""
    waits_after: tuple[str, ...] = ()
    """Phases after which the host waits for the device."""

    @property
    def streams(self) -> Streams | None:
        """The CUDA streams of what is not computed on the usual one, for a replay of the trace."""
        if self.recipe.shard == "fsdp1":
            from weigh.techniques.fsdp1 import STREAMS

            if not self.recipe.limit_all_gathers:  # every block waits for the stream that reads it
                waiting = dict.fromkeys(STREAMS.waiting, len(self.trace.allocations))
                return replace(STREAMS, waiting=waiting, waits_after=self.waits_after)
        elif self.recipe.shard == "fsdp2":
            from weigh.techniques.fsdp2 import STREAMS
        else:
            return None
        return replace(STREAMS, waits_after=self.waits_after)


def run(
    config: Mapping[str, Any],
    recipe: Training,
    where: str = "config",
    unroll: bool = False,
    loop: Loop = PLAIN,
    evaluate: bool = False,
) -> TrainingRun:
    """Train the model of a config for `recipe.steps` steps on ghost tensors, and then `evaluate` it.

    Blocks that are alike are run once (`unroll` runs them all); where they turn out not to be alike, they are all run.

    Raises:
        InputError: the config cannot be read.
        UnknownNameError: an unknown optimizer, kernel, ...
    """
    unroll = unroll or recipe.shard in ZERO  # buckets end where they are full, whatever the block
    if unroll or any(technique.uneven for technique in loop.techniques(recipe)):
        with unrolled():
            return _run(config, recipe, where, loop, evaluate)
    try:
        return _run(config, recipe, where, loop, evaluate)
    except NotSteady:
        with unrolled():
            return _run(config, recipe, where, loop, evaluate)


def _run(config: Mapping[str, Any], recipe: Training, where: str, loop: Loop, evaluate: bool) -> TrainingRun:
    models.check_attention(config, recipe.attention)
    if recipe.adapter is not None and not loop.peft:
        raise NotModelledError(f"{recipe.adapter.kind} in a program that brings its own modules", where="adapter")
    if recipe.offload_activations and not loop.offloads:
        raise NotModelledError("activations on the host in this program", where="offload_activations")
    chosen = kernels(recipe.device, recipe.attention_kernel, recipe.traced, recipe.unchecked_attention)
    chosen |= loop.kernels(recipe, str(config.get("model_type")))
    if recipe.context > 1 and not loop.own_parallelism:
        from weigh.kernels.ring import shared_attention

        chosen |= shared_attention(recipe.context_method, recipe.context, context_rank(recipe), chosen)
    with recording(chosen, traced=recipe.traced, attention=recipe.attention) as ledger:
        techniques = tuple(loop.techniques(recipe))
        state.trailing = max((t.trailing for t in techniques), default=0)
        model, counted = _build(config, recipe, where, loop, techniques)
        parameters = _held(model)
        trainable = [p for p in parameters if p.tensor.requires_grad]
        pipelined = recipe.pipeline > 1 and not loop.own_parallelism
        batch = recipe.batch * (recipe.accumulation if pipelined else 1)
        input_ids, labels = batch_of(model, replace(recipe, context=1) if loop.own_parallelism else recipe, batch)
        if pipelined:
            from weigh.recipes.pipelining import Pipeline, Stages

            if not isinstance(model, Stages):
                raise NotModelledError(
                    "pipeline parallelism of a program that brings its own modules", where="pipeline"
                )
            model.schedule = Pipeline(model, recipe)
        chosen_optimizer = loop.optimizer(recipe)
        if (chosen_optimizer.hooks and (recipe.accumulation > 1 or recipe.loss_scaling)) or (
            recipe.optimizer_in_backward and recipe.clip
        ):
            raise UsageError(
                "an optimizer in the backward pass sees each gradient once and alone",
                where="optimizer_in_backward" if recipe.optimizer_in_backward else "optimizer",
                hint="Leave out accumulation, clip and loss_scaling.",
            )
        chosen_optimizer.own(trainable)
        average = _averages(model, recipe)
        scaler = loop.scaler(recipe)
        if recipe.warm:
            _warm_up(chosen_optimizer, recipe)
        if recipe.device == "cuda" and not recipe.traced:
            ledger.on_phase = loop.workspaces(recipe, model).begin
        for number in range(recipe.steps):
            loop.step(model, recipe, chosen_optimizer, input_ids, labels, number, scaler)
        if evaluate:
            loop.evaluate(model, recipe)
        del average
        elsewhere: dict[str, Size] = dict(chosen_optimizer.elsewhere)
        elsewhere |= {what: host.peak() for what, host in hosts_of(model).items()}
        if recipe.offload_parameters and recipe.shard == "fsdp1":
            elsewhere[OFFLOADED] = model.fsdp1.on_host()  # type: ignore[attr-defined]
        return TrainingRun(
            recipe, ledger.trace(), parameters, counted, loop.attention(recipe), elsewhere, loop.waits_after
        )


def _build(
    config: Mapping[str, Any], recipe: Training, where: str, loop: Loop, techniques: tuple[Technique, ...]
) -> tuple[CausalModel, Counted]:
    """The model with its techniques; where one shards it, the rest is built beside the device (`meta_init`).

    Parameters are counted before they are divided.
    """
    ledger = state.ledger
    beside = Ledger() if recipe.meta_init and any(t.materialises for t in techniques) else None
    if beside is not None:
        state.ledger = beside
    model = loop.build(config, recipe, where)
    if recipe.target is not None and not model.encoder_decoder:
        raise UsageError("the model has no decoder that reads a target", where="target", hint="Leave it out.")
    counted = None
    last = max((t for t in techniques if t.materialises), key=techniques.index, default=None)
    for technique in techniques:
        if technique is last and beside is not None:
            ledger.repeats.extend(state.ledger.repeats)
            state.ledger = ledger
        if technique.divides and counted is None:
            counted = Counted.of(model, loop.builds_share(recipe))
        technique.apply(model)
    if beside is not None:
        for module in model.modules():
            for _, tensor in module.own_tensors():
                if tensor.storage.ledger is beside:
                    tensor.storage.move_to(ledger)
    return model, counted or Counted.of(model, loop.builds_share(recipe))


def _held(model: CausalModel) -> list[Parameter]:
    """The parameters of this rank."""
    zero3 = getattr(model, "zero3", None)
    found: list[Parameter] = model.parameters() if zero3 is None else zero3.held
    return found


def _averages(model: CausalModel, recipe: Training) -> list[Tensor]:
    """The copy that averages, buffers and all; an update changes it in place.

    Raises:
        NotModelledError: the parameters are held in another form than the model's.
    """
    if not recipe.ema:
        return []
    if recipe.shard not in (None, "fsdp2"):
        raise NotModelledError(f"averaged weights under {recipe.shard}", where="ema")
    copies, seen = [], set()
    for module in model.modules():
        for _, tensor in module.own_tensors():
            if tensor.storage.number in seen:
                continue
            seen.add(tensor.storage.number)
            with inside_unit(tensor.storage.unit):
                copies.append(empty(tensor.shape, tensor.dtype, "aten::clone", purpose=OPTIMIZER_STATE))
    return copies


def _warm_up(chosen: Optimizer, recipe: Training) -> None:
    chosen.prepare()
    if not recipe.set_to_none:
        for parameter in chosen.parameters:
            parameter.tensor.grad = ops.zeros_like(parameter.tensor, GRADIENT)
