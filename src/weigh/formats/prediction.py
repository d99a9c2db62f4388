"""Which tensors a checkpoint has: the model's parameters, those among them that a method converts as it stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.formats.base import EMBEDDING, EXPERTS, HEAD, LINEAR, Stored, Weight
from weigh.formats.header import pattern
from weigh.ghost import nn
from weigh.records import replace

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.formats.base import Format
    from weigh.ghost.nn import Module, Parameter


def predict(model: Module, form: Format | None, dtype: DType) -> tuple[Stored, ...]:
    """The tensors of a checkpoint of `model`, alike ones of its blocks together; what `form` leaves is in `dtype`."""
    found: dict[Stored, tuple[Stored, int]] = {}
    for parameter in model.parameters():
        for stored in _stored(parameter, form, dtype):
            key = replace(stored, name=pattern(stored.name), count=1)
            first, count = found.get(key, (stored, 0))
            found[key] = first, count + stored.count
    return tuple(replace(first, count=count) for first, count in found.values())


def _stored(parameter: Parameter, form: Format | None, dtype: DType) -> list[Stored]:
    names, shape = parameter.names, parameter.tensor.shape
    plain = Stored(names[0], shape, dtype, parameter.numel, len(names))  # type: ignore[arg-type]
    weight = None if form is None else _weight(parameter, names[0], dtype)
    if form is None or weight is None:
        return [plain]
    found: list[Stored] = []
    for name in names:
        named = replace(weight, name=name)
        found += form.store_all(named) if form.converts(named) else [replace(plain, name=name, count=1)]
    return found


def _weight(parameter: Parameter, name: str, dtype: DType) -> Weight | None:
    """The matrix, or the experts' matrices, that a parameter is; None where it is neither."""
    module, attribute, shape = parameter.module, str(parameter.place[-1]), parameter.tensor.shape
    sizes: tuple[int, ...] = shape  # type: ignore[assignment]
    if len(sizes) == 3 and module.active_share != 1:
        rows, columns = (sizes[2], sizes[1]) if getattr(module, "is_transposed", False) else (sizes[1], sizes[2])
        return Weight(name, rows, columns, dtype, EXPERTS, sizes[0], 2 if attribute == "gate_up_proj" else 1)
    if len(sizes) != 2 or attribute != "weight":
        return None
    if isinstance(module, nn.Conv1D):
        return Weight(name, sizes[1], sizes[0], dtype, LINEAR)
    if isinstance(module, nn.Linear):
        return Weight(name, sizes[0], sizes[1], dtype, HEAD if module.role == nn.HEAD else LINEAR)
    return Weight(name, sizes[0], sizes[1], dtype, EMBEDDING) if isinstance(module, nn.Embedding) else None
