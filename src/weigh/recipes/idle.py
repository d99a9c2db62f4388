"""Settings that are given where nothing reads them: an answer that passes over what was asked would be misread.

Only what people say themselves is looked at. Files of other programs say much that is not in use, and programs have
defaults of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from weigh.errors import UsageError
from weigh.recipes.dividing import ZERO
from weigh.recipes.settings import settings
from weigh.recipes.training import Training

_FSDP = ("fsdp1", "fsdp2")
_PROJECTING = ("galore", "apollo")

_Reader = tuple[Callable[[Training], bool], str]
_OF_ZERO: _Reader = (lambda r: r.shard in ZERO, "ZeRO (shard zero1, zero2 or zero3)")
_OF_ZERO3: _Reader = (lambda r: r.shard == "zero3", "ZeRO stage 3 (shard zero3)")
_OF_FSDP: _Reader = (lambda r: r.shard in _FSDP, "FSDP (shard fsdp1 or fsdp2)")
_OF_FSDP1: _Reader = (lambda r: r.shard == "fsdp1", "FSDP1 (shard fsdp1)")
_OF_PROJECTIONS: _Reader = (
    lambda r: (r.optimizer or "").startswith(_PROJECTING),
    "an optimizer that projects gradients (galore, apollo)",
)

READERS: dict[str, _Reader] = {
    **dict.fromkeys(("zero_reduce_bucket_size", "zero_overlap_comm", "offload_optimizer"), _OF_ZERO),
    **dict.fromkeys(
        (
            "zero_prefetch_bucket_size",
            "zero_param_persistence_threshold",
            "zero_max_live_parameters",
            "zero_max_reuse_distance",
            "zero_sub_group_size",
        ),
        _OF_ZERO3,
    ),
    **dict.fromkeys(("param_dtype", "reduce_dtype", "reshard_after_forward"), _OF_FSDP),
    **dict.fromkeys(
        (
            "fp32_shards",
            "sync_module_states",
            "backward_prefetch",
            "forward_prefetch",
            "limit_all_gathers",
            "use_orig_params",
        ),
        _OF_FSDP1,
    ),
    **dict.fromkeys(("projection_rank", "projection_targets"), _OF_PROJECTIONS),
    "optimizer_block": (
        lambda r: any(mark in (r.optimizer or "") for mark in ("8bit", "4bit", "fp8")),
        "an optimizer whose states are quantized (adamw_8bit, torchao_adamw_4bit, ...)",
    ),
    "group_size": (lambda r: r.quantization == "gptq", "GPTQ (quantization gptq)"),
    "upcast": (lambda r: r.quantization is not None, "a quantized model (quantization nf4, int8, ...)"),
    "pipeline_schedule": (lambda r: r.pipeline > 1, "a pipeline"),
    "context_method": (lambda r: r.context > 1, "a sequence that is shared (context)"),
    "freeze": (lambda r: r.tuned is None, "a training without an adapter (whose base is frozen whole)"),
}
"""Who reads a setting: whether it is there, and how it is called."""


def refuse_idle(given: Iterable[str], recipe: Training) -> None:
    """Every setting of `READERS` that was given, and is not what it is by default, has its reader.

    Raises:
        UsageError: one has none.
    """
    plain = {s.name: s.default for s in settings(Training)}
    for name in given:
        field = name.replace("-", "_")
        there, reader = READERS.get(field, (_always, ""))
        if not there(recipe) and getattr(recipe, field) != plain[field]:
            what = f"only {reader} reads it, and there is none here"
            raise UsageError(what, where=field, hint="Leave it out, or ask for that too.")


def _always(recipe: Training) -> bool:  # noqa: ARG001  as the others are called
    return True
