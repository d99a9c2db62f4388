"""The exact answers that rules are held against, divided into parts that the rules' terms can name.

Each method is one quantity. It asks `weigh.api` and divides; nothing is computed here that could be got wrong twice.
"""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.ghost import nn
from weigh.records import replace
from weigh.report.parts import layer
from weigh.rules.rule import BYTES, FLOP, PARAMETERS
from weigh.trace.events import ACTIVATION, BACKWARD, FORWARD, GRADIENT, INPUT, OPTIMIZER_STATE, WEIGHT, Allocation
from weigh.trace.peak import Moment, live_counts, phase_peaks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from weigh.dims import Size
    from weigh.report.parameters import TensorRow
    from weigh.report.training import TrainingReport
    from weigh.rules.job import Job

TOKENS, POSITIONS = "token embedding", "position embedding"
SCORES = "attention scores"
CASTS, CAST = "casts of weights", "aten::_to_copy"
"""What autocast keeps of every weight until the forward pass ends, and the op that makes it."""
BIASES = {nn.ATTENTION: "attention biases", nn.MLP: "mlp biases"}
STATES = (WEIGHT, GRADIENT, OPTIMIZER_STATE)
QLORA = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
"""The config that QLoRA's authors quantize with."""


def unit(quantity: str) -> str:
    """What a quantity is counted in.

    >>> unit("parameters_of_layer"), unit("states"), unit("flops")
    ('parameters', 'bytes', 'FLOP')
    """
    return PARAMETERS if quantity.startswith("parameters") else FLOP if quantity == "flops" else BYTES


class Exact:
    """The exact answers about one job; `settings` replace the job's where a rule presupposes others."""

    def __init__(self, job: Job, settings: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.job = job
        self.settings = {**job.settings, **settings}

    @cached_property
    def trained(self) -> TrainingReport:
        """The training, run."""
        return api.train(self.job.source, runtime=self.job.runtime, **self.settings)

    # -- parameters
    def parameters(self, keep: Callable[[TensorRow], bool] = lambda row: True) -> dict[str, int]:
        """Parameters by component; positions and the biases of attention and mlp on their own."""
        found: dict[str, int] = {}
        for row in self.job.counted.rows:
            if keep(row):
                part = self._part(row)
                found[part] = found.get(part, 0) + row.total
        return found

    def _part(self, row: TensorRow) -> str:
        if row.component == nn.EMBEDDING:
            return TOKENS if row is self.job.embedding else POSITIONS
        return BIASES.get(row.component, row.component) if len(row.shape) == 1 else row.component

    def _parameters_in(self, component: str) -> dict[str, int]:
        return self.parameters(lambda row: row.component == component)

    def parameters_of_embedding(self) -> dict[str, int]:
        """Those of the embeddings."""
        return self._parameters_in(nn.EMBEDDING)

    def parameters_of_attention(self) -> dict[str, int]:
        """Those of attention."""
        return self._parameters_in(nn.ATTENTION)

    def parameters_of_feed_forward(self) -> dict[str, int]:
        """Those of feed-forward layers, experts and their routers."""
        return self._parameters_in(nn.MLP)

    def parameters_of_norms(self) -> dict[str, int]:
        """Those of norms."""
        return self._parameters_in(nn.NORM)

    def parameters_of_layer(self) -> dict[str, int]:
        """Those of one layer, on average over the layers."""
        inside = self.parameters(lambda row: layer(row.names[0]) is not None)
        return {part: round(count / self.job.L) for part, count in inside.items()}

    def parameters_without_embeddings(self) -> dict[str, int]:
        """Those in no embedding and no output layer."""
        return self.parameters(lambda row: row.component not in (nn.EMBEDDING, nn.HEAD))

    # -- weights
    def weights(self) -> dict[str, int]:
        """Bytes of the weights in the job's dtype."""
        return {WEIGHT: self.job.counted.num_bytes}

    def qlora_weights(self) -> dict[str, int]:
        """Bytes of the model as bitsandbytes stores it in NF4 with double quantization, by dtype."""
        config = {**self.job.source.config, "quantization_config": QLORA}
        stored = api.params(config, "bf16").stored
        assert stored is not None
        return {name: num_bytes for name, (num_bytes, _) in stored.by_dtype().items()}

    def saved_by_8bit(self) -> dict[str, int]:
        """Bytes that the optimizer's states are smaller than Adam's two in 32 bit."""
        return {"states": 8 * self.job.N - sum(self.optimizer_states().values())}

    # -- training
    def training(self) -> dict[str, int]:
        """Bytes at the peak of a training step, by purpose."""
        return self.trained.memory.by_purpose()

    def states(self) -> dict[str, int]:
        """Bytes of weights, gradients and optimizer states when the last backward pass ends."""
        return self._live(self._after(BACKWARD), lambda a: a.purpose if a.purpose in STATES else None)

    def optimizer_states(self) -> dict[str, int]:
        """Bytes of the optimizer's states when the last backward pass ends, by dtype."""
        return self._live(self._after(BACKWARD), lambda a: a.dtype if a.purpose == OPTIMIZER_STATE else None)

    def resident(self) -> dict[str, int]:
        """All bytes that are live when the last backward pass ends, by purpose."""
        return self._live(self._after(BACKWARD), lambda a: a.purpose)

    def activations(self) -> dict[str, int]:
        """Bytes of activations when the last forward pass ends, by component, attention's scores on their own."""
        return self._live(self._after(FORWARD), lambda a: self._component(a) if a.purpose == ACTIVATION else None)

    def activations_of_layers(self) -> dict[str, int]:
        """Those inside of layers."""
        inside = self.trained.parts.layer

        def part(a: Allocation) -> str | None:
            return self._component(a) if a.purpose == ACTIVATION and inside(a.path) is not None else None

        return self._live(self._after(FORWARD), part)

    def activations_at_peak(self) -> dict[str, int]:
        """Most bytes in the last backward pass, by component, that are not weights, gradients, states or inputs."""
        kept = (*STATES, INPUT)
        trace = self.trained.run.trace
        others = [_weightless(a) if a.purpose in kept else a for a in trace.allocations]
        peaks = phase_peaks(replace(trace, allocations=others), rounded=True)
        moment = [p.moment for p in peaks if p.mark.phase == BACKWARD][-1]
        assert moment is not None
        return self._live(moment, lambda a: None if a.purpose in kept else self._component(a))

    def _component(self, allocation: Allocation) -> str:
        if self.trained.recipe.autocast and allocation.op == CAST and allocation.shape in self._shapes:
            return CASTS
        component = self.trained.parts.component(allocation)
        squares = allocation.shape[-2:] == (self.job.S, self.job.S)
        return SCORES if component == nn.ATTENTION and squares else component

    @cached_property
    def _shapes(self) -> set[tuple[Size, ...]]:
        return {p.tensor.shape for p in self.trained.run.parameters}

    def _after(self, phase: str) -> Moment:
        """The end of the last phase of that name."""
        trace = self.trained.run.trace
        number = [spans[-1] for mark, spans in trace.sections() if mark.phase == phase][-1]
        span = trace.spans[number]
        return Moment(number, span.count - 1, span.stop - 1)

    def _live(self, moment: Moment, part: Callable[[Allocation], str | None]) -> dict[str, int]:
        """Bytes at a moment, by what `part` says of each storage; None leaves it out."""
        memory, trace = self.trained.memory, self.trained.run.trace
        found: dict[str, int] = {}
        for index, count in live_counts(trace, moment).items():
            allocation = trace.allocations[index]
            name = part(allocation)
            if name is not None:
                found[name] = found.get(name, 0) + memory.size(allocation) * count
        return {name: size for name, size in found.items() if size}

    def flops(self) -> dict[str, int]:
        """Floating-point operations of the forward and backward passes of a step."""
        return {phase: count for phase, count in self.trained.flops().items() if phase in (FORWARD, BACKWARD)}

    # -- inference
    def inference(self) -> dict[str, int]:
        """Bytes at the peak of reading the same batch of prompts and answering with one token, by purpose."""
        job = self.job
        made = api.generate(job.source, batch=job.B, prompt=job.S, new_tokens=1, dtype=job.cache_dtype)
        return made.memory.by_purpose()

    def cache(self) -> dict[str, int]:
        """Bytes of keys, values and states of B sequences of S tokens."""
        job = self.job
        kept = api.kv(job.source, job.cache_dtype, context=job.S, concurrency=job.B)
        states = job.B * kept.state_bytes
        return {"keys and values": kept.num_bytes - states, **({"states": states} if states else {})}


def _weightless(a: Allocation) -> Allocation:
    """The same storage, of no bytes."""
    return Allocation(0, a.op, a.path, a.purpose, a.phase, a.shape, a.dtype, a.unit)
