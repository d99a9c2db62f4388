"""LoRA: two thin matrices beside a frozen linear layer, as peft (0.21) places and runs them.

With its default settings peft keeps the adapters in fp32 beside a half-precision model, so that every adapted layer
casts its input up and its output down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from weigh.errors import InputError, NotModelledError, WeighError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.int8 import Linear8bitLt
from weigh.techniques.packed import PackedLinear
from weigh.techniques.quantization import Linear4bit
from weigh.trace.events import WEIGHT

_ADAPTED = nn.Linear | nn.Conv1D | nn.Embedding

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the head."""


@dataclass(frozen=True, slots=True)
class Lora(Technique):
    """Adapt linear layers by name; everything else is frozen."""

    rank: int = 8
    """Width of the adapters."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers to adapt ("q_proj", "c_attn", "attn.c_proj", ...); "all-linear" is all of them but the
    head."""
    dropout: float = 0.0
    """On the adapters' input."""
    autocast_adapter: bool = True
    """Keep the adapters of a half-precision model in fp32, as peft does by default."""
    input_gradients: bool = False
    """The embedding's output requires a gradient (`enable_input_require_grads`), as reentrant checkpointing needs."""
    dora: bool = False
    """Learn the length of each row of the weights too (see `weigh.techniques.dora`)."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules ("lm_head", "embed_tokens") of which a whole copy is trained; the frozen one stays."""

    def apply(self, model: Module) -> None:
        """Freeze the model and put adapters beside the layers that are named.

        Raises:
            WeighError: no linear layer has one of the names.
        """
        for parameter in model.parameters():
            parameter.tensor.requires_grad = False
        if self.input_gradients:
            embedding = next(m for m in model.modules() if m.role == nn.EMBEDDING)
            embedding.wrap_in(_require_gradient)
        found, saved = 0, set()
        for parent in list(model.modules()):
            for name, child in list(parent.children()):
                if name in self.modules_to_save:
                    setattr(parent, name, SavedModule(child))
                    saved.add(name)
                elif isinstance(child, _ADAPTED) and self._adapts(name, child):
                    with inside_unit(child.weight.storage.unit):
                        setattr(parent, name, self._adapter(child))
                    found += 1
        missing = set(self.modules_to_save) - saved
        if not found or missing:
            names = sorted({m.path.split(".")[-1] for m in model.modules() if isinstance(m, _ADAPTED)})
            raise WeighError(
                f"LoRA found none of {', '.join(missing or self.targets)}",
                where="lora",
                hint=f"This model has: {', '.join(names)}.",
            )
        name_modules(model)

    def _adapter(self, layer: nn.Linear | nn.Conv1D | nn.Embedding) -> Module:
        """What peft puts in the layer's place."""
        if isinstance(layer, nn.Embedding):
            if self.dora or layer.__class__ is not nn.Embedding:
                kind = "DoRA" if self.dora else "LoRA"
                raise NotModelledError(f"{kind} on {layer.path}, a {type(layer).__name__}", where="lora")
            return LoraEmbedding(layer, self)
        if not self.dora:
            bitsandbytes = isinstance(layer, Linear4bit | Linear8bitLt)
            return LoraLinearBnb(layer, self) if bitsandbytes else LoraLinear(layer, self)
        if isinstance(layer, PackedLinear):
            raise NotModelledError("DoRA beside quantized layers", where="lora")
        from weigh.techniques.dora import DoraLinear

        return DoraLinear(layer, self)

    def _adapts(self, name: str, layer: Module) -> bool:
        """Whether a layer is adapted ("all-linear": `_maybe_include_all_linear_layers` of `tuners/tuners_utils.py`)."""
        if any(layer.path.endswith(f".{target}") for target in self.targets if "." in target):
            return True
        return name in self.targets or (self.targets == (ALL_LINEAR,) and layer.role not in (nn.HEAD, nn.EMBEDDING))


def of_peft(config: Mapping[str, Any]) -> Lora:
    """The technique of an `adapter_config.json`.

    >>> found = of_peft({"peft_type": "LORA", "r": 16, "target_modules": ["q_proj"], "lora_dropout": 0.1})
    >>> found.rank, found.targets, found.dropout
    (16, ('q_proj',), 0.1)

    Raises:
        InputError: the rank or the targets are missing.
        NotModelledError: another adapter, or a setting that adds other tensors.
    """
    if config.get("peft_type") != "LORA":
        raise NotModelledError(f"the adapter {config.get('peft_type')}", where="adapter_config.json: peft_type")
    for key in ("rank_pattern", "layers_to_transform", "target_parameters"):
        if config.get(key):
            raise NotModelledError(f"an adapter with {key}", where=f"adapter_config.json: {key}")
    if config.get("bias", "none") != "none":
        raise NotModelledError("an adapter that trains biases", where="adapter_config.json: bias")
    rank, targets = config.get("r"), config.get("target_modules")
    if not isinstance(rank, int) or not isinstance(targets, list | tuple):
        raise InputError("names no rank or no layers", where="adapter_config.json", hint="Add r and target_modules.")
    return Lora(
        rank,
        tuple(str(t) for t in targets),
        float(config.get("lora_dropout") or 0.0),
        dora=bool(config.get("use_dora")),
        modules_to_save=tuple(config.get("modules_to_save") or ()),
    )


def _require_gradient(function: Callable[..., Any], *args: Any) -> Any:
    out: Tensor = function(*args)
    out.requires_grad = True
    return out


class LoraLinear(Module):
    """peft's `lora.Linear`: `base(x) + B(A(dropout(x))) * scaling`, in the adapter's dtype, cast back."""

    def __init__(self, base_layer: nn.Linear | nn.Conv1D, settings: Lora) -> None:
        super().__init__()
        shape, base = base_layer.weight.shape, base_layer.weight.dtype
        if isinstance(base_layer, PackedLinear):
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


class LoraEmbedding(Module):
    """peft's `lora.Embedding`: `embedding + embed(A^T) @ B^T * scaling`, without a cast of the input."""

    def __init__(self, base_layer: nn.Embedding, settings: Lora) -> None:
        super().__init__()
        rows, width = base_layer.weight.shape
        dtype = _adapter_dtype(base_layer.weight.dtype, settings.autocast_adapter)
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


class SavedModule(Module):
    """peft's `ModulesToSaveWrapper`: a trained copy runs, the original stays where it was. A tied head is cut loose."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = module = copy(module)
        for name, tensor in list(module.own_tensors()):
            if tensor.storage.purpose != WEIGHT:
                raise NotModelledError(f"a copy of {module.path}, which has buffers", where="lora: modules_to_save")
            setattr(module, name, nn.parameter(tensor.shape, tensor.dtype))
        if any(True for _ in module.children()):
            raise NotModelledError(f"a copy of {module.path}, which has modules", where="lora: modules_to_save")

    @property
    def weight(self) -> Tensor:
        """That of the copy, as whatever else is asked of it."""
        return self.modules_to_save.weight  # type: ignore[attr-defined, no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.modules_to_save(*args, **kwargs)


class LoraLinearBnb(LoraLinear):
    """peft's `lora.Linear4bit` and `lora.Linear8bitLt` (`tuners/lora/bnb.py`): where autocast is on it does the casts.

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


def _adapter_dtype(base: DType, upcast: bool) -> DType:
    return FLOAT32 if upcast and base in (FLOAT16, BFLOAT16) else base
