"""DeepSpeed's engine: ZeRO around its own FusedAdam.

Read: 0.19.6 (`runtime/engine.py`, `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`, `ops/adam/fused_adam.py`).
Adam and AdamW of a DeepSpeed config are its `FusedAdam`, a copy of apex's. An engine without ZeRO, which has other
optimizers, is not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import NotModelledError
from weigh.records import dataclass
from weigh.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class DeepSpeed(Runtime):
    """The engine."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        if not str(found.get("shard")).startswith("zero"):
            raise NotModelledError("DeepSpeed without ZeRO", where="shard", hint="Use --shard zero1, zero2 or zero3.")
        if found.get("optimizer", "adamw") in ("adam", "adamw") and "implementation" not in found:
            found["optimizer"] = "adamw_apex"
        return found


RUNTIME = DeepSpeed("deepspeed", "0.19.6")
