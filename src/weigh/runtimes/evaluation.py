"""What the Trainer's `evaluation_loop` keeps of the batches of an evaluation, on the device and on the host.

Read: transformers 5.23 (`trainer.py`, `trainer_pt_utils.py`), accelerate 1.15 (`utils/operations.py`: `_gpu_gather`).
"""

from __future__ import annotations

from weigh.dtypes import BFLOAT16, FLOAT32, INT64, DType
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor, empty
from weigh.recipes.training import Training

BATCH = 8
"""`per_device_eval_batch_size`, whatever the batch of the training."""
ENOUGH = 3
"""Batches after which only what is kept grows."""


def batches_together(recipe: Training) -> int:
    """Batches of which the device holds what they gave: all of them, or `eval_accumulation_steps`.

    Raises:
        UsageError: predictions are kept, and nobody said how many batches there are.
    """
    if recipe.eval_keeps == "loss":
        return ENOUGH
    if recipe.eval_batches is None:
        hint = "Give the batches of an evaluation on one device (examples / devices / eval batch)."
        raise UsageError("what is kept grows with every batch", where="eval_batches", hint=hint)
    return min(recipe.eval_batches, recipe.eval_accumulation or recipe.eval_batches)


class Gathered:
    """`EvalLoopContainer`: one tensor, to which each batch's is joined by `torch.cat`."""

    def __init__(self, world: int, batch: int, before: int) -> None:
        self.world = world
        self.rows = world * batch * before
        self.tensor: Tensor | None = None

    def add(self, x: Tensor) -> Tensor:
        """Gather a batch's tensor over all processes, keep it, and return what was gathered."""
        if self.world > 1:
            x = empty((self.world * x.shape[0], *x.shape[1:]), x.dtype, "aten::empty")
        if self.tensor is None and self.rows:  # of the batches that were not run
            self.tensor = empty((self.rows, *x.shape[1:]), x.dtype, "aten::cat")
        self.tensor = x if self.tensor is None else ops.cat([self.tensor, x], 0)
        return x


def on_host(recipe: Training, vocabulary: int, logits: DType) -> int:
    """Bytes that each process asks for on the host: numpy's arrays, and fp32 copies of what is bf16.

    What comes later is joined to what is there by `numpy.concatenate`, which makes both anew.
    """
    if recipe.eval_keeps == "loss":
        return 0
    together = batches_together(recipe)
    assert recipe.eval_batches is not None
    tokens = recipe.mesh.world * (recipe.eval_batch or BATCH) * int(recipe.sequence)  # type: ignore[arg-type]
    dtype = INT64 if recipe.eval_keeps == "argmax" else logits
    arrays = FLOAT32 if dtype is BFLOAT16 else dtype
    width = 1 if recipe.eval_keeps == "argmax" else vocabulary
    copied = tokens * width * (arrays.itemsize + (dtype.itemsize if arrays is not dtype else 0))
    kept = tokens * width * arrays.itemsize
    labels = tokens * INT64.itemsize
    all_of_it = recipe.eval_batches
    if together == all_of_it:
        return max(together * copied, together * (kept + labels))
    before = (all_of_it - 1) // together * together  # what is there when the last ones are joined
    last = all_of_it - before
    joined_predictions = (before + last + all_of_it) * kept + before * labels
    joined_labels = all_of_it * kept + (before + last + all_of_it) * labels
    return max(joined_predictions, joined_labels, all_of_it * kept + before * labels + last * copied)
