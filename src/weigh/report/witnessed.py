"""What each technique has been compared with that this code did not make: rows of a real run, or a test beside one.

`None` is nothing yet: every report that uses it says so.
"""

from __future__ import annotations

from typing import Any

from weigh.optimizers import PAGED
from weigh.report.assumption import Assumption
from weigh.techniques.adapters import KINDS

_OPTIMIZERS = "tests/torch/test_optimizers.py"
_RECORDED = "tests/optimizers/test_recorded.py"
_IN_BACKWARD = "tests/optimizers/test_in_backward.py"
_OFFLOADING = "tests/techniques/test_offloading.py"
_DEEPSPEED = "tests/optimizers/test_against_deepspeed.py"
_FSDP1 = "tests/techniques/test_fsdp1.py"
_ROWS = "tests/data/witness/rows.jsonl"
_PARALLEL = "tests/data/witness/parallel.jsonl"
_THREE = "tests/torch/test_three_witnesses.py"
_CASES = "tests/validate/test_training_cases.py"
_LIGER = "tests/data/liger.jsonl"
_KERNELS = "tests/kernels/test_measured_kernels.py"
_MEASURED = "docs/measured.md"
_ANY = "any"
"""Whatever the setting is, where it is used at all."""
_LIVE = (
    "adadelta adafactor adagrad adam adamax adamw adam_8bit adamw_8bit adamw_32bit lion_8bit muon nadam radam rmsprop "
    "sgd sgd_8bit torch_adafactor"
)
_RECORDED_STEPS = (
    "adam_32bit adamw_anyprecision adamw_apex adan ademamix_32bit ademamix_8bit adopt apollo apollo_mini came galore "
    "galore_adafactor galore_adamw_8bit grokadamw lamb lion lion_32bit prodigy rmsprop_32bit rmsprop_8bit "
    "schedule_free_adamw schedule_free_radam schedule_free_sgd sgd_32bit shampoo soap sophia stable_adamw "
    "torchao_cpu_offload"
)

_FUSED_LINEAR = {"liger_fused_linear": _LIGER, "liger_fused_linear_early": _KERNELS, "cut": _LIGER}

WITNESSES: dict[str, dict[str, str | None]] = {
    "optimizer": {
        **dict.fromkeys(_LIVE.split(), _OPTIMIZERS),
        **dict.fromkeys(_RECORDED_STEPS.split(), _RECORDED),
        **{f"paged_{kind}_{bits}bit": _RECORDED for kind in PAGED for bits in (8, 32)},
        **dict.fromkeys(("adalomo", "lomo", "torchao_cpu_offload_gradients"), _IN_BACKWARD),
        **dict.fromkeys(
            (
                *(f"torchao_adamw_{kind}" for kind in ("8bit", "4bit", "fp8")),  # states alone were recorded
            )
        ),
    },
    "shard": {"fsdp1": _PARALLEL, "fsdp2": _PARALLEL, **dict.fromkeys(("zero1", "zero2", "zero3"), _DEEPSPEED)},
    "replicas": {_ANY: _FSDP1},
    "zero_hpz_partition_size": {_ANY: _DEEPSPEED},
    "backward_prefetch": {"post": _FSDP1, "None": _FSDP1},
    "forward_prefetch": {"True": _FSDP1},
    "limit_all_gathers": {"False": None},
    "tensor": {_ANY: _PARALLEL},
    "pipeline": {_ANY: _MEASURED},
    "virtual_pipeline": {_ANY: _MEASURED},
    "pipeline_schedule": {
        **dict.fromkeys(("1f1b", "gpipe"), "tests/data/pipelines.jsonl"),
        **dict.fromkeys(("interleaved_1f1b", "looped_bfs"), "tests/torch/test_pipelining.py"),
    },
    "context": {_ANY: _MEASURED},
    "context_method": dict.fromkeys(("allgather", "alltoall"), "tests/data/ring_attention.jsonl") | {"ulysses": None},
    "expert": {_ANY: _MEASURED},
    "checkpointing": {"full": _ROWS, "reentrant": _ROWS, "selective": _CASES, "offloaded": _OFFLOADING},
    "checkpoint_every": {_ANY: _THREE},
    "compile": {"True": "tests/data/compiled.jsonl"},
    "autocast": {_ANY: _ROWS},
    "accumulation": {_ANY: _THREE},
    "freeze": {_ANY: _ROWS},
    "lora": {_ANY: _THREE},
    "adapter": dict.fromkeys(KINDS, "tests/torch/test_adapters.py"),
    "quantization": {
        "nf4": _CASES,
        "fp4": _CASES,
        "gptq": _CASES,
        "awq": _LIGER,
        "hqq": _LIGER,
        "int8": "tests/torch/test_int8.py",
    },
    "fused_kernels": {"liger": _LIGER, "unsloth": _CASES},
    "loss": {"shifted": _CASES, "rebound": _CASES, "native": _CASES, **_FUSED_LINEAR},
    "optimizer_in_backward": {"True": _IN_BACKWARD},
    "ema": {"True": _THREE},
    "loss_scaling": {"True": _OPTIMIZERS},
    "offload_activations": {"True": _OFFLOADING},
    "offload_optimizer": {"True": _DEEPSPEED},
    "offload_parameters": {"True": _CASES},
}
"""By setting and by its value: the file that holds the witness."""


def unverified(recipe: Any) -> tuple[Assumption, ...]:
    """What a recipe uses that nothing independent was compared with."""
    found = []
    for setting, known in WITNESSES.items():
        chosen = getattr(recipe, setting, None)
        value = _ANY if _ANY in known and chosen not in (None, False, 1) else str(getattr(chosen, "kind", chosen))
        if value in known and known[value] is None:
            named = setting.replace("_", " ")
            found.append(
                Assumption(
                    f"unverified: {named}" + (f" {value}" if value not in ("True", _ANY) else ""),
                    "it follows the sources that its file names, and no real run of it was compared with the answer",
                    "it can be wrong by whatever those sources do not show",
                )
            )
    return tuple(found)
