"""Training steps of a real model: the loop that `weigh.recipes.loop` predicts, as a user of PyTorch writes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from weigh.errors import NotModelledError, UsageError
from weigh.measure.watcher import Watcher
from weigh.measure.workload import Workload, build, model_inputs, model_loss, torch_dtype
from weigh.trace.events import BACKWARD, CLIP, FORWARD, STEP

if TYPE_CHECKING:
    from weigh.recipes.training import Training
    from weigh.techniques.adapters.base import Adapter

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "muon": torch.optim.Muon,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "torch_adafactor": torch.optim.Adafactor,
}


def workload(
    config: Mapping[str, Any], recipe: Training, device: str, initialise: bool, prepare: Callable[[Any], Any]
) -> Workload:
    """The model of a config with the recipe's techniques, then whatever `prepare` makes of it, and random ids.

    Raises:
        InputError: transformers cannot build the model.
        UsageError: the model has not what a technique needs.
    """
    model = build(config, recipe.dtype, recipe.attention, device, initialise).train()
    model = apply_techniques(model, recipe)
    vocabulary, settings = model.config.get_text_config().vocab_size, model.config.to_dict()
    plain, model = model, prepare(model)
    batch = model_inputs(plain, recipe.batch, recipe.sequence, device)
    batch["labels"] = batch.get("input_ids")
    if recipe.target is not None or not recipe.labels_are_inputs or batch["labels"] is None:
        length = recipe.sequence if recipe.target is None else recipe.target
        batch["labels"] = torch.randint(0, vocabulary, (recipe.batch, length), device=device)
    if "use_cache" in settings:
        batch["use_cache"] = False
    return Workload(model, batch, model_loss)


def apply_techniques(model: Any, recipe: Training) -> Any:
    """Freezing, checkpointing and LoRA, each by the library that has it."""
    if recipe.freeze is not None:
        freeze(model, recipe.freeze)
    if recipe.checkpointing is not None:
        if not callable(getattr(model, "gradient_checkpointing_enable", None)):
            hint = "Checkpoint inside the model, and leave the setting out."
            raise UsageError("the model is none of transformers'", where="checkpointing", hint=hint)
        reentrant = recipe.checkpointing == "reentrant"
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if recipe.checkpoint_every > 1:
            for number, block in enumerate(blocks(model), 1):
                block.gradient_checkpointing = number % recipe.checkpoint_every == 0
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
    return model if recipe.tuned is None else adapt(model, recipe.tuned)


def adapt(model: Any, adapter: Adapter) -> Any:
    """The model with adapters, as peft places them."""
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    if adapter.input_gradients:
        model.enable_input_require_grads()
    settings = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[adapter.kind.upper()]](**adapter.as_peft(), task_type="CAUSAL_LM")
    try:
        device = model.device
        return get_peft_model(model, settings, autocast_adapter_dtype=adapter.autocast_adapter).to(device)
    except ValueError as error:
        where = "lora" if adapter.kind == "lora" else "adapter"
        raise UsageError(str(error), where=where, hint="Name layers that the model has.") from None


def freeze(model: Any, part: str) -> None:
    """The parts of `weigh.techniques.freezing`."""
    stack = blocks(model)
    if part == "embeddings":
        model.get_input_embeddings().requires_grad_(False)
    elif part == "layers_first_half":
        for block in stack[: len(stack) // 2]:
            block.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(False)
    else:
        model.requires_grad_(False)
        kept = stack[-1] if part == "all_but_last_layer" else model.get_output_embeddings()
        kept.requires_grad_(True)


def blocks(model: torch.nn.Module) -> list[Any]:
    """The model's repeated blocks, in order: those of its first stack.

    Raises:
        UsageError: it has no stack.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            return list(module)
    raise UsageError("the model has no stack of blocks", hint="It looks for the first torch.nn.ModuleList.")


def make_optimizer(parameters: list[torch.nn.Parameter], recipe: Training) -> torch.optim.Optimizer | None:
    """The recipe's optimizer.

    Raises:
        NotModelledError: PyTorch has none of that name.
    """
    if recipe.optimizer is None:
        return None
    if recipe.optimizer == "adamw_8bit":
        import bitsandbytes

        made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=1e-4)
        return made
    if recipe.optimizer not in OPTIMIZERS:
        hint = "A function that returns (model, batch, loss, optimizer) brings its own."
        raise NotModelledError(f"a real run of {recipe.optimizer}", where="optimizer", hint=hint)
    settings: dict[str, Any] = {"lr": 1e-4}
    if recipe.implementation is not None:
        settings["foreach"] = recipe.implementation == "foreach"
        settings["fused"] = True if recipe.implementation == "fused" else None
    if recipe.optimizer in ("sgd", "rmsprop"):
        settings["momentum"] = recipe.momentum
    if recipe.weight_decay is not None:
        settings["weight_decay"] = recipe.weight_decay
    return OPTIMIZERS[recipe.optimizer](parameters, **settings)


def _step_in_backward(work: Workload, parameters: list[torch.nn.Parameter], recipe: Training, watcher: Watcher) -> None:
    """An optimizer for each parameter, as PyTorch's tutorial on it has them."""
    singles = {p: make_optimizer([p], recipe) for p in parameters}

    def step(parameter: torch.nn.Parameter) -> None:
        single = singles[parameter]
        assert single is not None
        single.step()
        watcher.stepped(work.model, single)
        single.zero_grad()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(step)


def train(work: Workload, recipe: Training, device: str, watcher: Watcher) -> None:
    """`recipe.steps` steps."""
    parameters = [p for p in work.model.parameters() if p.requires_grad]
    if recipe.loss_scaling:
        raise NotModelledError("a real run with a GradScaler", where="loss_scaling")
    optimizer = work.optimizer(parameters) if work.optimizer else make_optimizer(parameters, recipe)
    if recipe.optimizer_in_backward:
        _step_in_backward(work, parameters, recipe, watcher)
        optimizer = None
    average = copy.deepcopy(work.model) if recipe.ema else None
    for number in range(recipe.steps):
        for _ in range(recipe.accumulation):
            watcher.mark(FORWARD, number)
            with nullcontext() if recipe.autocast is None else torch.autocast(device, torch_dtype(recipe.autocast)):
                loss = work.loss(work.model, work.batch)
            if recipe.accumulation > 1:
                loss = loss / recipe.accumulation
            watcher.mark(BACKWARD, number)
            loss.backward()
            del loss
        if recipe.clip:
            watcher.mark(CLIP, number)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        watcher.mark(STEP, number)
        if optimizer is not None:
            optimizer.step()
            watcher.stepped(work.model, optimizer)
            if average is not None:  # as `AveragedModel.update_parameters`
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(work.model.parameters()), 0.001)
            optimizer.zero_grad(set_to_none=recipe.set_to_none)
        else:
            for parameter in parameters:
                parameter.grad = None
    watcher.end()
