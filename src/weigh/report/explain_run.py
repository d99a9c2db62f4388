"""The working behind a run's peak: by which rule each purpose is there, where that is written, what it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.report.explain import explain_assumptions
from weigh.report.text import PLURAL, Style, share, table, wrap
from weigh.trace.events import (
    ACTIVATION,
    BUFFER,
    COMMUNICATION,
    GRADIENT,
    INPUT,
    KV_CACHE,
    OPTIMIZER_STATE,
    RECURRENT_STATE,
    TEMPORARY,
    UNSHARDED,
    WEIGHT,
    WORKSPACE,
)
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.report.memory import Owner
    from weigh.report.run import RunReport

RULES = {
    WEIGHT: ("every parameter once, tied ones too", "the shapes of the model's modules"),
    BUFFER: ("tensors of the model that are not trained", "the model's code in transformers"),
    INPUT: ("token ids and labels, eight bytes each", "int64 is what the embedding and the loss take"),
    GRADIENT: (
        "one for every trained parameter, in its dtype, from its birth in the backward pass to zero_grad",
        "torch/csrc/autograd/functions/accumulate_grad.h: stolen if nobody else holds it, else copied",
    ),
    OPTIMIZER_STATE: (
        "what the optimizer keeps beside every trained parameter, from its first step on (ZeRO: fp32 weights too)",
        "the optimizer's code: torch/optim/adam.py keeps two averages; weigh/optimizers says which file was read",
    ),
    ACTIVATION: (
        "what the forward pass makes and something still holds: the graph for its backward pass, or a local variable",
        "tools/autograd/derivatives.yaml says what each op saves; one storage counts once",
    ),
    KV_CACHE: ("keys and values of every token so far, in every layer", "transformers/cache_utils.py"),
    RECURRENT_STATE: (
        "the state of every recurrent layer and the last inputs of its convolution, however many tokens there were",
        "transformers/cache_utils.py, class LinearAttentionLayer",
    ),
    UNSHARDED: (
        "whole weights of the blocks that are running or about to run, gathered from the ranks that share them",
        "torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py",
    ),
    WORKSPACE: (
        "one for the forward pass and one for the backward pass, from the first matrix product on",
        "aten/src/ATen/cuda/CublasHandlePool.cpp: each thread's cuBLAS handle has its own",
    ),
    COMMUNICATION: ("buffers on their way between devices", "the collective's inputs and outputs"),
    TEMPORARY: (
        "made and dropped within the backward pass or the optimizer's step",
        "torch/csrc/autograd/engine.cpp frees what a node saved when it has run; torch/optim for the step's lists",
    ),
}
"""By purpose: why its bytes are there, and where that is written."""

OWNERS_SHOWN = 4


def explain_run(report: RunReport, style: Style) -> list[str]:
    """Where the peak is, the rule and the largest owners of every purpose, and every assumption."""
    memory = report.memory
    lines = [
        style.bold("Where the peak is"),
        *wrap(f"{report.where()[0].upper()}{report.where()[1:]}.", style.width, "  "),
        *wrap(_ops_source(memory.cause.op if memory.cause else ""), style.width, "  "),
        "",
        style.bold("What it is made of"),
    ]
    owners = memory.owners(limit=10_000)
    for purpose, size in memory.by_purpose().items():
        rule, source = RULES[purpose]
        amount = f"{style.swatch(purpose)} {PLURAL[purpose]} {format_bytes(size)}, {share(size, memory.peak)}"
        lines += [f"  {amount}", *wrap(f"{rule} ({source})", style.width, "    ")]
        mine = [owner for owner in owners if owner.purpose == purpose]
        lines += table([_owner(owner) for owner in mine[:OWNERS_SHOWN]], "><<<", indent=6)
        rest = mine[OWNERS_SHOWN:]
        if rest:
            lines.append(f"      and {len(rest)} more kinds with {format_bytes(sum(o.num_bytes for o in rest))}")
    if working := report.working():
        lines += ["", style.bold("What happens around it"), *working]
    lines += ["", style.bold("How it is counted"), *wrap(_counted(report), style.width, "  ")]
    return [*lines, *explain_assumptions(report.all_assumptions(), style)]


def _owner(owner: Owner) -> tuple[str, ...]:
    shape = " x ".join(map(str, owner.shape)) or "scalar"
    times = f"{owner.how_many} of " if owner.how_many != 1 else ""
    return format_bytes(owner.num_bytes), f"{times}{shape} {owner.dtype}", owner.module or "-", owner.op


def _ops_source(op: str) -> str:
    from weigh.ghost.ops.table import TABLE

    row = TABLE.get(op)
    return f"The op's memory is by {row.source}." if row is not None and row.source else ""


def _counted(report: RunReport) -> str:
    memory = report.memory
    if not memory.rounded:
        return "Every storage with the bytes that were asked for, as PyTorch's CPU allocator does."
    return (
        "Every storage in whole multiples of 512 bytes, as torch.cuda.max_memory_allocated() counts "
        f"(c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize): {memory.peak:,} bytes; "
        f"unrounded {memory.unrounded_peak:,}. The run had {memory.trace.num_events:,} allocations and frees; blocks "
        "that do alike were run once and count as often as they stand."
    )
