"""GPTQ: codes of 2, 3, 4 or 8 bits packed along the input, with a scale and a zero a group.

Names and shapes as AutoGPTQ, GPTQModel and vLLM read them (`qlinear` modules); the blocks' linear layers are converted,
and the output layer where `lm_head` says so. GPTQModel's `dynamic` patterns change or except modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import FLOAT16, INT32
from weigh.errors import InputError, NotModelledError
from weigh.formats.base import EMBEDDING, HEAD, Format, Stored, Weight, beside, bits_of, ceil, in_block, number, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

WORD = 32


@dataclass(frozen=True, slots=True)
class Gptq(Format):
    """Its settings."""

    method: ClassVar[str] = "gptq"
    bits: int
    group: int
    """Inputs that share a scale; -1 is all."""
    head: bool
    """The output layer too."""
    inside: tuple[str, ...]
    """The ends of the modules that are converted; none: all."""
    dynamic: tuple[tuple[str, Mapping[str, Any] | None], ...]
    """Patterns, and what they change; None excepts a module."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        if str(found.get("pack_dtype", "int32")) != "int32":
            raise NotModelledError(f"codes packed in {found['pack_dtype']}", where=where)
        inside = found.get("modules_in_block_to_quantize") or ()
        flat = [m for group in inside for m in (group if isinstance(group, list) else [group])]
        return cls(
            bits=bits_of(found, where, (2, 3, 4, 8)),
            group=number(found, where, "group_size", default=128),
            head=bool(found.get("lm_head")),
            inside=words({"modules": flat}, where, "modules") or (),
            dynamic=_dynamic(found.get("dynamic") or {}, where),
        )

    @property
    def title(self) -> str:
        return f"{self.bits}-bit GPTQ, {'one group' if self.group == -1 else f'groups of {self.group}'}"

    def _changed(self, module: str) -> Mapping[str, Any] | None:
        return next((change for pattern, change in self.dynamic if re.match(pattern, module)), {})

    def converts(self, weight: Weight) -> bool:
        if weight.kind == EMBEDDING or self._changed(weight.module) is None:
            return False
        if weight.kind == HEAD:
            return self.head
        return in_block(weight.name) and (not self.inside or weight.module.endswith(self.inside))

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        changed = self._changed(weight.module) or {}
        bits, group = changed.get("bits", self.bits), changed.get("group_size", self.group)
        groups = 1 if group == -1 else ceil(weight.columns, group)
        return (
            beside(weight, "qweight", (weight.columns * bits // WORD, weight.rows), INT32, weight.elements),
            beside(weight, "qzeros", (groups, weight.rows * bits // WORD), INT32),
            beside(weight, "scales", (groups, weight.rows), FLOAT16),
            beside(weight, "g_idx", (weight.columns,), INT32),
        )

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        module, _, suffix = tensor.name.rpartition(".")
        if suffix in ("qzeros", "scales", "g_idx"):
            return 0
        bits = (self._changed(module) or {}).get("bits", self.bits)
        return tensor.num_elements * WORD // bits if suffix == "qweight" else None


def _dynamic(found: Any, where: str) -> tuple[tuple[str, Mapping[str, Any] | None], ...]:
    """`"-:pattern"` excepts, `"+:pattern"` or a bare pattern changes."""
    patterns: list[tuple[str, Mapping[str, Any] | None]] = []
    try:
        for key, change in dict(found).items():
            sign, pattern = (key[0], key[2:]) if key[:2] in ("+:", "-:") else ("+", key)
            re.compile(pattern)
            patterns.append((pattern, None if sign == "-" else dict(change or {})))
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot be read ({error})", where=f"{where}: dynamic", hint="Give patterns.") from None
    return tuple(patterns)
