"""The matrix library's workspaces: memory of PyTorch's allocator that no tensor has.

PyTorch gives every cuBLAS handle a workspace for each stream, out of its caching allocator, at the first matrix
product; threads have handles of their own, so that the forward pass and autograd's thread make one each, and keep it.
Source: aten/src/ATen/cuda/CublasHandlePool.cpp (`parseChosenWorkspaceSize`, `getCUDABlasLtWorkspace`): 4096 KiB x 2 +
16 KiB x 8, or 32 MiB on compute capability 9 (and 10 to 12 in later versions). What cublasLt takes besides (products
with a bias) is not counted.
"""

from __future__ import annotations

from weigh.dtypes import UINT8
from weigh.errors import UsageError
from weigh.ghost.tensor import Tensor, empty
from weigh.trace.events import BACKWARD, FORWARD, PREFILL, WORKSPACE

USUAL = 4096 * 1024 * 2 + 16 * 1024 * 8
LARGE = 4096 * 1024 * 8


def workspace_bytes(compute_capability: str) -> int:
    """Bytes of one handle's workspace on a device.

    >>> workspace_bytes("8.0"), workspace_bytes("9.0")
    (8519680, 33554432)

    Raises:
        UsageError: it is no compute capability.
    """
    major, dot, minor = compute_capability.partition(".")
    if not (major.isdecimal() and dot and minor.isdecimal()):
        raise UsageError(
            f"{compute_capability!r} is no compute capability", where="compute_capability", hint='Write it as "8.0".'
        )
    return LARGE if 9 <= int(major) <= 12 else USUAL


class Workspaces:
    """The workspaces of one process: each thread's is made when its first phase begins, and kept."""

    def __init__(self, compute_capability: str) -> None:
        self.num_bytes = workspace_bytes(compute_capability)
        self.by_thread: dict[str, Tensor] = {}

    def begin(self, phase: str) -> None:
        """A phase begins; backward passes run in autograd's own thread."""
        if phase not in (FORWARD, BACKWARD, PREFILL):
            return
        thread = "autograd" if phase == BACKWARD else "main"
        if thread not in self.by_thread:
            self.by_thread[thread] = empty((self.num_bytes,), UINT8, "cublasSetWorkspace", purpose=WORKSPACE)
