"""The Trainer of transformers over accelerate and peft.

Read: transformers 4.45, 4.48 and 5.23, accelerate 1.0, peft 0.13.

- Loss: `loss/loss_utils.py` makes a shifted copy of the logits up to 4.49 and shifts the labels since; before 4.46 the
  models upcast their logits themselves; GPTBigCode did not.
- Adapters and checkpointing: `enable_input_require_grads`, so that a checkpoint has an input that wants a gradient.
- FSDP under mixed precision: accelerate holds the trained flat parameters in fp32 and gathers and reduces in the lower
  precision (`accelerator.py`, `prepare_model`). Under FSDP2 there is no autocast (`_without_autocast`). Left out: the
  units of their own that accelerate 1.15 makes of the embedding and of the last norm with the output layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32
from weigh.errors import NotModelledError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, CausalOutput
from weigh.recipes.loop import Loop, batch_of
from weigh.recipes.training import Training
from weigh.records import dataclass, replace
from weigh.runtimes import Overhead, Runtime
from weigh.runtimes.evaluation import BATCH, Gathered, batches_together
from weigh.techniques.adapters.base import Adapter
from weigh.trace.events import BACKWARD, EVALUATE

if TYPE_CHECKING:
    from weigh.runtimes.phases import JobPhase, Surroundings

LOSS_FUNCTIONS = (4, 46)
"""From this release on losses are functions beside the models."""
LABELS_SHIFTED = (4, 50)
"""From this release on labels are shifted, not logits."""
NOT_REENTRANT = (5,)
"""`gradient_checkpointing_enable` asks for the reentrant form before this release."""
NATIVE_LOSS = ("gpt_bigcode",)
"""Families whose own class computed the loss in the logits' dtype until then."""
REPEATED_KV = ("mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "starcoder2")
"""Families whose `*FlashAttention2` called `repeat_kv`, before ..."""
GROUPED_FLASH = (4, 48)
"""... attention became a function beside the models (of qwen2_moe later)."""
PHASES_READ = (5,)
"""Loading was written anew for this release; how earlier ones load and save was not read."""
GROUPED_EXPERTS = (5,)
"""Experts were run one by one before this release, in the families ..."""
LOOPS = ("mixtral",)
"""... that were read. (Others loop too, with other variables.)"""


class TrainerLoop(Loop):
    """The Trainer's loop over accelerate."""

    waits_after = (BACKWARD,)  # `torch.isnan(tr_loss_step)` (`logging_nan_inf_filter`)

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """`compute_loss`: the outputs die with it."""
        loss: Tensor = self.outputs(model, recipe, input_ids, labels).loss  # type: ignore[assignment]
        return loss

    def outputs(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> CausalOutput:
        """What the model says: accelerate runs the model under autocast and makes copies of half outputs in fp32.

        Read: accelerate/utils/operations.py, `convert_outputs_to_fp32`.
        """
        with autocast(recipe.autocast):
            out = model(input_ids, labels)
        if recipe.autocast is not None and out.logits is not None and out.logits.dtype in (BFLOAT16, FLOAT16):
            out.logits = out.logits.float()
        return out  # type: ignore[no-any-return]

    def evaluate(self, model: CausalModel, recipe: Training) -> None:
        """`evaluation_loop`: what a batch gives is gathered from all processes and joined to what the others gave.

        A batch's own tensors live until the next one has run. Of many batches the last two are run, beside what those
        before them have left.
        """
        batch = recipe.eval_batch or BATCH
        together = batches_together(recipe)
        first = max(0, together - 2)
        all_losses, all_preds, all_labels = (Gathered(recipe.mesh.world, batch, first) for _ in range(3))
        logits = labels = None
        model.train(False)
        with no_grad():
            for number in range(first, together):
                state.ledger.mark(EVALUATE, number)
                inputs = batch_of(model, recipe, batch)
                losses, logits, labels = self.prediction_step(model, recipe, *inputs)
                losses = all_losses.add(losses.expand(batch).clone())
                if logits is not None:
                    logits = ops.argmax(logits) if recipe.eval_keeps == "argmax" else logits
                    logits = all_preds.add(logits)
                    labels = all_labels.add(labels)
        del logits, labels

    def prediction_step(
        self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The loss, and of what is kept the logits and the labels."""
        outputs = self.outputs(model, recipe, input_ids, labels)
        assert outputs.loss is not None
        if recipe.eval_keeps != "loss" and model.encoder_decoder:
            raise NotModelledError("predictions beside which an encoder's states are gathered", where="eval_keeps")
        loss = ops.clone(outputs.loss)  # `loss.detach().mean()`
        if recipe.eval_keeps != "loss" and outputs.logits is None:
            raise NotModelledError("logits that are kept, beside a fused loss,", where="eval_keeps")
        return loss, outputs.logits if recipe.eval_keeps != "loss" else None, labels


@dataclass(frozen=True, slots=True)
class Transformers(Runtime):
    """The Trainer."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        if "loss" not in found and version is not None and version < LABELS_SHIFTED:
            found["loss"] = "shifted" if version >= LOSS_FUNCTIONS else "rebound"
            if config.get("model_type") in NATIVE_LOSS:
                found["loss"] = "native"
        if found.get("checkpointing") == "full" and version is not None and version < NOT_REENTRANT:
            found["checkpointing"] = "reentrant"
        if version is not None and version < GROUPED_EXPERTS and config.get("model_type") in LOOPS:
            found.setdefault("looped_experts", True)
        if version is not None and version < GROUPED_FLASH and config.get("model_type") in REPEATED_KV:
            found.setdefault("repeat_kv", True)
        if found.get("fused_kernels") == "unsloth" and found.get("loss") == "upcast":
            found["loss"] = "shifted"
        if found.get("autocast") and found.get("shard") == "fsdp1":
            found |= {"param_dtype": found["autocast"], "reduce_dtype": found["autocast"], "fp32_shards": True}
        if found.get("autocast") and found.get("shard") == "fsdp2":
            found = self._without_autocast(found)
        if found.get("shard") == "fsdp1":
            found.setdefault("sync_module_states", True)
        for name in ("lora", "adapter"):
            adapter = found.get(name)
            if isinstance(adapter, Adapter) and found.get("checkpointing"):
                found[name] = replace(adapter, input_gradients=True)
        return found

    @staticmethod
    def _without_autocast(words: Mapping[str, Any]) -> dict[str, Any]:
        """Mixed precision under FSDP2 is its policy alone, over shards in fp32 of what is trained.

        Read: accelerate 1.15, `_prepare_fsdp2` (which is not `prepare_model`), `fsdp2_prepare_model`,
        `set_mixed_precision`.
        """
        lower = words["autocast"]
        found = {"param_dtype": lower, "reduce_dtype": lower, **words, "autocast": None}
        if not any(found.get(name) for name in ("lora", "adapter", "quantization")):
            found["dtype"] = FLOAT32
        return found

    def phases(self, around: Surroundings) -> Iterator[JobPhase]:
        """Those of transformers 5.23."""
        from weigh.runtimes import trainer_phases
        from weigh.runtimes.phases import not_read

        if around.version is not None and around.version < PHASES_READ:
            return not_read(f"{self.name} before {'.'.join(map(str, PHASES_READ))}")
        return trainer_phases.phases(around)


CONTEXT = Overhead(
    "the CUDA context with the code of kernels",
    521 << 20,
    "fitted: what two LoRA runs of PowerLM-3b with fused kernels on one A100 (torch 2.4.1) held beside what a replay "
    "reserves, 521 MiB each; two full runs of it held 503 and 539. NCCL's memory on several devices is not counted",
)

RUNTIME = Transformers("transformers", "4.45, 4.48, 5.23", TrainerLoop(), (CONTEXT,))
