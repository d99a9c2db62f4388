"""Optimizers of PyTorch whose states are 8-bit codes in blocks (Dettmers et al. 2021, arXiv:2110.02861).

An update does six things: (1) dequantize the states to fp32, (2) move the mean of the gradients, (3) move the mean
of their squares, (4) correct both for having begun at zero, (5) change the weights, (6) quantize the states again.
Optimizers with one state leave out (3) and (4). Means are codes of the signed dynamic map, means of squares of the
unsigned one, found exactly (the CPU kernel of bitsandbytes finds them inexactly, and turns zeros into 2e-5 of their
block's largest).

Tensors of fewer than 4,096 values keep states in fp32, as in bitsandbytes; so do embeddings, which the paper asks
for (`embeddings` names them), because their gradients are of very different sizes. The tables are one for all
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from weigh.errors import UsageError
from weigh.quant import codebooks

BLOCK, LEAST = 256, 4096


class Table:
    """A dynamic map on a device, and the exact nearest codes of it."""

    def __init__(self, signed: bool, block: int, device: torch.device) -> None:
        book = codebooks.dynamic(signed)
        self.values = torch.from_numpy(book.values.copy()).to(device)
        self.borders = torch.from_numpy(book.borders.copy()).to(device)
        """Between the values: they follow from those, and are nobody's state."""
        self.block = block

    def quantize(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in the state's shape, and the largest magnitude of each block of values."""
        flat = state.reshape(-1)
        padded = nn.functional.pad(flat, (0, -flat.numel() % self.block)).reshape(-1, self.block)
        absmax = padded.abs().amax(dim=1)
        scaled = (padded * (1 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1)
        codes = torch.bucketize(scaled, self.borders, out_int32=True).to(torch.uint8)
        return codes.reshape(-1)[: flat.numel()].reshape(state.shape), absmax

    def dequantize(self, codes: Tensor, absmax: Tensor) -> Tensor:
        """The state in fp32."""
        flat = self.values[codes.reshape(-1).int()]
        scales = absmax.repeat_interleave(self.block)[: flat.numel()]
        return (flat * scales).reshape(codes.shape)


class EightBit(torch.optim.Optimizer):
    """What they share: where states are in 8 bits, and the way there and back."""

    signed: tuple[bool, ...] = (True, False)
    """Of each state, whether it has a sign."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        block: int = BLOCK,
        least: int = LEAST,
        in_32_bits: Iterable[Tensor] = (),
    ) -> None:
        if block < 1 or least < 0:
            raise UsageError(f"block {block} and least {least}", hint="Give a block of 1 or more, and least from 0 on.")
        if defaults["lr"] < 0 or defaults["weight_decay"] < 0 or not all(0 <= b < 1 for b in defaults["betas"]):
            raise UsageError(f"{defaults} cannot be", hint="Rates are not negative, betas from 0 up to below 1.")
        self.block, self.least = block, least
        self.in_32_bits = {id(p) for p in in_32_bits}
        self.tables: dict[torch.device, tuple[Table, ...]] = {}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` computes the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def update(self, weight: Tensor, grad: Tensor, states: list[Tensor], group: dict[str, Any], step: int) -> None:
        """Change the weight and the states, all fp32, in place."""
        raise NotImplementedError

    def state_bytes(self) -> int:
        """What states and tables take."""
        states = (t for state in self.state.values() for t in state.values() if isinstance(t, Tensor))
        tables = (table.values for tables in self.tables.values() for table in tables)
        return sum(t.numel() * t.element_size() for t in (*states, *tables))

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        eight = parameter.numel() >= self.least and id(parameter) not in self.in_32_bits
        states = self._dequantized(parameter, state) if eight else self._plain(parameter, state)  # 1
        weight = parameter.detach().float()
        self.update(weight, parameter.grad.float(), states, group, state["step"])  # 2 to 5
        parameter.copy_(weight)
        if eight:
            for i, (table, values) in enumerate(zip(self._tables(parameter), states, strict=True), 1):  # 6
                state[f"state{i}"], state[f"absmax{i}"] = table.quantize(values)

    def _plain(self, parameter: Tensor, state: dict[str, Any]) -> list[Tensor]:
        for i in range(1, len(self.signed) + 1):
            if f"state{i}" not in state:
                state[f"state{i}"] = torch.zeros_like(parameter, dtype=torch.float32)
        return [state[f"state{i}"] for i in range(1, len(self.signed) + 1)]

    def _dequantized(self, parameter: Tensor, state: dict[str, Any]) -> list[Tensor]:
        if "state1" not in state:
            return [torch.zeros_like(parameter, dtype=torch.float32) for _ in self.signed]
        tables = enumerate(self._tables(parameter), 1)
        return [table.dequantize(state[f"state{i}"], state[f"absmax{i}"]) for i, table in tables]

    def _tables(self, parameter: Tensor) -> tuple[Table, ...]:
        device = parameter.device
        if device not in self.tables:
            self.tables[device] = tuple(Table(signed, self.block, device) for signed in self.signed)
        return self.tables[device]

    def load_state_dict(self, state_dict: Any) -> None:
        """As PyTorch's, which would cast the codes to the parameters' dtype."""
        super().load_state_dict(state_dict)
        loaded = list(state_dict["state"].values())
        for found, given in zip(self.state.values(), loaded, strict=True):
            for name, value in given.items():
                if isinstance(value, Tensor):
                    found[name] = value.clone()


class Adam8bit(EightBit):
    """Adam; weight decay is part of the gradient."""

    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **kept: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, **kept)

    def update(self, weight: Tensor, grad: Tensor, states: list[Tensor], group: dict[str, Any], step: int) -> None:
        mean, square = states
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        if decay and not self.decoupled:
            grad = grad.add(weight, alpha=decay)
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)  # 2
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)  # 3
        root = (square.sqrt() / sqrt(1 - beta2**step)).add_(group["eps"])  # 4
        rate = lr / (1 - beta1**step)
        if decay and self.decoupled:
            weight.mul_(1 - lr * decay)
        weight.addcdiv_(mean, root, value=-rate)  # 5


class AdamW8bit(Adam8bit):
    """AdamW; weight decay is apart from the gradient."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **kept: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **kept)


class Lion8bit(EightBit):
    """Lion (Chen et al. 2023, arXiv:2302.06675): the sign of a mean, and one state."""

    signed = (True,)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **kept: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, **kept)

    def update(self, weight: Tensor, grad: Tensor, states: list[Tensor], group: dict[str, Any], step: int) -> None:
        (mean,), (beta1, beta2), lr = states, group["betas"], group["lr"]
        if group["weight_decay"]:
            weight.mul_(1 - lr * group["weight_decay"])
        weight.add_((mean * beta1 + grad * (1 - beta1)).sign(), alpha=-lr)  # 5
        mean.mul_(beta2).add_(grad, alpha=1 - beta2)  # 2, which Lion does after it


class SGD8bit(EightBit):
    """Stochastic gradient descent with momentum."""

    signed = (True,)

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, **kept: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": (momentum,), "weight_decay": weight_decay}, **kept)

    def update(self, weight: Tensor, grad: Tensor, states: list[Tensor], group: dict[str, Any], step: int) -> None:
        (momentum,), (beta,) = states, group["betas"]
        if group["weight_decay"]:
            grad = grad.add(weight, alpha=group["weight_decay"])
        if step == 1:
            momentum.copy_(grad)
        else:
            momentum.mul_(beta).add_(grad)  # 2
        weight.add_(momentum, alpha=-group["lr"])  # 5


def embeddings(model: nn.Module) -> list[Tensor]:
    """The weights of embeddings, for `in_32_bits`: tied output layers are among them."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
