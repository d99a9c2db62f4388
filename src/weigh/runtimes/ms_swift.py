"""ms-swift: transformers' Trainer with peft's adapters, and a count of right tokens beside the loss.

Read: ms-swift at cfcb672 (December 2023: `llm/sft.py`, `llm/utils/argument.py`, `trainers/trainers.py`,
`tuners/lora_layers.py`), peft 0.6.2.

- Mixed precision always: the model is loaded in the lower dtype and trained under autocast to it as well.
- Adapters take the dtype of the weights beside them, as peft's did then: fp32 beside packed ones.
- GPTQ's layers are AutoGPTQ's "cuda-old", in fp16 with a scaled loss (`MODEL_MAPPING` says fp16 for them).
- Four-bit weights are bitsandbytes' of before 0.43, whose products keep their inputs (`techniques/quantization.py`).
- Gradients are clipped (`max_grad_norm` 0.5), checkpoints are reentrant.
- `compute_loss` keeps the outputs while it counts: the fp32 copy of the logits lives until the backward pass begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.recipes.training import Training
from weigh.records import dataclass, replace
from weigh.runtimes import Runtime
from weigh.runtimes.transformers import CONTEXT, TrainerLoop
from weigh.techniques.lora import Lora
from weigh.techniques.quantization import FOUR_BITS


class SwiftLoop(TrainerLoop):
    """`Seq2SeqTrainer` of `swift/trainers/trainers.py`."""

    early_bitsandbytes = True
    unpacked_gptq = True

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """`compute_loss`, which counts the right tokens."""
        out = self.outputs(model, recipe, input_ids, labels)
        ops.argmax(out.logits)
        loss: Tensor = out.loss  # type: ignore[assignment]
        return loss


@dataclass(frozen=True, slots=True)
class MsSwift(Runtime):
    """`swift sft`."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        if found.get("quantization") == "gptq":
            found["dtype"] = "fp16"
        found.setdefault("autocast", found.get("dtype"))
        found.setdefault("clip", True)
        found.setdefault("loss_scaling", str(found.get("autocast")) in ("fp16", "float16"))
        if found.get("quantization") in FOUR_BITS:
            found.setdefault("double_quantization", True)  # `bnb_4bit_use_double_quant`
        if found.get("checkpointing") == "full":
            found["checkpointing"] = "reentrant"
        lora = found.get("lora")
        if isinstance(lora, Lora):
            reads = bool(found.get("checkpointing"))
            wide = found.get("quantization") is not None
            found["lora"] = replace(lora, autocast_adapter=wide, input_gradients=reads)
        return found


RUNTIME = MsSwift("ms-swift", "cfcb672 (December 2023)", SwiftLoop(), (CONTEXT,))
