"""What can be changed about a training so that it takes less, and what each change asks for.

`cost` orders them and means nothing else: first what costs nothing, then time, then the numbers' precision, then what
is trained and more devices, last what it is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from weigh.kernels.losses import LOSSES
from weigh.optimizers import OPTIMIZERS
from weigh.recipes.training import Training

EIGHT_BITS = "adamw_8bit"
NODE = 8
"""Devices of a usual machine."""
NODES = (2, 4, 8, 16, 32)


PASSES, UPDATE, BOTH = "passes", "update", "both"
STATES = "optimizer"
"""The kind that changes the optimizer's states, and nothing that the passes make."""
DEVICES, SEQUENCE = ONLY_HELPFUL = ("devices", "sequence")
"""Kinds of which more never takes more memory: a rank's share of what it holds gets smaller, or a sequence."""


class Change(NamedTuple):
    """Something to do otherwise."""

    kind: str
    """Of one kind only one change is made."""
    what: str
    """In words."""
    words: Mapping[str, Any]
    """Its settings."""
    price: str
    """What it asks for."""
    cost: float
    """Where it stands in the order."""
    of: str = "passes"
    """What it changes: the `PASSES` alone, the `UPDATE` alone, or `BOTH`."""

    def __hash__(self) -> int:
        return hash(self.what)


def changes(recipe: Training) -> list[Change]:
    """Every change that this recipe leaves room for."""
    return [*_kernels(recipe), *_micro_batches(recipe), *_precision(recipe), *_devices(recipe), *_training(recipe)]


def settings_of(recipe: Training, chosen: tuple[Change, ...]) -> tuple[dict[str, Any], float]:
    """The settings of changes together, and how many times as many sequences a step has then.

    Where the micro-batch or the number of devices changes, a step has as many micro-batches as keep the whole batch, if
    there is such a number.
    """
    words = {name: value for change in chosen for name, value in change.words.items()}
    if not {"batch", "nodes"} & words.keys():
        return words, 1.0
    devices = words.get("nodes", recipe.nodes) * words.get("gpus_per_node", recipe.gpus_per_node)
    sequences = int(recipe.batch) * recipe.accumulation * recipe.nodes * recipe.gpus_per_node  # type: ignore[arg-type]
    in_micro_batches = words.get("batch", recipe.batch) * devices
    words["accumulation"] = max(1, -(-sequences // in_micro_batches))
    return words, words["accumulation"] * in_micro_batches / sequences


def _kernels(r: Training) -> Iterator[Change]:
    """What computes the same with less memory."""
    if r.attention == "eager":
        what = "scaled_dot_product_attention in place of eager attention"
        yield Change("attention", what, {"attention": "sdpa"}, "none: it computes the same, faster", 0.1)
    elif r.attention_kernel == "math":
        free: dict[str, Any] = {"attention_kernel": None}
        yield Change("attention", "the kernel that PyTorch chooses", free, "none: it computes the same, faster", 0.1)
    if r.optimizer in ("adam", "adamw", "sgd") and r.implementation in (None, "foreach"):
        words = {"implementation": "fused"}
        yield Change(STATES, "the fused optimizer", words, "none: it computes the same, faster", 0.2, UPDATE)
    if r.loss == "upcast" and "liger_fused_linear" in LOSSES:
        words = {"loss": "liger_fused_linear"}
        yield Change("loss", "the loss fused with the head", words, "takes Liger's kernel", 0.5)
    if r.checkpointing is None:
        price = "every block's forward pass runs twice"
        yield Change("checkpointing", "full activation checkpointing", {"checkpointing": "full"}, price, 2)


def _micro_batches(r: Training) -> Iterator[Change]:
    """The same batch in more, smaller pieces."""
    if not isinstance(r.batch, int):
        return
    sizes = {r.batch // 2, 1} if r.batch % 2 == 0 else {1}
    for size in sorted(sizes - {r.batch, 0}, reverse=True):
        price = "smaller products use a device less well, and gradients stay between micro-batches"
        yield Change("batch", f"micro-batches of {size}", {"batch": size}, price, 1.0 if size > 1 else 1.2)


def _precision(r: Training) -> Iterator[Change]:
    if r.dtype.name == "fp32" and r.autocast is None and r.param_dtype is None:
        price = "products are made in bf16, with three significant digits"
        yield Change("precision", "bf16 autocast", {"autocast": "bf16"}, price, 2.5)
        price = "weights, gradients and states in bf16: small updates are lost"
        yield Change("precision", "everything in bf16", {"dtype": "bf16"}, price, 5, BOTH)
    if r.optimizer == "adamw" and EIGHT_BITS in OPTIMIZERS:
        words = {"optimizer": EIGHT_BITS, "implementation": None}
        yield Change(STATES, "AdamW with states of 8 bits", words, "takes bitsandbytes; states are rounded", 3, BOTH)


def _devices(r: Training) -> Iterator[Change]:
    """Parameters, gradients and states shared by more devices."""
    world = r.nodes * r.gpus_per_node
    shard = r.shard or "fsdp2"
    within = [(1, n) for n in (2, 4, NODE) if r.nodes == 1 and n > r.gpus_per_node]
    across = [(r.nodes * n, max(r.gpus_per_node, NODE)) for n in NODES]
    if r.shard is None and world > 1:
        within.insert(0, (r.nodes, r.gpus_per_node))
    for number, (nodes, each) in enumerate([*within, *across]):
        words: dict[str, Any] = {"shard": shard, "nodes": nodes, "gpus_per_node": each}
        more = f"{nodes * each} devices in place of {world}; " if nodes * each > world else ""
        price = f"{more}they send each other parameters and gradients"
        what = f"sharding ({shard}) over {nodes * each} devices"
        yield Change(DEVICES, what, words, price, 4.5 + number / 4, BOTH)


def _training(r: Training) -> Iterator[Change]:
    if r.lora is None and r.freeze is None:
        what = "LoRA of rank 16 on all linear layers"
        words = {"lora": {"rank": 16, "targets": ["all-linear"]}}
        yield Change("lora", what, words, "the weights themselves are not trained", 4.5, BOTH)
    if isinstance(r.sequence, int) and r.sequence % 2 == 0 and r.sequence > 2 and r.target is None:
        half = r.sequence // 2
        yield Change(SEQUENCE, f"sequences of {half} tokens", {"sequence": half}, "longer texts are cut", 8)
