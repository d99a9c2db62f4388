"""peft's comparison of its methods on MetaMathQA: a training loop of its own around transformers and peft.

Read: huggingface/peft at 026d1e0, `method_comparison/MetaMathQA/{run,utils}.py`, `default_training_params.json`. The
name `outputs` holds the logits until those of the next batch are there, and a step's gradients stay until the next
begins. The model is on the device before it gets adapters. Not run: its evaluations, whose generation with static
caches is part of the highest reserved figure that it prints; its other figures are means over batches of all lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.recipes.loop import Loop
from weigh.recipes.training import Training
from weigh.records import dataclass, replace
from weigh.runtimes import Runtime
from weigh.techniques.adapters.base import Adapter
from weigh.trace.events import STEP


class Train(Loop):
    """`train`."""

    zero_grad_first = True
    waits_after = (STEP,)  # loss.item()

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The outputs of the last batch die once those of this one are there."""
        model.outputs = model(input_ids, labels)  # type: ignore[attr-defined]
        return model.outputs.loss  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True, slots=True)
class MetaMathQA(Runtime):
    """The script, with its default parameters."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        """AdamW, gradients clipped, four sequences in bf16."""
        found = {"dtype": "bf16", "batch": 4, "clip": True, **words}
        if isinstance(found.get("adapter"), Adapter):
            found["adapter"] = replace(found["adapter"], moved=False)
        return found


RUNTIME = MetaMathQA("metamathqa", "peft at 026d1e0", Train())
