"""One word for the numbers that a model is trained in: what `precision` means in the settings of a recipe.

The words are Lightning's (`lightning.fabric.connector: _PRECISION_INPUT`), which litgpt takes too: "true" is the dtype
of all parameters, "mixed" keeps fp32 parameters and computes in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import UsageError
from weigh.recipes.settings import did_you_mean

TRUE = {"fp32": "fp32", "32-true": "fp32", "tf32": "fp32", "bf16": "bf16", "bf16-true": "bf16", "fp16": "fp16"}
TRUE |= {"16-true": "fp16", "fp64": "fp64", "64-true": "fp64"}
"""The dtype of all parameters. TF32 is how fp32 products are computed: no tensor is smaller."""
MIXED = {"bf16-mixed": "bf16", "fp16-mixed": "fp16", "16-mixed": "fp16"}
"""What is computed in, beside fp32 parameters."""
PRECISIONS = (*TRUE, *MIXED)
OWN_MASTERS = ("zero1", "zero2", "zero3", "distributed_optimizer", "megatron_fsdp")
"""Ways to share that keep fp32 parameters beside 16-bit ones by themselves."""
SAID_BY = ("dtype", "autocast", "loss_scaling", "param_dtype")


def with_precision(settings: Mapping[str, Any], runtime: str) -> dict[str, Any]:
    """The settings without `precision`, which is said in their own words.

    Raises:
        UsageError: there is no such word, or it is also said otherwise.
    """
    words = {name.replace("-", "_"): value for name, value in settings.items()}
    precision = words.pop("precision", None)
    if precision is None:
        return words
    twice = [name for name in SAID_BY if words.get(name) is not None]
    if twice:
        raise UsageError(f"{twice[0].replace('_', ' ')} says it too", where="precision", hint="Leave one of them out.")
    if precision in TRUE:
        return {**words, "dtype": TRUE[precision]}
    if precision not in MIXED:
        raise UsageError(f"there is no {precision!r}", where="precision", hint=did_you_mean(str(precision), PRECISIONS))
    lower, shard = MIXED[precision], words.get("shard")
    scaled = {"loss_scaling": True} if lower == "fp16" else {}
    if shard in OWN_MASTERS or runtime.partition("@")[0] in ("megatron", "deepspeed"):
        return {**words, "dtype": lower}
    if shard in ("fsdp1", "fsdp2") and runtime.partition("@")[0] == "pytorch":
        return {**words, "dtype": "fp32", "param_dtype": lower, **scaled}
    return {**words, "dtype": "fp32", "autocast": lower, **scaled}
