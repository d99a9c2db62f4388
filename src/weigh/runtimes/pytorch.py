"""A plain PyTorch script: forward, `loss.backward()`, `optimizer.step()`, `optimizer.zero_grad()`."""

from __future__ import annotations

from weigh.runtimes import Runtime

RUNTIME = Runtime("pytorch", "2.13")
