"""What a piece of real PyTorch allocates, seen through a dispatch mode: every storage's birth and death."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Counts the live bytes of the storages of one device. It sees what ops return, not what kernels use inside."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.live = 0
        self.known: dict[int, Any] = {}
        """The living storages: PyTorch's address of each, and a weak reference that reports its death."""
        self.births: list[int] = []
        """The live bytes after each birth."""
        self.ops: list[str] = []
        """The op of each birth."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device:
                self._see(leaf.untyped_storage(), func)
        return result

    def _see(self, storage: torch.UntypedStorage, func: Any) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.known or not num_bytes:
            return

        def died(_: Any) -> None:
            del self.known[key]
            self.live -= num_bytes

        self.known[key] = weakref.ref(storage, died)
        self.live += num_bytes
        self.births.append(self.live)
        self.ops.append(str(func))

    def restart(self) -> int:
        """Forget the births so far; returns the live bytes."""
        self.births, self.ops = [], []
        return self.live
