"""Functions that `weigh trace support.models:NAME` calls: models of other kinds, and some that misbehave."""

from __future__ import annotations

import os
import time
from typing import Any

import torch


class TwoLayers(torch.nn.Module):
    """A plain network."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(64, 256)
        self.down = torch.nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def squared(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean square of the output."""
    return model(batch["x"]).square().mean()


def plain() -> Any:
    """A network without a config."""
    return TwoLayers(), {"x": torch.randn(32, 64)}, squared


def wrong() -> Any:
    """Returns too little."""
    return TwoLayers()


def eight_bit() -> Any:
    """bitsandbytes' AdamW, whose CPU kernels allocate inside custom ops."""
    import bitsandbytes

    def optimizer(parameters: list[torch.nn.Parameter]) -> Any:
        return bitsandbytes.optim.AdamW8bit(parameters, min_8bit_size=0)

    return TwoLayers(), {"x": torch.randn(32, 64)}, squared, optimizer


class Choosing(TwoLayers):
    """Control flow that depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def choosing() -> Any:
    """Cannot be traced without values."""
    return Choosing(), {"x": torch.randn(32, 64)}, squared


class Sieve(TwoLayers):
    """A shape that depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[x[:, 0].nonzero()[:, 0]])


def sieve() -> Any:
    """Cannot be traced without values."""
    return Sieve(), {"x": torch.randn(32, 64)}, squared


def bare_attention() -> Any:
    """Calls the op behind `scaled_dot_product_attention` past the function that chooses for it."""

    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        x = model(batch["x"]).view(1, 4, 32, 16)
        return torch._C._nn.scaled_dot_product_attention(x, x, x).sum()

    return TwoLayers(), {"x": torch.randn(32, 64)}, loss


def aborting() -> Any:
    """Ends the process as C++ does."""
    os.abort()


def hanging() -> Any:
    """Never comes back."""
    time.sleep(600)
