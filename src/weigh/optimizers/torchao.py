"""torchao's AdamW with states in 8 bits, 4 bits or FP8, as `torchao/optim` (0.18) does it.

Keeps two states of one code a value and an fp32 scale for every block of values; those in 8 and 4 bits also a table of
numbers each. A tensor of less than 4,096 values, or one that its blocks do not fill, keeps states in its own dtype. The
update is compiled: what the compiler's kernels allocate for a moment is not modelled. `bf16_stochastic_round` changes
only those kernels.

`torchao_cpu_offload` is `CPUOffloadOptimizer`: weights of 4,096 values and more, their gradients and AdamW's states are
pinned on the host, and the fused AdamW of the rest stays on the device. With `torchao_cpu_offload_gradients` a gradient
leaves the device as soon as it has come (`offload_gradients`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from weigh.dtypes import FLOAT8_E4M3, FLOAT32, UINT8
from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor
from weigh.optimizers.adam import Adam
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE

LEAST = 4096
"""Values of a tensor from which on its states are quantized."""
BLOCKS = {"8bit": 256, "4bit": 128, "fp8": 256}
"""Values that share a scale."""
TWINS = 4
"""Copies of a weight on the host: itself, its gradient and two states."""
OFFLOADED = "weights, gradients and optimizer states of torchao's CPUOffloadOptimizer, pinned on the host"
CODES = {"8bit": 256, "4bit": 16, "fp8": 0}
"""Numbers in a table."""


class TorchAO(Optimizer):
    """`torchao.optim.AdamW8bit` and its likes."""

    implementations = ("forloop",)
    states_first = False
    default_decay = 0.01

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.kind = choice.name.rpartition("_")[2]
        self.block = choice.block or BLOCKS[self.kind]

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`, each with its scales and its table."""
        return [tensor for _ in range(2) for tensor in self._buffer(param)]

    def _buffer(self, param: Tensor) -> list[Tensor]:
        if param.numel < LEAST or param.numel % self.block:
            return [ops.zeros_like(param, OPTIMIZER_STATE)]
        keep = ops.kept_beside
        codes = {
            "8bit": lambda: keep(param, param.shape, UINT8, OPTIMIZER_STATE),
            "4bit": lambda: keep(param, (param.numel // 2,), UINT8, OPTIMIZER_STATE),
            "fp8": lambda: keep(param, param.shape, FLOAT8_E4M3, OPTIMIZER_STATE),
        }[self.kind]()
        scales = keep(param, (param.numel // self.block,), FLOAT32, OPTIMIZER_STATE)
        if not CODES[self.kind]:
            return [codes, scales]
        return [codes, scales, keep(param, (CODES[self.kind],), FLOAT32, OPTIMIZER_STATE)]

    def forloop(self) -> None:
        for param, _, _ in self.one_by_one():
            ops.in_place("torchao::single_param_adam", [param], reads=4, flops=14)


class CPUOffload(Optimizer):
    """`torchao.optim.CPUOffloadOptimizer(parameters, torch.optim.AdamW)`."""

    implementations = ("fused",)
    shardable = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.on_device = Adam(replace(choice, name="adamw", implementation="fused"))

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters; the large ones have a twin on the host."""
        super().own(parameters)
        large = [p for p in parameters if p.tensor.numel >= LEAST]
        self.on_device.own([p for p in parameters if p.tensor.numel < LEAST])
        held = sum(TWINS * p.count * p.tensor.num_bytes for p in large)
        self.elsewhere[OFFLOADED] = self.elsewhere.get(OFFLOADED, 0) + held

    def prepare(self) -> None:
        self.on_device.prepare()

    def step(self) -> None:
        """The small parameters' update; the others' weights come back into their places."""
        self.on_device.step()


class CPUOffloadGradients(CPUOffload):
    """The same with `offload_gradients=True`."""

    hooks = True

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters; gradients of the large ones are dropped as they come."""
        super().own(parameters)
        for parameter in parameters:
            if parameter.tensor.numel >= LEAST:
                parameter.tensor.on_accumulated = partial(_drop, parameter.tensor)


def _drop(param: Tensor) -> None:
    param.grad = None


OPTIMIZER = TorchAO
