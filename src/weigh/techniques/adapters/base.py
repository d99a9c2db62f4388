"""What peft's methods share: a frozen model, layers found by name, and something trained in their places.

Read: peft 0.21, tuners/tuners_utils.py (`check_target_module_exists`, `_maybe_include_all_linear_layers`,
`cast_adapter_dtype`), utils/other.py (`ModulesToSaveWrapper`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from weigh.errors import NotModelledError, WeighError
from weigh.ghost import nn
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass, fields
from weigh.techniques import Technique
from weigh.techniques.packed import PackedLinear
from weigh.trace.events import WEIGHT

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the head."""

LINEAR = (nn.Linear, nn.Conv1D)

SHARED = {"targets": "target_modules", "excluded": "exclude_modules", "layers": "layers_to_transform", "rank": "r"}
"""Our words for what most of peft's methods have, and theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Technique):
    """One of peft's methods: everything is frozen but what it adds."""

    kind: ClassVar[str] = ""
    """peft's `peft_type`, in small letters."""
    keys: ClassVar[Mapping[str, str]] = {}
    """Names in peft's `adapter_config.json`, where they are others than the fields'."""
    harmless: ClassVar[tuple[str, ...]] = ()
    """Keys there that change no byte."""

    autocast_adapter: bool = True
    """Keep the adapters of a half-precision model in fp32, as peft does by default."""
    input_gradients: bool = False
    """The embedding's output requires a gradient (`enable_input_require_grads`), as reentrant checkpointing needs."""

    moved: bool = True
    """The model is put on the device once more when the adapters are there, with what peft made on the host."""

    def apply(self, model: Module) -> None:
        """Freeze the model and add what is trained.

        Raises:
            WeighError: the model has nothing that the method could adapt.
        """
        for parameter in model.parameters():
            parameter.tensor.requires_grad = False
        if self.input_gradients:
            embedding = next(m for m in model.modules() if m.role == nn.EMBEDDING)
            embedding.wrap_in(_require_gradient)
        self.place(model)
        name_modules(model)

    def place(self, model: Module) -> None:
        """Add what is trained."""
        raise NotImplementedError

    def check(self, checkpointed: bool, shared_sequence: bool) -> None:
        """Raise where it cannot be used beside checkpoints, or beside sequences that devices share."""

    @classmethod
    def theirs(cls) -> dict[str, str]:
        """Every field that a file of peft's can say, by its name there."""
        beside = ("autocast_adapter", "input_gradients", "moved")
        names = {**SHARED, **cls.keys}
        return {names.get(f.name, f.name): f.name for f in fields(cls) if f.name not in beside}

    def as_peft(self) -> dict[str, Any]:
        """The method's settings as peft's class of them takes them; what it has no word for must be empty."""
        found = {theirs: _as_peft(theirs, getattr(self, ours)) for theirs, ours in self.theirs().items()}
        return {theirs: value for theirs, value in found.items() if value is not None}

    def dtype_beside(self, layer: Module) -> DType:
        """That of what is trained beside a layer."""
        return self.dtype_of(layer.dtype if isinstance(layer, PackedLinear) else layer.weight.dtype)  # type: ignore[attr-defined]

    def dtype_of(self, base: DType) -> DType:
        """That of what is trained beside weights of a dtype."""
        return FLOAT32 if self.autocast_adapter and base in (FLOAT16, BFLOAT16) else base


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAdapter(Adapter):
    """A method that stands in the places of layers."""

    takes: ClassVar[tuple[type[Module], ...]] = LINEAR
    """The kinds of layers that it can adapt."""

    on_quantized: ClassVar[bool] = False
    """Its classes for quantized layers were read."""

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the layers to adapt ("q_proj", "c_attn", "attn.c_proj", ...); "all-linear" is all linear ones but the
    head, and what begins with "^" a regular expression of whole paths."""
    excluded: tuple[str, ...] = ()
    """Names of layers to leave out, written like the targets."""
    layers: tuple[int, ...] = ()
    """Numbers of the blocks to adapt; none are all (`layers_to_transform`)."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules ("lm_head", "embed_tokens") of which a whole copy is trained; the frozen one stays."""

    @property
    def uneven(self) -> bool:
        """Blocks differ where they are chosen by number or by path."""
        return bool(self.layers) or any(re.search(r"^\^|\.\d", name) for name in self.patterns())

    def patterns(self) -> tuple[str, ...]:
        """All that layers' names are compared with."""
        return (*self.targets, *self.excluded)

    def shared(self, model: Module, layers: list[Any]) -> Any:
        """What all the layers that are to be adapted have in common."""
        return None

    def adapter(self, layer: Any, shared: Any) -> Module:
        """What stands in a layer's place."""
        raise NotImplementedError

    def place(self, model: Module) -> None:
        """Put adapters in the places of the layers that are named."""
        found: list[tuple[Module, str, Module]] = []
        saved: set[str] = set()
        for parent in list(model.modules()):
            for name, child in list(parent.children()):
                if name in self.modules_to_save:
                    setattr(parent, name, SavedModule(child))
                    saved.add(name)
                elif isinstance(child, self.takes) and self._adapts(name, child):
                    if isinstance(child, PackedLinear) and not self.on_quantized:
                        raise NotModelledError(f"{self.kind} beside quantized layers", where="adapter")
                    found.append((parent, name, child))
        missing = set(self.modules_to_save) - saved
        if (not found and self.targets) or missing:
            names = sorted({m.path.split(".")[-1] for m in model.modules() if isinstance(m, self.takes)})
            raise WeighError(
                f"{self.kind} found none of {', '.join(missing or self.targets)}",
                where="lora" if self.kind == "lora" else "adapter",
                hint=f"This model has: {', '.join(names)}.",
            )
        shared = self.shared(model, [child for _, _, child in found])
        for parent, name, child in found:
            unit = next(tensor.storage.unit for _, tensor in child.own_tensors())
            with inside_unit(unit):
                setattr(parent, name, self.adapter(child, shared))

    def _adapts(self, name: str, layer: Module) -> bool:
        if self.excluded and any(matches(layer.path, name, pattern) for pattern in self.excluded):
            return False
        if self.targets == (ALL_LINEAR,):
            return isinstance(layer, LINEAR) and layer.role != nn.HEAD
        if not any(matches(layer.path, name, pattern) for pattern in self.targets):
            return False
        if not self.layers:
            return True
        block = re.match(r".*?\.[^.]*\.(\d+)\.", layer.path)
        return block is not None and int(block[1]) in self.layers


def matches(path: str, name: str, pattern: str) -> bool:
    """Whether a module is the one that a pattern means."""
    if pattern.startswith("^"):
        return re.fullmatch(pattern, path) is not None
    return pattern in (name, path) or path.endswith(f".{pattern}")


def widths(layer: Any) -> tuple[Size, Size]:
    """How wide a linear layer's inputs and outputs are (`_get_in_out_features`)."""
    if isinstance(layer, PackedLinear):
        return layer.shape[1], layer.shape[0]
    shape = layer.weight.shape
    return (shape[0], shape[1]) if isinstance(layer, nn.Conv1D) else (shape[1], shape[0])


class AdaptedLayer(Module):
    """A layer with something trained beside it."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> Tensor:
        """That of the frozen layer."""
        return self.base_layer.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """That of the frozen layer."""
        return self.base_layer.bias  # type: ignore[no-any-return]


class SavedModule(Module):
    """peft's `ModulesToSaveWrapper`: a trained copy runs, the original stays where it was. A tied head is cut loose."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = module = copy(module)
        for name, tensor in list(module.own_tensors()):
            if tensor.storage.purpose != WEIGHT:
                raise NotModelledError(f"a copy of {module.path}, which has buffers", where="lora: modules_to_save")
            with inside_unit(tensor.storage.unit):
                setattr(module, name, nn.parameter(tensor.shape, tensor.dtype))
        if any(True for _ in module.children()):
            raise NotModelledError(f"a copy of {module.path}, which has modules", where="lora: modules_to_save")

    @property
    def weight(self) -> Tensor:
        """That of the copy, as whatever else is asked of it."""
        return self.modules_to_save.weight  # type: ignore[attr-defined, no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.modules_to_save(*args, **kwargs)


def _as_peft(key: str, value: Any) -> Any:
    if key == "layers_to_transform":
        return list(value) or None
    if not isinstance(value, tuple):
        return value
    if value == (ALL_LINEAR,) or (len(value) == 1 and str(value[0]).startswith("^")):
        return value[0]
    if key.endswith("_pattern"):
        return dict(value)
    return list(value) or None


def _require_gradient(function: Callable[..., Any], *args: Any) -> Any:
    out: Tensor = function(*args)
    out.requires_grad = True
    return out
