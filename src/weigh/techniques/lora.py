"""LoRA: two thin matrices beside a frozen linear layer, as peft (0.21) places and runs them.

With its default settings peft keeps the adapters in fp32 beside a half-precision model, so that every adapted layer
casts its input up and its output down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.errors import NotModelledError, UsageError, WeighError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass, replace
from weigh.techniques.adapters.base import LINEAR, AdaptedLayer, LayerAdapter, widths
from weigh.techniques.awq import AwqLinear
from weigh.techniques.expert_lora import ParamWrapper
from weigh.techniques.int8 import Linear8bitLt
from weigh.techniques.packed import PackedLinear
from weigh.techniques.quantization import Linear4bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora(LayerAdapter):
    """Adapt linear layers by name; everything else is frozen."""

    kind: ClassVar[str] = "lora"
    keys: ClassVar[Mapping[str, str]] = {
        "dropout": "lora_dropout",
        "dora": "use_dora",
        "parameters": "target_parameters",
    }
    harmless: ClassVar[tuple[str, ...]] = (
        # factors and first values: the shapes, and what a step does, stay (PiSSA writes what is left into the weight)
        *("lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
    )
    on_quantized: ClassVar[bool] = True
    takes: ClassVar[tuple[type[Module], ...]] = (*LINEAR, nn.Embedding)

    rank: int = 8
    """Width of the adapters."""
    parameters: tuple[str, ...] = ()
    """Names of parameters that are no layer's weights ("experts.gate_up_proj", see `weigh.techniques.expert_lora`)."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Other widths for layers whose path ends with, or matches, a name."""
    dropout: float = 0.0
    """On the adapters' input."""
    dora: bool = False
    """Learn the length of each row of the weights too (see `weigh.techniques.dora`)."""
    bias: str = "none"
    """The model's own biases that are trained: "none", "all", or "lora_only", of the adapted layers."""
    lora_bias: bool = False
    """The second matrix has a bias."""

    def patterns(self) -> tuple[str, ...]:
        """Those of the widths too."""
        return (*LayerAdapter.patterns(self), *(name for name, _ in self.rank_pattern))

    def adapter(self, layer: nn.Linear | nn.Conv1D | nn.Embedding, shared: Any) -> Module:
        """What peft puts in the layer's place."""
        settings = replace(self, rank=self.rank_of(layer.path))
        if isinstance(layer, nn.Embedding):
            if self.dora or layer.__class__ is not nn.Embedding:
                kind = "DoRA" if self.dora else "LoRA"
                raise NotModelledError(f"{kind} on {layer.path}, a {type(layer).__name__}", where="lora")
            return LoraEmbedding(layer, settings)
        if not self.dora:
            bitsandbytes = isinstance(layer, Linear4bit | Linear8bitLt | AwqLinear)
            return LoraLinearBnb(layer, settings) if bitsandbytes else LoraLinear(layer, settings)
        if isinstance(layer, PackedLinear):
            raise NotModelledError("DoRA beside quantized layers", where="lora")
        from weigh.techniques.dora import DoraLinear

        return DoraLinear(layer, settings)

    def rank_of(self, path: str) -> int:
        """The width beside one layer (`get_pattern_key` of `utils/other.py`)."""
        found = (rank for pattern, rank in self.rank_pattern if re.match(rf"(.*\.)?({pattern})$", path))
        return next(found, self.rank)

    def _wrap_parameters(self, model: Module) -> None:
        """`_inject_parameters`."""
        found: set[str] = set()
        for parent in list(model.modules()):
            for name, child in list(parent.children()):
                for attribute, tensor in list(child.own_tensors()):
                    path = f"{child.path}.{attribute}"
                    wanted = [key for key in self.parameters if path == key or path.endswith(f".{key}")]
                    if not wanted or len(tensor.shape) not in (2, 3):
                        continue
                    if self.dropout or self.dora or self.lora_bias:
                        hint = "Leave out dropout, dora and lora_bias."
                        raise UsageError("an adapter of a parameter has none of these", where="lora", hint=hint)
                    settings = replace(self, rank=self.rank_of(path))
                    with inside_unit(tensor.storage.unit):
                        setattr(parent, name, ParamWrapper(getattr(parent, name), attribute, settings))
                    found.update(wanted)
        missing = set(self.parameters) - found
        if missing:
            hint = "Name them as the model does, with a part of their path."
            raise WeighError(f"LoRA found no parameters {', '.join(sorted(missing))}", where="lora", hint=hint)

    def place(self, model: Module) -> None:
        """As every method; and let biases be trained."""
        if not self.targets and not self.parameters:
            raise UsageError("adapts nothing", where="lora", hint="Name targets or parameters.")
        LayerAdapter.place(self, model)
        self._wrap_parameters(model)
        if self.bias == "none":
            return
        biases = [m.bias for m in model.modules() if isinstance(m, LoraLinear)]
        if self.bias == "all":
            biases = [t for m in model.modules() for name, t in m.own_tensors() if name == "bias"]
        for bias in biases:
            if bias is not None:
                bias.requires_grad = True


class LoraLinear(AdaptedLayer):
    """peft's `lora.Linear`: `base(x) + B(A(dropout(x))) * scaling`, in the adapter's dtype, cast back."""

    def __init__(self, base_layer: nn.Linear | nn.Conv1D, settings: Lora) -> None:
        super().__init__(base_layer)
        width_in, width_out = widths(base_layer)
        dtype = settings.dtype_beside(base_layer)
        self.lora_A = nn.Linear(width_in, settings.rank, dtype)
        self.lora_B = nn.Linear(settings.rank, width_out, dtype, settings.lora_bias)
        self.p = settings.dropout

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        result_dtype = result.dtype
        x = x.to(self.lora_A.weight.dtype)
        result = result + self.lora_B(self.lora_A(ops.dropout(x, self.p, self.training))) * 2.0
        result = result.to(result_dtype)
        return result


class LoraEmbedding(Module):
    """peft's `lora.Embedding`: `embedding + embed(A^T) @ B^T * scaling`, without a cast of the input."""

    def __init__(self, base_layer: nn.Embedding, settings: Lora) -> None:
        super().__init__()
        rows, width = base_layer.weight.shape
        dtype = settings.dtype_beside(base_layer)
        self.base_layer = base_layer
        self.lora_embedding_A = nn.parameter((settings.rank, rows), dtype)
        self.lora_embedding_B = nn.parameter((width, settings.rank), dtype)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        result_dtype = result.dtype
        embedding_A = self.lora_embedding_A.t()
        embedding_B = self.lora_embedding_B.t()
        after_A = ops.embedding(x, embedding_A)
        adapter_output = ops.matmul(after_A, embedding_B) * 2.0
        result = result + adapter_output
        result = result.to(result_dtype)
        return result


class LoraLinearBnb(LoraLinear):
    """peft's classes for bitsandbytes' and AWQ's layers (`tuners/lora/{bnb,awq}.py`): autocast casts where it is on.

    The first clones the result.
    """

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        if isinstance(self.base_layer, Linear4bit):
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
