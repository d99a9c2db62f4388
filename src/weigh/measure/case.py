"""A measured run as a case: one JSON line that `weigh validate` reads, with every setting that decides the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weigh.errors import UsageError, reason
from weigh.optimizers import implementation_of
from weigh.recipes.training import Training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.measure.witness import WitnessReport
    from weigh.techniques.lora import Lora

MODES = {None: "none", "full": "full"}
WORDLESS = (
    "target", "attention_kernel", "momentum", "weight_decay", "set_to_none", "freeze", "nodes", "replicas",
    "reshard_after_forward", "param_dtype", "reduce_dtype", "rank",
    "projection_rank", "optimizer_in_backward", "loss_scaling",
)  # fmt: skip
"""Settings for which the format has no word: a case that needs one would be another case."""


def training_case(
    name: str,
    config: Mapping[str, Any],
    recipe: Training,
    measured: Mapping[str, int],
    versions: Mapping[str, str],
    device: Mapping[str, Any],
    runtime: str = "pytorch",
) -> dict[str, Any]:
    """The case of one training. Keys and words are those of the published measured cases.

    `measured` has `max_allocated` and whatever else was counted, in bytes; `device` a name, a count and its memory.

    Raises:
        UsageError: the run has a setting for which the format has no word.
    """
    _check_words(recipe)
    return {
        "id": _id(name, recipe, runtime),
        "task": "finetune" if recipe.lora else "pretrain",
        "runtime": runtime,
        "runtime_version": versions.get("torch" if runtime == "pytorch" else runtime),
        "versions": dict(versions),
        "model": {"name": name, "config": dict(config), "notes": None},
        **_settings(recipe),
        "adapter": recipe.lora and _adapter(recipe.lora, recipe),
        "parallel": _parallel(recipe),
        "offload": None,
        "device": dict(device),
        "measured": dict(measured),
        "resolution": 0,
        "source": "weigh measure",
        "evidence": "counted by the allocator",
        "trust": "exact",
    }


def _check_words(recipe: Training) -> None:
    """Raise `UsageError` where a run has a setting for which the format has no word."""
    plain = Training()
    odd = [name for name in WORDLESS if getattr(recipe, name) != getattr(plain, name)]
    odd += [] if recipe.checkpointing in MODES else ["checkpointing"]
    if odd:
        value = getattr(recipe, odd[0])
        raise UsageError(f"a case cannot say {value!r}", where=odd[0], hint="Save a run without it.")


def _settings(r: Training) -> dict[str, Any]:
    """Precision, batch, optimizer and kernels."""
    autocast = None if r.autocast is None else r.autocast.name
    return {
        "weights": {"dtype": r.dtype.name, "quantization": None},
        "precision": {
            "compute": autocast or r.dtype.name,
            "autocast": autocast is not None,
            "gradients": r.dtype.name,
            "master_weights": None,
        },
        "batch": r.batch,
        "sequence": r.sequence,
        "sequence_is": "fixed",
        "gradient_accumulation": r.accumulation,
        "optimizer": {
            "name": r.optimizer,
            "implementation": r.implementation or (r.optimizer and implementation_of(r.optimizer, r.device)),
            "state_dtype": r.dtype.name,
            "clip": r.clip,
        },
        "checkpointing": {"mode": MODES[r.checkpointing], "detail": r.checkpointing},
        "attention": r.attention,
        "loss": "eager",
        "compile": False,
    }


def _adapter(lora: Lora, r: Training) -> dict[str, Any]:
    return {
        "kind": "dora" if lora.dora else "lora",
        "rank": lora.rank,
        "targets": list(lora.targets),
        "dtype": "fp32" if lora.autocast_adapter else r.dtype.name,
        "dropout": lora.dropout,
        "modules_to_save": list(lora.modules_to_save),
    }


def _parallel(r: Training) -> dict[str, Any]:
    mesh = r.mesh
    return {
        "world": mesh.world,
        "data": mesh.data,
        "shard": r.shard or "none",
        "tensor": mesh.tensor,
        "pipeline": mesh.pipeline,
        "context": mesh.context,
        "expert": mesh.expert,
    }


def _id(name: str, recipe: Training, runtime: str) -> str:
    words = [name, runtime, recipe.device, recipe.dtype.name, f"b{recipe.batch}", f"s{recipe.sequence}"]
    words += [word for word in (recipe.checkpointing and "ckpt", recipe.lora and "lora", recipe.shard) if word]
    return "-".join(str(word).replace("/", "-").lower() for word in words)


def of_report(report: WitnessReport) -> dict[str, Any]:
    """The case of a measured run.

    Raises:
        UsageError: it is no training of a config's model, or nothing was measured.
    """
    if report.job.task != "train" or report.job.config is None or not report.counted:
        hint = "Measure the training of a model that has a config."
        raise UsageError("only measured trainings make cases", where="--case", hint=hint)
    peaks = [[row for row in answer.peaks if row["phase"] != "load"] for answer in report.counted]
    measured = {
        "max_allocated": max(row["peak"] for rows in peaks for row in rows),
        "allocated_after_step": max(rows[-1]["after"] for rows in peaks),
    }
    reserved = [row["reserved"] for rows in peaks for row in rows if "reserved" in row]
    if reserved:
        measured["max_reserved"] = max(reserved)
    first = report.counted[0]
    device = {"name": first.device_name or "cpu", "count": report.job.world, "memory_bytes": first.device_bytes}
    recipe: Training = report.run.recipe
    return training_case(report.source.name, report.job.config, recipe, measured, first.versions, device)


def append(case: Mapping[str, Any], path: str) -> None:
    """Add a case to a file of JSON lines.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(case) + "\n")
    except OSError as error:
        raise UsageError(
            f"cannot be written: {reason(error)}", where=path, hint="Name a file in a folder of yours."
        ) from None
