"""What a process of PyTorch is asked to do, as plain data. Loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from weigh.dtypes import DType
from weigh.errors import UsageError

FAKE, REAL = "fake", "real"

ANSWER = "@weigh "
"""Begins the line of an answer; whatever else a worker prints is the model's."""

SHARDS = ("ddp", "fsdp2", "tensor")


@dataclass(frozen=True, slots=True)
class Parallel:
    """How several processes share the work."""

    shard: str
    """ "fsdp2": parameters, gradients and states sharded; "ddp": all of them on every rank; "tensor": the linear layers
    of every block split by the plan of transformers, everything else whole."""
    world: int = 2
    """How many processes."""
    reshard: bool = True
    """FSDP2 drops a block's gathered parameters after its forward pass."""
    compute_dtype: str | None = None
    """FSDP2 gathers and computes in this dtype."""
    reduce_dtype: str | None = None
    """FSDP2 reduces gradients in this dtype."""

    def __post_init__(self) -> None:
        if self.shard not in SHARDS:
            raise UsageError(f"there is no {self.shard!r}", where="shard", hint=f"Use one of: {', '.join(SHARDS)}.")
        if self.world < 2:
            raise UsageError(f"{self.world} process shares nothing", where="world", hint="Use at least 2.")


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
    parallel: Parallel | None = None
    profiled: bool = False
    """Nothing but the allocator's own record (the CPU's profiler): no dispatch mode is in the way."""
    output: str | None = None
    """Where the trace goes; with several processes, the number of the rank is put before the suffix."""
    snapshot: str | None = None
    """Where the record of CUDA's allocator goes, for PyTorch's memory visualizer."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Job:
        """Out of JSON."""
        parallel = document.get("parallel")
        return cls(**{**document, "parallel": parallel and Parallel(**parallel)})


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
        return {f.name: _word(getattr(value, f.name)) for f in fields(value)}
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
    seconds: float = 0.0


def rank_file(path: str, rank: int) -> str:
    """The file of one of several ranks.

    >>> rank_file("out/step.trace.gz", 1)
    'out/step.1.trace.gz'
    """
    stem, dot, rest = Path(path).name.partition(".")
    return str(Path(path).with_name(f"{stem}.{rank}{dot}{rest}"))
