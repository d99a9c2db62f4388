"""What is done to weights outside of training: pruning, and codes in place of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from weigh.errors import UsageError
from weigh.measure.training import blocks

MASKS = ("magnitude", "2:4")


def matrices(model: Any) -> Iterator[tuple[torch.nn.Module, str, Any]]:
    """The linear layers of the blocks, each with the module that has it and its name there."""
    for block in blocks(model):
        for parent in block.modules():
            for name, child in parent.named_children():
                if type(child) in (torch.nn.Linear, Conv1D):
                    yield parent, name, child


def masks(model: Any, kind: str) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Every matrix of the blocks, and which of its weights are to be zero: True for half of them.

    "magnitude": the smaller half of the matrix. "2:4": of every four in a row, along what is summed over, the two
    smaller ones, as NVIDIA's sparse tensor cores want it.
    """
    found = []
    for _, _, layer in list(matrices(model)):
        size = layer.weight.detach().abs()
        if kind == "magnitude":
            mask = size <= size.flatten().kthvalue(size.numel() // 2).values
        else:
            size = size.T if isinstance(layer, Conv1D) else size
            fours = size.reshape(size.shape[0], -1, 4)
            mask = torch.zeros_like(fours, dtype=torch.bool)
            mask.scatter_(-1, fours.argsort(-1)[..., :2], True)
            mask = mask.reshape(size.shape)
            mask = mask.T.contiguous() if isinstance(layer, Conv1D) else mask
        found.append((layer.weight, mask))
    return found


_LLAMA = re.compile(r"(.*\.mlp)\.down_proj\.weight")
_GPT = re.compile(r"(.*\.mlp)\.c_proj\.weight")


def without_half_of_the_neurons(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model whose feed-forward layers have half as many neurons: those with the larger norms.

    A neuron's norm is that of all weights into it and out of it.
    """
    found = dict(weights)
    for name in weights:
        if match := _LLAMA.fullmatch(name):
            into, out = [f"{match[1]}.gate_proj.weight", f"{match[1]}.up_proj.weight"], name
            norms = sum(weights[n].square().sum(1) for n in into) + weights[out].square().sum(0)
            kept = _larger_half(norms)
            found |= {n: weights[n][kept] for n in into} | {out: weights[out][:, kept]}
        elif match := _GPT.fullmatch(name):
            into, out = [f"{match[1]}.c_fc.weight"], name
            kept = _larger_half(weights[into[0]].square().sum(0) + weights[out].square().sum(1))
            bias = f"{match[1]}.c_fc.bias"
            found |= {into[0]: weights[into[0]][:, kept], bias: weights[bias][kept], out: weights[out][kept]}
    return found


def _larger_half(norms: Any) -> torch.Tensor:
    chosen: torch.Tensor = norms.topk(len(norms) // 2).indices.sort().values
    return chosen


class Int8(torch.nn.Module):
    """A layer whose weight is codes, and for every row a scale: its largest weight over 127."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("codes", (weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        del layer.weight
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        self.layer.weight = self.codes.to(torch.float32) * self.scales
        out: torch.Tensor = self.layer(x)
        del self.layer.weight
        return out


def to_int8(model: Any) -> None:
    """Every matrix of the blocks in int8."""
    for parent, name, layer in list(matrices(model)):
        setattr(parent, name, Int8(layer))


def to_four_bits(model: Any, kind: str) -> None:
    """Every linear layer of the blocks as bitsandbytes stores it.

    Raises:
        UsageError: there is none; transformers' `Conv1D` is not replaced.
    """
    from bitsandbytes.nn import Linear4bit

    found = [place for place in matrices(model) if type(place[2]) is torch.nn.Linear]
    if not found:
        raise UsageError("bitsandbytes finds no linear layer", where="nf4", hint="Use --model llama.")
    for parent, name, layer in found:
        made = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type=kind)
        made.load_state_dict(layer.state_dict())
        setattr(parent, name, made.to("cpu"))  # where it is quantized


def scales(model: Any) -> list[torch.Tensor]:
    """What belongs to weights and is no parameter: codes and scales."""
    found = [t for module in model.modules() if isinstance(module, Int8) for t in (module.codes, module.scales)]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        found += [] if state is None else [state.absmax, state.code]
    return found
