"""Kernels: which implementation of an op runs. A set is a dict of op-table rows and choices that replace the defaults.

The default rows are those of eager PyTorch on CUDA; a set adds the choice of the attention kernel, and for other
surroundings (the CPU, a run seen through fake tensors) the rows that differ there.
"""

from __future__ import annotations

from typing import Any

from weigh.errors import NotModelledError, UnknownNameError


def kernels(
    device: str = "cuda", attention_kernel: str | None = None, traced: bool = False, unchecked: bool = False
) -> dict[str, Any]:
    """The kernels of a device: "cuda" or "cpu".

    `attention_kernel` forces what `scaled_dot_product_attention` runs: "flash", "efficient", "cudnn" or "math".
    `traced` gives the rows that fake tensors take instead (see `weigh.kernels.traced`). `unchecked` leaves out what
    CUDA checks of heads and widths before it chooses.

    Raises:
        UnknownNameError: no such device or attention kernel.
    """
    if device == "cpu":
        from weigh.kernels.cpu import CPU

        return dict(CPU)
    if device != "cuda":
        raise UnknownNameError("kernel device", device, ("cuda", "cpu"))
    from weigh.kernels.cuda import CUDA, attention_choice

    chosen: dict[str, Any] = {"scaled_dot_product_attention": attention_choice(attention_kernel, unchecked)}
    if not traced:
        return chosen | CUDA
    from weigh.kernels.traced import TRACED

    return chosen | TRACED


FUSED = ("liger", "unsloth")
"""Sets that replace parts of transformers' models."""


def fused_kernels(name: str | None, model_type: str) -> dict[str, Any]:
    """The kernels that replace the losses, norms and rotations of a family of models.

    Raises:
        UnknownNameError: there is no such set.
        NotModelledError: it has none for this family.
    """
    if name is None:
        return {}
    if name not in FUSED:
        raise UnknownNameError("set of fused kernels", name, FUSED)
    from weigh.kernels import liger_model, unsloth

    chosen = {"liger": liger_model, "unsloth": unsloth}[name]
    if model_type not in chosen.MODEL_TYPES:
        raise NotModelledError(f"{name}'s kernels for {model_type}", where="fused_kernels")
    return dict(chosen.KERNELS)
