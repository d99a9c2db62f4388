"""Adapters beside four-bit layers in one autograd function each, as fms-acceleration runs them (Unsloth's "fast LoRA").

Read: fms-acceleration, plugins/fused-ops-and-kernels, fused_ops/unsloth_lora/bnb/fast_lora.py (`LoRA_QKV`, `LoRA_W`),
unsloth_lora/utils.py (`matmul_lora`, `fast_dequantize`), models/utils.py. Nothing between the input and the projections
is saved but the input as each dropout left it, and the input's gradient is written over the input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

from weigh.dims import Size
from weigh.dtypes import BOOL, FLOAT32
from weigh.errors import NotModelledError, WeighError
from weigh.ghost import ops
from weigh.ghost.nn import Module
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.lora import LoraLinearBnb
from weigh.techniques.quantization import Linear4bit

QKV = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class FusedLora(Technique):
    """Queries, keys and values in one function, the attention's output in another."""

    def apply(self, model: Module) -> None:
        """Fuse where all of the layers are adapted.

        Raises:
            NotModelledError: the MLPs are adapted, which upstream fuses too.
            WeighError: no attention has adapters on four-bit layers.
        """
        found = False
        for module in model.modules():
            adapted = {name: child for name, child in module.children() if _in_four_bits(child)}
            if adapted.keys() >= set(MLP):
                raise NotModelledError("fused adapters of MLPs", where="fused_kernels")
            if adapted.keys() >= set(QKV):
                found = True
                _fuse([adapted[name] for name in QKV])
                if "o_proj" in adapted:
                    _fuse([adapted["o_proj"]])
        if not found:
            raise WeighError(
                "there are no adapters to fuse", hint="It looks for q_proj, k_proj and v_proj, adapted in four bits."
            )


def _in_four_bits(module: Module) -> TypeGuard[LoraLinearBnb]:
    return isinstance(module, LoraLinearBnb) and isinstance(module.base_layer, Linear4bit)


def _fuse(projections: list[LoraLinearBnb]) -> None:
    """The first to be called computes the results of all; the others take theirs."""
    results: dict[int, Tensor] = {}

    def call(number: int, _: Callable[..., Any], x: Tensor) -> Tensor:
        if not results:
            weights = [t for p in projections for t in (p.lora_A.weight, p.lora_B.weight)]
            made = apply(FusedProjections, x, *weights, projections=projections)
            results.update(enumerate(made))
        return results.pop(number)

    for number, projection in enumerate(projections):
        projection.wrap_in(partial(call, number))


class FusedProjections(Op):
    """`LoRA_QKV` and `LoRA_W`: the same but that the latter has its gradient in a tensor of its own."""

    name = "LoRA_QKV"
    source = "fms_acceleration_foak/fused_ops/unsloth_lora/bnb/fast_lora.py"
    differentiable = 3

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor, projections: list[LoraLinearBnb]) -> list[Tensor]:
        results, dropped = [], []
        with no_grad():
            for projection in projections:
                out, kept = _matmul_lora(x, projection)
                results.append(out)
                dropped.append(kept)
        if ctx:
            ctx.save(x, *weights, *dropped)
            ctx.meta = projections
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> list[Any]:
        saved = ctx.unpack()
        projections: list[LoraLinearBnb] = ctx.meta
        x, dropped = saved[0], saved[-len(projections) :]
        flat = [g.reshape(-1, g.shape[-1]) for g in gradients]
        made: list[Any] = []
        for grad, kept, projection in zip(flat, dropped, projections, strict=True):
            made += _adapter_gradients(grad, kept, projection)
        in_place = len(projections) > 1
        dx = None
        for grad, kept, projection in zip(flat, dropped, projections, strict=True):
            dx = _input_gradient(x if in_place and dx is None else None, dx, grad, kept, projection)
        assert dx is not None
        return [dx.view(*x.shape), *made]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0  # its products count themselves


def _fast_dequantize(layer: Linear4bit) -> Tensor:
    """`fast_dequantize`: the weight first, then its scales."""
    out = empty(layer.shape, layer.dtype, "fast_dequantize")
    empty((layer.blocks,), FLOAT32, "fast_dequantize")
    return out


def _base(projection: LoraLinearBnb) -> Linear4bit:
    assert isinstance(projection.base_layer, Linear4bit)
    return projection.base_layer


def _matmul_lora(x: Tensor, projection: LoraLinearBnb) -> tuple[Tensor, Tensor]:
    """`matmul_lora`: the result, and the input as dropout left it."""
    dtype = x.dtype
    weight = _fast_dequantize(_base(projection))
    flat = x.view(-1, x.shape[-1])
    out = ops.matmul(flat, weight.t())
    del weight
    flat = ops.dropout(flat, projection.p, projection.training)
    low = ops.matmul(flat, projection.lora_A.weight.to(dtype).t())
    out = ops.add_(out, ops.matmul(low, projection.lora_B.weight.to(dtype).t() * 2.0))
    del low
    return out.view(*x.shape[:-1], out.shape[-1]), flat


def _adapter_gradients(grad: Tensor, x: Tensor, projection: LoraLinearBnb) -> list[Tensor]:
    """Those of A and of B."""
    a, b = projection.lora_A.weight, projection.lora_B.weight
    d_a = ops.matmul(x.t(), ops.matmul(grad, b))
    d_b = ops.matmul(ops.matmul(a, x.t()), grad)
    return [d_a.t(), d_b.t()]


def _input_gradient(
    out: Tensor | None, dx: Tensor | None, grad: Tensor, x: Tensor, projection: LoraLinearBnb
) -> Tensor:
    """What one projection adds to `dx`; the first writes into `out`, if it is given."""
    dtype = x.dtype
    weight = _fast_dequantize(_base(projection))
    if out is not None:
        dx = out.alias().view(*x.shape)  # `torch.matmul(dQ, QW.t(), out=X)`
    else:
        product = ops.matmul(grad, weight)
        dx = product if dx is None else ops.add_(dx, product)
        del product
    del weight
    kept = empty(x.shape, BOOL, "aten::ne")
    low = ops.matmul(grad, projection.lora_B.weight.to(dtype))
    through = ops.matmul(low, projection.lora_A.weight.to(dtype) * 2.0)
    del low
    return ops.add_(dx, kept * through)
