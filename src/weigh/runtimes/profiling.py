"""vLLM's profiling run: the most that a step of dummy tokens, and then the sampler, have allocated at a moment.

Before it makes the cache, vLLM runs the model once over as many tokens as a step may have, without attention, and
samples for as many requests as a step may have. A moment below is what is alive at one operation: in eager code what
Python's variables still name (`models/llama.py` and its like: the decoder's loop holds the last block's output while
the next one runs, the feed-forward's frame holds gate and up while the last product is made), in compiled code what
torch.compile's pieces, cut at every attention, take and make.

Read: vLLM 0.6.4 (`worker/worker.py: determine_num_available_blocks`, `model_executor/layers/sampler.py`), 0.8.5,
0.9.2, 0.12, 0.17, 0.21, 0.22, 0.25 (`v1/worker/gpu_model_runner.py: profile_run, _dummy_sampler_run`,
`v1/sample/ops/topk_topp_sampler.py`, `fused_moe/fused_moe.py`), PyTorch (`aten/src/ATen/native/cuda/SortStable.cu`).
Left out: the encoders of models that see or hear, LoRA's and drafts' buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from weigh.dtypes import FLOAT16
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from weigh.dtypes import DType
    from weigh.runtimes.fused import Matrix

LOGITS = 4
"""Bytes of a logit once the sampler has it."""
SORTING = 1 + 2 + 2 + 3
"""Logits' worth of what a sort takes: values, indices of eight bytes, reversed indices, and CUB's copy of keys and
indices (`segmented_sort_pairs`)."""
DRAWING = 2
"""Logits' worth of probabilities and of exponential noise (`random_sample`), where a kernel filters in place."""


class Moment(NamedTuple):
    """What is alive at one operation, beside weights."""

    what: str
    num_bytes: int
    alive: str
    """In words."""


@dataclass(frozen=True, slots=True)
class Step:
    """The largest step that vLLM prepares for."""

    tokens: int
    """`max_num_batched_tokens`."""
    requests: int
    """`max_num_seqs`."""
    hidden: int
    vocabulary: int
    dtype: DType
    compiled: bool
    """torch.compile cuts the model at its attentions."""
    sorts: bool
    """The sampler sorts all logits."""
    ranks: int = 1
    """That share every layer: what they add up goes into a new tensor."""
    experts_per_token: int = 0
    workspace: int = 0
    """Bytes that the first matrix product makes and PyTorch keeps."""
    chunk: int = 16 * 1024
    """Tokens that the experts take at a time (VLLM_FUSED_MOE_CHUNK_SIZE)."""
    dequantizes: bool = False
    """Products of many tokens first write the weight out in the model's dtype."""


def moments(step: Step, matrices: tuple[Matrix, ...]) -> list[Moment]:
    """The moments that can be the highest."""
    return [*_forward(step, matrices), _sampling(step)]


def peak(step: Step, matrices: tuple[Matrix, ...]) -> Moment:
    """The highest moment, with the workspace of matrix products."""
    found = max(moments(step, matrices), key=lambda moment: moment.num_bytes)
    return Moment(found.what, found.num_bytes + step.workspace, f"{found.alive}, the workspace of matrix products")


def _sampling(step: Step) -> Moment:
    """Logits of every request in the model's dtype and in fp32, and what filtering and drawing take."""
    logits = step.requests * step.vocabulary
    kept = step.dtype.num_bytes(logits) + LOGITS * logits + step.dtype.num_bytes(step.tokens * step.hidden)
    made = LOGITS * logits * (SORTING if step.sorts else DRAWING)
    how = "a sort of them" if step.sorts else "their probabilities and noise"
    return Moment("the sampler", kept + made, f"hidden states of all tokens, logits twice, {how}")


def _forward(step: Step, matrices: tuple[Matrix, ...]) -> Iterator[Moment]:
    for block in _blocks(matrices):
        attention = max((m.columns for m in block if m.is_output), default=0)
        for one in block:
            if one.experts:
                if one.parts > 1:
                    yield _experts(step, one, block)
            elif one.makes_inner:
                yield _feed_forward(step, one, block, attention)
            elif one.makes_queries:
                yield _queries(step, one)


def _bytes(step: Step, width: int) -> int:
    return step.dtype.num_bytes(step.tokens * width)


def _summed(step: Step) -> int:
    """The output of a product whose inputs ranks share, and the sum over them."""
    return step.hidden * (2 if step.ranks > 1 else 1)


def _feed_forward(step: Step, one: Matrix, block: Sequence[Matrix], attention: int) -> Moment:
    """Gate and up, their product, and (in eager code) the output while both are still named."""
    inner = one.rows // one.parts
    written = _written_out(step, block)
    if step.compiled:
        width = attention + 2 * step.hidden + one.rows + inner
        alive = "attention's output, the residual before and after it, gate and up, their product"
    else:
        width = 3 * step.hidden + one.rows + inner + _summed(step)
        alive = "the last block's output, the residual, the input, gate and up, their product, the output"
    return Moment("the feed-forward", _bytes(step, width) + written, alive)


def _queries(step: Step, one: Matrix) -> Moment:
    """Queries, keys and values, rotated (a copy in compiled code), and room for attention's output."""
    width = 3 * step.hidden + 2 * one.rows
    return Moment("attention", _bytes(step, width), "the residual, the input, queries, keys and values, the output")


def _experts(step: Step, one: Matrix, block: Sequence[Matrix]) -> Moment:
    """Triton's experts: one buffer for what the first and the last product make, one for what lies between."""
    chunk = min(step.tokens, step.chunk)
    rows, columns = one.rows, one.columns
    pairs = chunk * step.experts_per_token
    buffers = step.dtype.num_bytes(pairs * max(rows, columns)) + step.dtype.num_bytes(pairs * rows // 2)
    shared = sum(m.rows // 2 * 3 for m in block if m.makes_inner)
    width = 3 * step.hidden + _summed(step) + shared
    return Moment("the experts", _bytes(step, width) + buffers, "the residual, the input, two buffers for all pairs")


def _written_out(step: Step, block: Iterable[Matrix]) -> int:
    if not step.dequantizes:
        return 0
    return FLOAT16.num_bytes(max(m.rows * m.columns for m in block))


@lru_cache(maxsize=16)  # many launches of a model ask for the same
def _blocks(matrices: tuple[Matrix, ...]) -> list[list[Matrix]]:
    """The blocks that differ."""
    found: dict[int, list[Matrix]] = {}
    for one in matrices:
        if one.block is not None:
            found.setdefault(one.block, []).append(one)
    kinds = {tuple(m._replace(block=0, name="") for m in block): block for block in found.values()}
    return list(kinds.values())
