"""LoRA: two thin matrices beside a frozen linear layer, as peft (0.21) places and runs them.

With its default settings peft keeps the adapters in fp32 beside a half-precision model, so that every adapted layer
casts its input up and its output down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from weigh.errors import InputError, NotModelledError, WeighError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor
from weigh.techniques import Technique
from weigh.techniques.quantization import Linear4bit

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the head."""


@dataclass(frozen=True, slots=True)
class Lora(Technique):
    """Adapt linear layers by name; everything else is frozen."""

    rank: int = 8
    """Width of the adapters."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers to adapt ("q_proj", "c_attn", ...); "all-linear" is all of them but the head."""
    dropout: float = 0.0
    """On the adapters' input."""
    autocast_adapter: bool = True
    """Keep the adapters of a half-precision model in fp32, as peft does by default."""
    input_gradients: bool = False
    """The embedding's output requires a gradient (`enable_input_require_grads`), as reentrant checkpointing needs."""

    def apply(self, model: Module) -> None:
        """Freeze the model and put adapters beside the layers that are named.

        Raises:
            WeighError: no linear layer has one of the names.
        """
        for parameter in model.parameters():
            parameter.tensor.requires_grad = False
        found = 0
        for parent in list(model.modules()):
            for name, child in list(parent.children()):
                if isinstance(child, nn.Linear | nn.Conv1D) and self._adapts(name, child):
                    with inside_unit(child.weight.storage.unit):
                        form = LoraLinear4bit if isinstance(child, Linear4bit) else LoraLinear
                        setattr(parent, name, form(child, self))
                    found += 1
        if not found:
            names = sorted({m.path.split(".")[-1] for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1D)})
            raise WeighError(
                f"LoRA found none of {', '.join(self.targets)}",
                where="lora",
                hint=f"This model has: {', '.join(names)}.",
            )
        if self.input_gradients:
            embedding = next(m for m in model.modules() if m.role == nn.EMBEDDING)
            embedding.wrap_in(_require_gradient)
        name_modules(model)

    def _adapts(self, name: str, layer: Module) -> bool:
        """Whether a layer is adapted ("all-linear": `_maybe_include_all_linear_layers` of `tuners/tuners_utils.py`)."""
        return name in self.targets or (self.targets == (ALL_LINEAR,) and layer.role != nn.HEAD)


def of_peft(config: Mapping[str, Any]) -> Lora:
    """The technique of an `adapter_config.json`.

    >>> of_peft({"peft_type": "LORA", "r": 16, "target_modules": ["q_proj"], "lora_dropout": 0.1})
    Lora(rank=16, targets=('q_proj',), dropout=0.1, autocast_adapter=True, input_gradients=False)

    Raises:
        InputError: the rank or the targets are missing.
        NotModelledError: another adapter, or a setting that adds other tensors.
    """
    if config.get("peft_type") != "LORA":
        raise NotModelledError(f"the adapter {config.get('peft_type')}", where="adapter_config.json: peft_type")
    for key in ("use_dora", "modules_to_save", "rank_pattern", "layers_to_transform", "target_parameters"):
        if config.get(key):
            raise NotModelledError(f"an adapter with {key}", where=f"adapter_config.json: {key}")
    if config.get("bias", "none") != "none":
        raise NotModelledError("an adapter that trains biases", where="adapter_config.json: bias")
    rank, targets = config.get("r"), config.get("target_modules")
    if not isinstance(rank, int) or not isinstance(targets, list | tuple):
        raise InputError("names no rank or no layers", where="adapter_config.json", hint="Add r and target_modules.")
    return Lora(rank, tuple(str(t) for t in targets), float(config.get("lora_dropout") or 0.0))


def _require_gradient(function: Callable[..., Any], *args: Any) -> Any:
    out: Tensor = function(*args)
    out.requires_grad = True
    return out


class LoraLinear(Module):
    """peft's `lora.Linear`: `base(x) + B(A(dropout(x))) * scaling`, in the adapter's dtype, cast back."""

    def __init__(self, base_layer: nn.Linear | nn.Conv1D, settings: Lora) -> None:
        super().__init__()
        shape, base = base_layer.weight.shape, base_layer.weight.dtype
        if isinstance(base_layer, Linear4bit):
            shape, base = base_layer.shape, base_layer.dtype
        width_in, width_out = shape if isinstance(base_layer, nn.Conv1D) else (shape[1], shape[0])
        dtype = _adapter_dtype(base, settings.autocast_adapter)
        self.base_layer = base_layer
        self.lora_A = nn.Linear(width_in, settings.rank, dtype)
        self.lora_B = nn.Linear(settings.rank, width_out, dtype)
        self.p = settings.dropout

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        result_dtype = result.dtype
        x = x.to(self.lora_A.weight.dtype)
        result = result + self.lora_B(self.lora_A(ops.dropout(x, self.p, self.training))) * 2.0
        result = result.to(result_dtype)
        return result


class LoraLinear4bit(LoraLinear):
    """peft's `lora.Linear4bit` (`tuners/lora/bnb.py`): the result is cloned; where autocast is on it does the casts."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        result = result.clone()
        expected_dtype = None
        if state.autocast is None:
            expected_dtype = result.dtype
            x = x.to(self.lora_A.weight.dtype)
        output = self.lora_B(self.lora_A(ops.dropout(x, self.p, self.training))) * 2.0
        if expected_dtype is not None:
            output = output.to(expected_dtype)
        result = result + output
        return result


def _adapter_dtype(base: DType, upcast: bool) -> DType:
    return FLOAT32 if upcast and base in (FLOAT16, BFLOAT16) else base
