"""What will be written, tensor by tensor and to the byte, before anything is: from the headers of the source alone.

A plan that is made is one that will work, as far as can be known: names, shapes, number formats, memory and room on
the disk were checked. Needs no numpy.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cached_property
from math import lcm
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh import dtypes
from weigh.errors import InputError, UsageError
from weigh.quant.checkpoint.layout import File, Output, safetensors_files
from weigh.quant.checkpoint.rules import FLOATS, Rules, module_of
from weigh.quant.checkpoint.stored import read as read_stored
from weigh.records import dataclass
from weigh.sources.checkpoint import SUFFIXES
from weigh.sources.strict_json import read_object
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.quant.checkpoint.stored import Matrix
    from weigh.quant.checkpoint.targets.base import Target
    from weigh.sources.checkpoint import StoredTensor
    from weigh.sources.opened import Folder
    from weigh.sources.weights import Weights

PROCESS = 96 << 20
"""Bytes that a process takes before its first slab: Python, numpy. Measured: 45 to 70 MiB."""
TENSOR = 6 << 10
"""Bytes that the plan takes for each tensor. Measured: 2.7 KiB while it is made, of 45,395 tensors."""
SLAB = 32 << 20
"""Most bytes of source that are in memory at once; larger slabs are not faster."""
FACTOR = 6
"""Bytes in use at most for each byte of a slab: itself, its fp32, what is made of it, copies on the way."""
SHARD = 5 * 10**9
LARGEST_COPY = 64 << 20
COPIED = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
"""How files end that belong to a model beside its weights: tokenizer, templates, code. Copied, never run."""


class Decision(NamedTuple):
    """What becomes of one tensor."""

    tensor: StoredTensor
    kept: str | None
    """Why it stays as it is; None where it is quantized."""
    outputs: tuple[Output, ...]
    """What is stored for it."""
    slab: int
    """Bytes of the source that are handled at once."""
    state: int
    """Bytes that stay in memory from the first slab to the last."""
    cut: int = 1
    """Slabs are of a multiple of so many elements."""
    matrix: Matrix | None = None
    """Where the source holds it quantized: what it is read from."""

    @property
    def is_copied(self) -> bool:
        """Whether the bytes stay as they are."""
        same = self.kept is not None and self.matrix is None and self.cut == 1
        return same and self.outputs[0].dtype is dtypes.get(self.tensor.dtype)

    @property
    def num_bytes(self) -> int:
        """Of all outputs."""
        return sum(output.num_bytes for output in self.outputs)

    @property
    def memory(self) -> int:
        """Bytes in use at most while it is rewritten."""
        return self.slab * FACTOR + self.state


@dataclass(frozen=True)
class Plan:
    """A checkpoint to be written. Equal plans write equal bytes."""

    source: str
    weights: Weights
    target: Target
    decisions: tuple[Decision, ...]
    files: tuple[File, ...]
    config: dict[str, Any] | None
    """The new config.json; None where the source has none, or the format keeps it elsewhere."""
    copies: tuple[str, ...]
    """Files of the source that are copied."""
    budget: int
    workers: int

    @property
    def num_bytes(self) -> int:
        """Of all tensors, without headers."""
        return sum(d.num_bytes for d in self.decisions)

    @property
    def source_bytes(self) -> int:
        """Of all tensors of the source."""
        return sum(d.tensor.num_bytes for d in self.decisions)

    @property
    def file_bytes(self) -> int:
        """Of all files with weights."""
        return sum(file.size for file in self.files)

    @property
    def peak(self) -> int:
        """Bytes of resident memory at most, all processes together."""
        largest = sorted((d.memory for d in self.decisions), reverse=True)
        return _processes(self.workers, len(self.decisions)) + sum(largest[: self.workers])

    @cached_property
    def fingerprint(self) -> str:
        """The same for plans that read the same files and write the same bytes, whatever memory and processes."""
        from hashlib import sha256

        text = json.dumps(
            [
                1,
                *(type(self.target).__name__, repr(self.target)),
                [[d.tensor, d.kept, [[o.name, o.shape, o.spelled] for o in d.outputs]] for d in self.decisions],
                [[f.name, f.header.hex(), f.size] for f in self.files],
                *(self.config, self.copies, self.weights.checkpoint.files, _times(self.weights)),
            ],
            sort_keys=True,
        )
        return sha256(text.encode()).hexdigest()

    def bytes_by_reason(self) -> dict[str, tuple[int, int, int]]:
        """Tensors, bytes before and bytes after, of what is quantized ("") and of what is kept, by why."""
        found: dict[str, tuple[int, int, int]] = {}
        for d in self.decisions:
            count, before, after = found.get(d.kept or "", (0, 0, 0))
            found[d.kept or ""] = count + 1, before + d.tensor.num_bytes, after + d.num_bytes
        return found


def make_plan(
    source: str,
    target: Target,
    rules: Rules | None = None,
    *,
    memory: int = 2 << 30,
    workers: int | None = None,
    shard: int = SHARD,
    dtype: str | None = None,
) -> Plan:
    """The plan to rewrite a checkpoint as `target`, within `memory` bytes for all `workers` processes together.

    What the source holds quantized is read in the model's number format, or in `dtype`.

    Raises:
        InputError: the source cannot be read, or has what the target cannot store.
        UsageError: the budget is too small, a pattern means nothing.
    """
    from weigh.sources.weights import open_weights

    weights = open_weights(source)
    rules = rules or Rules()
    config = read_config(weights.folder)
    _check_source(weights)
    target = target.of(weights, config)
    tensors, matrices = read_stored(weights, config, dtype)
    rules.check(tensors, tuple(pattern for pattern, _ in getattr(target, "mix", ())))
    decisions = tuple(_decide(t, matrices.get(t.name), target, rules) for t in tensors)
    _check_decisions(decisions, target, config)
    workers, slab = _fit(decisions, memory, workers)
    decisions = tuple(d._replace(slab=_slab(d, slab)) for d in decisions)
    outputs = [o for d in decisions for o in d.outputs]
    _check_names(outputs)
    return Plan(
        source=source,
        weights=weights,
        target=target,
        decisions=decisions,
        files=target.files(decisions, weights, config) or safetensors_files(outputs, shard),
        config=_new_config(config, target, decisions),
        copies=_copies(weights.folder),
        budget=memory,
        workers=workers,
    )


def read_config(folder: Folder) -> dict[str, Any] | None:
    """The config.json of a folder; None where it has none."""
    if "config.json" not in folder.names():
        return None
    return dict(read_object(folder.open("config.json"), LARGEST_COPY))


def _decide(tensor: StoredTensor, matrix: Matrix | None, target: Target, rules: Rules) -> Decision:
    kept = rules.kept(tensor)
    if kept is not None and target.name == "gguf" and matrix is not None and "blocks" in matrix.parts:
        tensor, matrix = matrix.parts["blocks"], None  # blocks stay the blocks that they are
    if target.name == "plain":
        kept = None if matrix is not None else "as it is"
    if kept is not None:
        cut = lcm(target.cut(tensor) if target.name == "gguf" else 1, matrix.cut() if matrix else 1)
        return Decision(tensor, kept, target.keep(tensor), 0, matrix.state if matrix else 0, cut, matrix)
    cut = target.cut(tensor)
    state = target.state_bytes(tensor.shape)
    if matrix is not None:
        cut, state = lcm(cut, matrix.cut()), state + matrix.state
    return Decision(tensor, None, target.outputs(tensor), 0, state, cut, matrix)


def _check_source(weights: Weights) -> None:
    if weights.checkpoint.format == "pytorch":
        hint = "Save it with save_pretrained, which writes safetensors."
        raise InputError(
            "is a PyTorch archive, whose values weigh does not read", where=weights.folder.where, hint=hint
        )
    if not weights.checkpoint.tensors:
        raise InputError("has no tensors", where=weights.folder.where)


def _check_decisions(decisions: Sequence[Decision], target: Target, config: dict[str, Any] | None) -> None:
    """Raise one error for all tensors that cannot be stored."""
    wrong = []
    for d in decisions:
        if d.kept is None:
            why = target.refuses(d.tensor) if d.tensor.dtype in FLOATS else f"is stored in {d.tensor.dtype}"
            if why:
                wrong.append((d.tensor, why))
    if wrong:
        tensor, why = wrong[0]
        more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        hint = f"Leave it as it is: --keep {module_of(tensor.name)!r}."
        raise InputError(f"{why}{more}", where=f"{tensor.name} {list(tensor.shape)}", hint=hint)
    if all(d.kept for d in decisions):
        reasons = Counter(d.kept for d in decisions)
        said = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
        if target.name == "plain":
            raise InputError("is not quantized", where="the checkpoint")
        raise InputError(f"nothing is to be quantized: {said}", hint="Name modules with --also.")
    if config and config.get("model_type") in _TURNED and target.name != "gguf":
        hint = "transformers turns such matrices round when it quantizes them; weigh does not yet."
        raise InputError("keeps its matrices the other way round (Conv1D)", where=str(config["model_type"]), hint=hint)


_TURNED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def _check_names(outputs: Sequence[Output]) -> None:
    twice = [name for name, count in Counter(o.name for o in outputs).items() if count > 1]
    if twice:
        raise InputError("would be stored twice", where=twice[0], hint="The source has a tensor of that name already.")


def _fit(decisions: Sequence[Decision], memory: int, workers: int | None) -> tuple[int, int]:
    """How many processes, and bytes of a slab, the budget allows."""
    if workers is not None and workers < 1:
        raise UsageError(f"is {workers}", where="--workers", hint="Give a number from 1 on.")
    states = sorted((d.state for d in decisions), reverse=True)
    least = sorted((_slab(d, 0) * FACTOR + d.state for d in decisions), reverse=True)
    for count in (workers,) if workers else range(min(os.cpu_count() or 1, 8), 0, -1):
        free = memory - _processes(count, len(decisions))
        if free >= sum(least[:count]):
            return count, min(SLAB, (free - sum(states[:count])) // count // FACTOR)
    count = workers or 1
    needed = _processes(count, len(decisions)) + sum(least[:count])
    said = f"{count} processes need" if count > 1 else "one process needs"
    hint = f"Give at least {-(-needed >> 20)}MiB{' or fewer workers' if count > 1 else ''}."
    raise UsageError(f"is too little: {said} {format_bytes(needed)}", where="--memory", hint=hint)


def _processes(workers: int, tensors: int) -> int:
    """Bytes of processes that hold no slab: several need one more, which gives them their tasks."""
    return PROCESS * (workers + 1 if workers > 1 else 1) + TENSOR * tensors


def _slab(decision: Decision, wanted: int) -> int:
    """About so many bytes of a tensor, in whole cuts; all of it where that is less."""
    tensor = decision.tensor
    if decision.kept and decision.matrix is None and decision.cut == 1:
        return min(tensor.num_bytes, max(wanted, 1 << 20))
    cut = dtypes.get(tensor.dtype).num_bytes(decision.cut)
    return min(tensor.num_bytes, max(wanted // cut, 1) * cut)


def _new_config(config: dict[str, Any] | None, target: Target, decisions: Sequence[Decision]) -> dict[str, Any] | None:
    if config is None or target.name == "gguf":
        return None
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "compression_config")}
    if target.name == "plain":
        return config
    kept = [module_of(d.tensor.name) for d in decisions if d.kept and _is_weight(d.tensor)]
    return {**config, "quantization_config": target.config(kept)}


def _is_weight(tensor: StoredTensor) -> bool:
    return len(tensor.shape) == 2 and tensor.name.endswith(".weight")


def _copies(folder: Folder) -> tuple[str, ...]:
    """The files that go along: of known endings, and no index of weights."""
    return tuple(
        name
        for name in sorted(folder.names())
        if name.endswith(COPIED)
        and not name.endswith(tuple(f"{suffix}.index.json" for suffix in SUFFIXES))
        and name not in ("config.json", MANIFEST)
        and folder.open(name).size <= LARGEST_COPY
    )


MANIFEST = "weigh-manifest.json"


def _times(weights: Weights) -> list[int]:
    """When local files were changed last: a source that was rewritten is another one."""
    found = []
    for name, _ in weights.checkpoint.files:
        try:
            found.append(os.stat(os.path.join(weights.folder.where, name)).st_mtime_ns)  # noqa: PTH116, PTH118
        except OSError:  # it lies elsewhere, where its address says the commit
            return [len(weights.folder.where), *weights.folder.where.encode()]
    return found
