"""Predicted and measured peaks beside each other in a real training of your own. Needs the extra `weigh[torch]`.

    with weigh.watch(model) as seen:
        ...                      # the training, whatever it does
    print(seen.text())

    Trainer(..., callbacks=[weigh.hooks.TrainerMemoryCallback()])

Nothing has to be said about the training: batch, lengths, precision, optimizer, checkpointing and adapters are read
off what runs. On a GPU PyTorch's own counters measure, which costs nothing; on the CPU a dispatch mode does, which
slows the training down, and sees what ops return and not what kernels allocate inside.
"""

from __future__ import annotations

from weigh.measure import requirements

requirements.check()

import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from inspect import signature
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from weigh import dtypes, runtimes
from weigh.errors import InputError, NotModelledError, WeighError
from weigh.measure.case import append, training_case
from weigh.measure.counters import Counters
from weigh.measure.recorder import Recorder
from weigh.measure.training import OPTIMIZERS
from weigh.recipes import trained
from weigh.recipes.training import Training
from weigh.sources.live import read_live
from weigh.techniques.lora import Lora
from weigh.trace.events import BACKWARD, FORWARD, INPUT, LOAD, STEP, Trace
from weigh.trace.peak import PhasePeak, phase_peaks
from weigh.units import format_bytes

log = logging.getLogger("weigh")

__all__ = ["TrainerMemoryCallback", "watch"]


class watch:
    """Watches the training steps that happen inside of it, and lays the prediction beside them.

    `model` is a transformers model, with or without peft's adapters. `clip` says whether gradients are clipped, which
    cannot be seen from here. `case` is a file of measured cases (JSON lines) to which the run is added at the end.
    Peaks are logged at the level INFO to the logger "weigh", or go to standard error where no logging is set up.
    """

    def __init__(self, model: Any, *, clip: bool = False, case: str | None = None, runtime: str = "pytorch") -> None:
        self.model = model
        self.clip = clip
        self.case = case
        self.runtime = runtime
        self.device: str = next(model.parameters()).device.type
        self.steps = 0
        """Optimizer steps that were seen."""
        self._passes = 0
        self._batch: tuple[int, int] | None = None
        self._autocast: torch.dtype | None = None
        self._labels_are_inputs = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._watcher: Recorder | Counters | None = None
        self._stack = ExitStack()
        self._peaks: list[PhasePeak] | list[dict[str, Any]] = []

    def __enter__(self) -> watch:
        if self.device == "cuda":
            self._watcher = Counters()
        else:
            recorder: Recorder = self._stack.enter_context(Recorder(self.device))
            recorder.mark(LOAD)
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                recorder.adopt(tensor)
            self._watcher = recorder
        self._watcher.loaded(self.model, [])
        for handle in (
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ):
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._watcher is not None
        self._watcher.end()
        self._stack.close()
        if kind is None:
            _say(self.text())
            if self.case is not None:
                self._try_to_save(self.case)

    def _try_to_save(self, path: str) -> None:
        """A training that was long must not end in an error of its witness."""
        try:
            self.save(path)
        except WeighError as error:
            log.warning("weigh: no case was saved: %s", error)

    # -- what happens meanwhile
    def _before_forward(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.is_grad_enabled() or not self.model.training:
            return
        assert self._watcher is not None
        self._watcher.mark(FORWARD, self.steps)
        self._passes += 1
        if isinstance(self._watcher, Recorder):
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    self._watcher.adopt(tensor)
                    self._watcher.label(tensor, INPUT)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, torch.Tensor) and ids.dim() == 2:
            self._batch = max(self._batch or (0, 0), (ids.shape[0], ids.shape[1]), key=lambda b: b[0] * b[1])
            self._labels_are_inputs = kwargs.get("labels") is ids
        on = torch.is_autocast_enabled(self.device)
        self._autocast = torch.get_autocast_dtype(self.device) if on else None

    def _after_forward(self, *_: Any) -> None:
        if torch.is_grad_enabled() and self.model.training:
            assert self._watcher is not None
            self._watcher.mark(BACKWARD, self.steps)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        assert self._watcher is not None
        self._optimizer = optimizer
        self._watcher.mark(STEP, self.steps)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        assert self._watcher is not None
        self._watcher.stepped(self.model, optimizer)
        self.steps += 1

    # -- answers
    def trace(self) -> Trace | None:
        """What was recorded; None on a GPU, whose counters record no events."""
        return self._watcher.trace() if isinstance(self._watcher, Recorder) else None

    def measured(self) -> dict[str, int]:
        """Bytes: `max_allocated` over the steps, `allocated_after_step`, and on a GPU `max_reserved`.

        Raises:
            InputError: no training step was seen.
        """
        if not self.steps:
            hint = "Train inside of it, by optimizer.step()."
            raise InputError("saw no training step", where="weigh.watch", hint=hint)
        assert self._watcher is not None
        if isinstance(self._watcher, Counters):
            rows = [row for row in self._watcher.peaks() if row["phase"] != LOAD]
            found = {"max_allocated": max(row["peak"] for row in rows), "allocated_after_step": rows[-1]["after"]}
            return {**found, "max_reserved": max(row["reserved"] for row in rows)}
        peaks = [p for p in phase_peaks(self._watcher.trace()) if p.mark.phase != LOAD]
        return {"max_allocated": max(_int(p.peak) for p in peaks), "allocated_after_step": _int(peaks[-1].after)}

    def recipe(self) -> Training:
        """The training, as far as it can be read off what ran.

        Raises:
            InputError: no training step was seen.
            NotModelledError: something ran that a recipe cannot say.
        """
        self.measured()
        assert self._optimizer is not None
        name = next((n for n, kind in OPTIMIZERS.items() if type(self._optimizer) is kind), None)
        if name is None:
            raise NotModelledError(f"the optimizer {type(self._optimizer).__name__}")
        if self._batch is None:
            raise NotModelledError("a model whose input is no batch of ids")
        settings = self._optimizer.defaults
        lora = _lora(self.model)
        if lora is None and not all(p.requires_grad for p in self.model.parameters()):
            raise NotModelledError("parameters that were frozen by hand")
        default_foreach = self.device == "cuda" and settings.get("foreach") is None
        looped = "foreach" if settings.get("foreach") or default_foreach else "forloop"
        return Training(
            batch=self._batch[0],
            sequence=self._batch[1],
            dtype=_dtype(_main_dtype(self.model)),
            autocast=None if self._autocast is None else _dtype(self._autocast),
            attention=self.model.config._attn_implementation,
            checkpointing=_checkpointing(self.model),
            optimizer=name,
            implementation="fused" if settings.get("fused") else looped,
            momentum=settings.get("momentum") or 0.0,
            weight_decay=_weight_decay(self._optimizer),
            clip=self.clip,
            accumulation=max(1, self._passes // self.steps),
            lora=lora,
            device=self.device,
            steps=min(self.steps, 2),
            labels_are_inputs=self._labels_are_inputs,
            traced=self.device != "cuda",
        )

    def predicted(self) -> int:
        """The peak that `weigh` predicts for the same training, in bytes as the device's allocator counts them.

        Raises:
            WeighError: the training or the model is none that it can predict.
        """
        recipe, loop = self.recipe(), runtimes.get(self.runtime).loop
        trace = trained.run(self._config(), recipe, type(self.model).__name__, loop=loop).trace
        peaks = phase_peaks(trace, rounded=self.device == "cuda")
        return max(_int(p.peak) for p in peaks if p.mark.phase != LOAD)

    def _config(self) -> Mapping[str, Any]:
        return read_live(self.model.config).config

    def text(self) -> str:
        """Measured and predicted, in a few lines."""
        try:
            measured = self.measured()
        except InputError as error:
            return f"weigh: {error}"
        peak = measured["max_allocated"]
        lines = [f"weigh: measured {format_bytes(peak)} ({peak:,} bytes) at the peak of {self.steps} steps"]
        if "max_reserved" in measured:
            lines.append(f"weigh: reserved {format_bytes(measured['max_reserved'])}")
        try:
            ours = self.predicted()
        except WeighError as error:
            return "\n".join([*lines, f"weigh: no prediction: {error}"])
        off = f"{100 * (ours - peak) / peak:+.3f} %"
        return "\n".join([*lines, f"weigh: predicted {format_bytes(ours)} ({ours:,} bytes), {off}"])

    def save(self, path: str) -> None:
        """Add the run to a file of measured cases.

        Raises:
            WeighError: the run is none that a case can describe.
        """
        on_gpu = self.device == "cuda"
        device = {
            "name": torch.cuda.get_device_name() if on_gpu else "cpu",
            "count": 1,
            "memory_bytes": torch.cuda.mem_get_info()[1] if on_gpu else None,
        }
        name = getattr(self.model.config, "name_or_path", "") or self.model.config.model_type
        versions = {"torch": torch.__version__}
        append(
            training_case(name, self._config(), self.recipe(), self.measured(), versions, device, self.runtime), path
        )


class TrainerMemoryCallback(TrainerCallback):
    """Watches what transformers' Trainer trains, and logs predicted and measured peaks when it ends.

    `case` is a file of measured cases (JSON lines) to which the run is added.
    """

    def __init__(self, case: str | None = None) -> None:
        self.case = case
        self.seen: watch | None = None
        """What was seen, once the training has begun."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        clip = bool(args.max_grad_norm and args.max_grad_norm > 0)
        self.seen = watch(kwargs["model"], clip=clip, case=self.case, runtime="transformers")
        self.seen.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what was seen."""
        if self.seen is not None:
            self.seen.__exit__(None, None, None)


def _say(text: str) -> None:
    """Log it; where nobody has set up logging, which drops what is no warning, to standard error."""
    for line in text.splitlines():
        if log.hasHandlers():
            log.info(line)
        else:
            print(line, file=sys.stderr)


def _int(size: Any) -> int:
    assert isinstance(size, int)
    return size


def _dtype(dtype: torch.dtype) -> dtypes.DType:
    return dtypes.get(str(dtype).removeprefix("torch."))


def _main_dtype(model: Any) -> torch.dtype:
    """The dtype of most parameters."""
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def _weight_decay(optimizer: torch.optim.Optimizer) -> float | None:
    """None where it is the class's own."""
    given: float | None = optimizer.defaults.get("weight_decay")
    own = signature(type(optimizer)).parameters.get("weight_decay")
    return None if own is None or given == own.default else given


def _checkpointing(model: Any) -> str | None:
    """How transformers checkpoints the model's blocks, if it does."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            function = getattr(module, "_gradient_checkpointing_func", None)
            if function is not None:
                return "reentrant" if function.keywords.get("use_reentrant") else "full"
    return None


def _lora(model: Any) -> Lora | None:
    """Peft's settings, where there are any."""
    found = getattr(model, "peft_config", None)
    if not found:
        return None
    (config,) = found.values()
    if config.peft_type != "LORA" or not isinstance(config.target_modules, set | list):
        raise NotModelledError(f"peft's {config.peft_type} on {config.target_modules}")
    adapter = next(p for n, p in model.named_parameters() if "lora_" in n)
    upcast = adapter.dtype == torch.float32
    return Lora(
        rank=config.r,
        targets=tuple(sorted(config.target_modules)),
        dropout=config.lora_dropout,
        autocast_adapter=upcast,
        dora=bool(config.use_dora),
        modules_to_save=tuple(config.modules_to_save or ()),
    )
