"""LLM.int8() as a module of PyTorch: what `weigh.quant.llm_int8` does on arrays, where the tensors are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from weigh.quant import llm_int8
from weigh.quant.base import Packed


class Linear8bit(nn.Module):
    """A linear layer with an int8 weight, for inference: no gradient goes through it."""

    codes: Tensor
    absmax: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear, threshold: float = llm_int8.THRESHOLD) -> Linear8bit:
        """With the weight of a layer, which stays as it is."""
        weight = layer.weight.detach()
        packed: Packed = llm_int8.WEIGHT.quantize(weight.cpu().float().numpy())
        codes, absmax = (torch.from_numpy(packed.parts[name]).to(weight.device) for name in ("codes", "absmax"))
        return cls(codes, absmax, None if layer.bias is None else layer.bias.detach().clone(), threshold)

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        half = rows.half()
        large = half.abs() >= self.threshold if self.threshold > 0 else torch.zeros_like(half, dtype=torch.bool)
        outliers = large.any(dim=0)
        values = half.float().masked_fill(large, 0)
        absmax = values.abs().amax(dim=1, keepdim=True)
        # Divided: `127 / absmax` would multiply by the reciprocal, which PyTorch rounds before.
        scaled = values.masked_fill(outliers, 0) * torch.full_like(absmax, 127).div(absmax)
        codes = scaled.nan_to_num(0, 0, 0).round()
        total = torch.zeros(len(rows), len(self.codes), dtype=torch.int32, device=rows.device)
        for start in range(0, codes.shape[1], llm_int8.EXACT):  # exact in fp32, and int8 products are not everywhere
            piece = slice(start, start + llm_int8.EXACT)
            total += (codes[:, piece] @ self.codes[:, piece].float().T).int()
        out = total * (absmax * self.absmax) * float(llm_int8.SCALE)
        if self.bias is not None:
            out += self.bias
        out = out.to(hidden.dtype)
        if outliers.any():
            columns = (self.codes[:, outliers] * self.absmax[:, None] * (1 / 127)).to(hidden.dtype)
            out = (out.float() + rows[:, outliers].float() @ columns.float().T).to(hidden.dtype)
        return out.reshape(*hidden.shape[:-1], len(self.codes))


def convert(model: nn.Module, threshold: float = llm_int8.THRESHOLD, keep: Iterable[str] = ("lm_head",)) -> list[str]:
    """Put `Linear8bit` in place of linear layers but those whose names end with one of `keep`; returns the names."""
    kept = tuple(keep)
    found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith(kept)]
    for name in found:
        parent, _, attribute = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), attribute, Linear8bit.of(layer, threshold))
    return found
