"""Pipeline parallelism of a plain script: stages of a decoder, and a step as `torch.distributed.pipelining` runs it.

Read: torch/distributed/pipelining/schedules.py and stage.py (2.13). A rank has one stage or, interleaved, several; of a
stage's model only the first has the embedding, only the last the norm and the head. What comes from other stages comes
into buffers that are made once, one for every micro-batch and direction. A stage keeps what it returned for a
micro-batch, and the graph behind it, until that micro-batch goes back; the last one logits too, while it does.

Left out: outputs merged at the end of a step (`return_outputs`: training programs switch it off), schedules that
part the gradients of weights from those of inputs (zero bubble, ZBV, DualPipeV), gradients kept whole under FSDP
between micro-batches, tied embeddings, and layers of several kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weigh import models
from weigh.dtypes import DType
from weigh.errors import NotModelledError, UsageError
from weigh.ghost.autograd import backward
from weigh.ghost.nn import Module
from weigh.ghost.state import by_owner, state
from weigh.ghost.tensor import Tensor, empty
from weigh.models.common import CausalModel, CausalOutput
from weigh.trace.events import BACKWARD, COMMUNICATION, FORWARD

if TYPE_CHECKING:
    from weigh.optimizers import Optimizer
    from weigh.recipes.training import Training

ONE_F_ONE_B, GPIPE, INTERLEAVED, BREADTH_FIRST = SCHEDULES = ("1f1b", "gpipe", "interleaved_1f1b", "looped_bfs")
"""torch's Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B and ScheduleLoopedBFS."""
SPLIT = ("interleaved_zero_bubble", "zbv", "dualpipev")
"""Those that part the backward pass in two."""


def order(schedule: str, ranks: int, rank: int, micro_batches: int, stages: int = 1) -> Iterator[tuple[bool, int, int]]:
    """What a rank does in a step: forward or back, which of its `stages`, which micro-batch.

    >>> "".join("FB"[not forward] + str(number) for forward, _, number in order("1f1b", 4, 2, 4))
    'F0F1B0F2B1F3B2B3'

    Raises:
        UsageError: a schedule that does not go with these numbers.
        NotModelledError: one that parts the backward pass.
    """
    if schedule in SPLIT:
        raise NotModelledError(f"the pipeline schedule {schedule}", where="pipeline_schedule")
    if schedule not in SCHEDULES:
        hint = f"Say {', '.join(SCHEDULES)}."
        raise UsageError(f"there is no schedule {schedule!r}", where="pipeline_schedule", hint=hint)
    looped = schedule in (INTERLEAVED, BREADTH_FIRST)
    if (stages > 1) is not looped:
        what = f"{schedule} has {'several stages' if looped else 'one stage'} on a rank, not {stages}"
        raise UsageError(what, where="virtual_pipeline", hint="Interleaved schedules are those with several.")
    numbers = range(micro_batches)
    if schedule in (GPIPE, BREADTH_FIRST):
        yield from ((True, stage, number) for stage in range(stages) for number in numbers)
        back = numbers if schedule == GPIPE else numbers[::-1]
        yield from ((False, stage, number) for stage in reversed(range(stages)) for number in back)
        return
    rounds = max(1, micro_batches // ranks) if looped else 1
    if schedule == ONE_F_ONE_B and micro_batches < ranks:
        what = f"{micro_batches} micro-batches do not fill {ranks} stages"
        raise UsageError(what, where="accumulation", hint="Give as many as there are stages, or gpipe.")
    if micro_batches % rounds:
        what = f"{micro_batches} micro-batches are no multiple of their {rounds} rounds"
        raise UsageError(what, where="accumulation", hint=f"Give a multiple of {ranks}.")
    group = micro_batches // rounds
    ahead = ranks - 1 - rank
    table = [
        (stage, number)
        for first in range(0, micro_batches, group)
        for stage in range(stages)
        for number in range(first, first + group)
    ]
    warmup = min(len(table), ahead if stages == 1 else (stages - 1) * group + 2 * ahead)
    for place in range(len(table) + warmup):
        if place < len(table):
            yield True, *table[place]
        if place >= warmup:
            stage, number = table[place - warmup]
            yield False, stages - 1 - stage, number


def in_flight(schedule: str, ranks: int, rank: int, micro_batches: int, stages: int = 1) -> int:
    """How many passes forward wait for theirs back at most.

    >>> [in_flight("1f1b", 4, rank, 8) for rank in range(4)], in_flight("gpipe", 4, 3, 8)
    ([4, 3, 2, 1], 8)
    """
    most = now = 0
    for forward, _, _ in order(schedule, ranks, rank, micro_batches, stages):
        now += 1 if forward else -1
        most = max(most, now)
    return most


class Missing(Module):
    """In the place of a module that another stage has."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """What it is given."""
        return x


class Stages(CausalModel):
    """A rank's stages of a decoder."""

    def __init__(self, parts: list[Any], numbers: list[int], last: int, dtype: DType) -> None:
        super().__init__()
        self.dtype = dtype
        self.width = parts[0].config.hidden_size
        self.parts = tuple(parts)
        self.numbers = numbers
        """Which stages they are."""
        self.last = last
        self.schedule: Pipeline | None = None

    def children(self) -> Iterator[tuple[str, Module]]:
        """The stages, by number."""
        for number, part in zip(self.numbers, self.parts, strict=True):
            yield f"stage{number}", part

    def run_stage(self, index: int, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token ids or hidden states (batch, length[, width]) to hidden states, or to logits and the loss."""
        part = self.parts[index]
        if self.numbers[index] != self.last:
            return part.model(x, None, None, None), None
        out: CausalOutput = part(x, labels)
        if out.logits is None:
            raise NotModelledError("a fused loss on the last stage", where="loss")
        return out.logits, out.loss

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *_: Any) -> CausalOutput:
        """One batch through the rank's stages without a schedule, as an evaluation does; what comes is made here."""
        assert labels is not None
        out = loss = None
        for index, number in enumerate(self.numbers):
            x = input_ids if number == 0 else empty((*input_ids.shape, self.width), self.dtype, "c10d::recv")
            out, loss = self.run_stage(index, x, labels)
        return CausalOutput(out, loss if loss is not None else out)


def build_stages(config: Mapping[str, Any], recipe: Training, where: str) -> Stages:
    """The stages of a rank: stages go round the ranks, each with as many layers.

    Raises:
        UsageError: the layers do not divide.
        NotModelledError: another model than a plain decoder like Llama.
    """
    from weigh.models.llama import LlamaForCausalLM, LlamaModel

    total = recipe.pipeline * recipe.virtual_pipeline
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        raise NotModelledError(f"a pipeline of {config.get('model_type')}", where="pipeline")
    if layers % total:
        what = f"{layers} layers do not divide into {total} stages"
        raise UsageError(what, where="pipeline", hint="Give a divisor.")
    numbers = [_rank(recipe) + turn * recipe.pipeline for turn in range(recipe.virtual_pipeline)]
    parts: list[Any] = []
    for number in numbers:
        part: Any = models.build({**config, "num_hidden_layers": layers // total}, recipe.dtype, where, to_run=True)
        plain = isinstance(part, LlamaForCausalLM) and type(part.model).embed is LlamaModel.embed
        kinds = set(part.config.layer_types) if isinstance(part, LlamaForCausalLM) else set()
        if not plain or len(kinds) > 1 or part.lm_head.weight is part.model.embed_tokens.weight:
            why = "whose layers are of several kinds, or whose head is its embedding" if plain else "unlike Llama"
            raise NotModelledError(f"a pipeline of {config.get('model_type')}, {why},", where="pipeline")
        if number > 0:
            part.model.embed_tokens = Missing()
        if number < total - 1:
            setattr(part.model, part.model.norm_name, Missing())
            part.lm_head = Missing()
        parts.append(part)
    found = Stages(parts, numbers, total - 1, recipe.dtype)
    found.model_type = parts[0].model_type
    return found


def _rank(recipe: Training) -> int:
    """Pipeline ranks are furthest from each other."""
    return recipe.rank // (recipe.mesh.world // recipe.pipeline)


class Pipeline:
    """The buffers of a rank's stages, and its steps."""

    def __init__(self, model: Stages, recipe: Training) -> None:
        self.model = model
        self.recipe = recipe
        shape = recipe.batch, recipe.sequence, model.width
        count = recipe.accumulation

        def buffers(wanted: bool) -> list[Tensor]:
            kept = [
                empty(shape, recipe.dtype, "aten::empty", purpose=COMMUNICATION) for _ in range(count if wanted else 0)
            ]
            for buffer in kept:
                buffer.requires_grad = True
            return kept

        self.received = [buffers(number > 0) for number in model.numbers]
        self.gradients = [buffers(number < model.last) for number in model.numbers]
        self.waiting: dict[tuple[int, int], tuple[Tensor, Tensor | None, Tensor]] = {}
        self.losses: list[Tensor] = []
        """Of all micro-batches, until the next step."""
        self.sent: Tensor | None = None
        """The gradient that is on its way to the stage before."""

    def step(self, chosen: Optimizer, input_ids: Tensor, labels: Tensor, number: int, zero_grad: bool) -> None:
        """Every micro-batch forward and back."""
        recipe, ledger = self.recipe, state.ledger
        self.losses.clear()
        schedule = recipe.pipeline_schedule or (ONE_F_ONE_B if recipe.virtual_pipeline == 1 else INTERLEAVED)
        actions = order(schedule, recipe.pipeline, _rank(recipe), recipe.accumulation, recipe.virtual_pipeline)
        for place, (forward, stage, micro_batch) in enumerate(actions):
            ledger.mark(FORWARD if forward else BACKWARD, number)
            if zero_grad and not place:
                with by_owner():
                    chosen.zero_grad(recipe.set_to_none)
            if forward:
                self.forward(stage, micro_batch, input_ids, labels)
            else:
                self.backward(stage, micro_batch)
        self.sent = None

    def forward(self, stage: int, micro_batch: int, input_ids: Tensor, labels: Tensor) -> None:
        """`forward_one_chunk`, and the loss."""
        batch = self.recipe.batch
        first = self.model.numbers[stage] == 0
        x = input_ids.narrow(0, batch) if first else self.received[stage][micro_batch]
        out, loss = self.model.run_stage(stage, x, labels.narrow(0, batch))
        if loss is not None:
            self.losses.append(loss.alias())
        self.waiting[stage, micro_batch] = out, loss, x

    def backward(self, stage: int, micro_batch: int) -> None:
        """`backward_one_chunk`: the last stage goes back from its loss, and holds the logits while it does."""
        out, loss, x = self.waiting.pop((stage, micro_batch))
        if loss is not None:
            loss.backward()  # gradients are scaled at the end, in place
        else:
            backward([out], [self.gradients[stage][micro_batch].alias()])
        self.sent, x.grad = x.grad, None
