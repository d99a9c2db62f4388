"""What a loop tells those who watch it: which phase begins, what the model is, what the optimizer keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


class Watcher:
    """Told of a run as it goes; does nothing by itself."""

    def mark(self, phase: str, round: int = 0) -> None:
        """A phase begins."""

    def loaded(self, model: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
        """The model and its inputs are there."""

    def reads(self, inputs: list[torch.Tensor]) -> None:
        """These are read next."""

    def stepped(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer has made its state."""

    def cached(self, tensors: list[tuple[torch.Tensor, bool]]) -> None:
        """These are in a cache: keys and values, or (True) states of constant size."""

    def end(self) -> None:
        """The run is over; what dies from here on is no part of it."""


class Watchers(Watcher):
    """Several at once."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def mark(self, phase: str, round: int = 0) -> None:
        for watcher in self.watchers:
            watcher.mark(phase, round)

    def loaded(self, model: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
        for watcher in self.watchers:
            watcher.loaded(model, inputs)

    def reads(self, inputs: list[torch.Tensor]) -> None:
        for watcher in self.watchers:
            watcher.reads(inputs)

    def stepped(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for watcher in self.watchers:
            watcher.stepped(model, optimizer)

    def cached(self, tensors: list[tuple[torch.Tensor, bool]]) -> None:
        for watcher in self.watchers:
            watcher.cached(tensors)

    def end(self) -> None:
        for watcher in self.watchers:
            watcher.end()


def local_tensors(tensor: Any) -> list[torch.Tensor]:
    """The tensors that hold a tensor's data on this rank: a `DTensor`'s shard, a wrapper's parts, or itself.

    >>> local_tensors(None)
    []
    """
    if tensor is None:
        return []
    local = getattr(tensor, "_local_tensor", None)
    if local is not None:
        return local_tensors(local)
    if hasattr(tensor, "__tensor_flatten__") and not isinstance(tensor, FakeTensor):
        return [part for name in tensor.__tensor_flatten__()[0] for part in local_tensors(getattr(tensor, name))]
    return [tensor]


def plain_path(name: str) -> str:
    """A module's path without what wrappers add to it.

    >>> plain_path("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    'model.layers.0.self_attn.q_proj.lora_A.weight'
    >>> plain_path("module.model.norm")
    'model.norm'
    """
    for wrapper in ("module.", "base_model.model."):
        name = name.removeprefix(wrapper)
    parts = [p for p in name.split(".") if p not in ("_checkpoint_wrapped_module", "_orig_mod")]
    adapter = next((i for i, p in enumerate(parts) if p.startswith("lora_")), None)
    if adapter is not None and len(parts) > adapter + 1:
        del parts[adapter + 1]
    return ".".join(parts)
