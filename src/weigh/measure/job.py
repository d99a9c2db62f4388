"""What a process of PyTorch is asked to do, as plain data. Loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weigh.dtypes import DType
from weigh.errors import NotModelledError
from weigh.records import dataclass, field, fields

FAKE, REAL = "fake", "real"

ANSWER = "@weigh "
"""Begins the line of an answer; whatever else a worker prints is the model's."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    task: str
    """ "train" or "generate"."""
    recipe: Mapping[str, Any]
    """The settings of `weigh.recipes.training.Training` or of `weigh.recipes.generation.Generation`, as words."""
    config: Mapping[str, Any] | None = None
    """The model, or"""
    function: str | None = None
    """the `module:function` that makes it, its batch and its loss."""
    tensors: str = FAKE
    """ "fake" or "real"."""
    device: str = "cuda"
    """ "cuda" or "cpu"."""
    profiled: bool = False
    """Nothing but the allocator's own record (the CPU's profiler): no dispatch mode is in the way."""
    output: str | None = None
    """Where the trace goes; with several real processes, the number of the rank is put before the suffix."""
    snapshot: str | None = None
    """Where the record of CUDA's allocator goes, for PyTorch's memory visualizer."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Job:
        """Out of JSON."""
        return cls(**document)

    @property
    def world(self) -> int:
        """How many devices it is for."""
        return int(self.recipe.get("nodes", 1)) * int(self.recipe.get("gpus_per_node", 1))


RUN = frozenset(
    # of trainings
    "batch sequence target dtype autocast attention attention_kernel checkpointing checkpoint_every optimizer "
    "implementation momentum weight_decay clip accumulation set_to_none freeze lora adapter nodes gpus_per_node shard "
    "replicas reshard_after_forward offload_parameters param_dtype reduce_dtype tensor pipeline context expert "
    "rank device steps labels_are_inputs ema "
    # of generations
    "prompt new_tokens cache logits_to_keep beams returned bare "
    # of predictions only: a real model is made whole on its device before it is sharded
    "compute_capability meta_init warm traced unchecked_attention".split()
)
"""The settings that the real loops carry out, or refuse themselves."""
SHARDS = (None, "fsdp2")


def check(recipe: Any) -> None:
    """That nothing is asked for that a real run would silently leave out.

    Raises:
        NotModelledError: a setting that no loop here carries out.
    """
    plain = type(recipe)()
    odd = [f.name for f in fields(recipe) if f.name not in RUN and getattr(recipe, f.name) != getattr(plain, f.name)]
    if getattr(recipe, "shard", None) not in SHARDS:
        odd.append("shard")
    if getattr(recipe, "bare", False):
        odd += [name for name in ("beams", "returned") if getattr(recipe, name) > 1]  # `generate` wants values
    if odd:
        raise NotModelledError(f"a real run with {odd[0]} {getattr(recipe, odd[0])}", where=odd[0])


def words(recipe: Any) -> dict[str, Any]:
    """A recipe as the words that `weigh.recipes.settings.make` reads.

    >>> from weigh.recipes.training import Training
    >>> words(Training())["dtype"], words(Training())["kernels"]
    ('fp32', 'cuda')
    """
    from weigh.recipes.settings import RENAMED

    return {RENAMED.get(f.name, f.name): _word(getattr(recipe, f.name)) for f in fields(recipe)}


def _word(value: Any) -> Any:
    if isinstance(value, DType):
        return value.name
    if hasattr(value, "__dataclass_fields__"):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {f.name: _word(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process says of a run."""

    peaks: list[dict[str, Any]] = field(default_factory=list)
    """The allocator's own account, phase by phase: phase, round, before, peak, after, and on CUDA reserved; bytes."""
    opaque: dict[str, int] = field(default_factory=dict)
    """Ops whose inside the trace does not show, and how often they ran."""
    collectives: dict[str, int] = field(default_factory=dict)
    """Ops between ranks."""
    attention: dict[str, int] = field(default_factory=dict)
    """How often each kernel behind scaled_dot_product_attention was taken, where that was chosen here."""
    versions: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    trainable: int = 0
    device_name: str | None = None
    device_bytes: int | None = None
    """The memory of the GPU that it ran on."""
    seconds: float = 0.0


def rank_file(path: str, rank: int) -> str:
    """The file of one of several ranks.

    >>> rank_file("out/step.trace.gz", 1)
    'out/step.1.trace.gz'
    """
    stem, dot, rest = Path(path).name.partition(".")
    return str(Path(path).with_name(f"{stem}.{rank}{dot}{rest}"))
