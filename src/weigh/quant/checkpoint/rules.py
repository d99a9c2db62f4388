"""Which tensors of a checkpoint are matrices worth quantizing, by name and shape alone.

What stays as it is: everything but matrices; embeddings, output layers, norms and routers, by the names that published
models give them; and what the user says. A name that no rule knows is a linear layer's.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from weigh.errors import UsageError
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weigh.sources.checkpoint import StoredTensor

_NAMES = {
    "embedding": r".*embed(ding|dings|_tokens|_positions|_in)?|.*_embeddings?|wte|wpe|shared|token_embd|position_embd"
    r"|token_types|relative_attention_bias|embed.*",
    "output layer": r"lm_head|embed_out|output_layer|score|classifier|qa_outputs|.*_head|decoder(?=$)",
    "norm": r".*norm.*|ln_.*|.*layernorm.*",
    "router": r"gate|router|.*router|ffn_gate_inp.*|shared_expert_gate|wg",
}
_COMPILED = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _NAMES.items()}
FLOATS = ("F32", "BF16", "F16")
"""What is quantized; anything else is kept, or refused where it should have been quantized."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user adds to the rules of the house."""

    keep: tuple[str, ...] = ()
    """Patterns of modules that stay as they are ("*.mlp.down_proj", "model.layers.0.*")."""
    also: tuple[str, ...] = ()
    """Patterns of modules that are quantized although their names say embedding, output layer, norm or router."""

    def kept(self, tensor: StoredTensor) -> str | None:
        """Why a tensor stays as it is; None where it is quantized.

        >>> from weigh.sources.checkpoint import StoredTensor as T
        >>> Rules().kept(T("model.layers.0.mlp.gate.weight", (8, 64), "BF16", 1024, "f"))
        'router'
        >>> Rules().kept(T("model.layers.0.mlp.gate_proj.weight", (8, 64), "BF16", 1024, "f")) is None
        True
        """
        module = module_of(tensor.name)
        if len(tensor.shape) != 2 or not tensor.name.endswith(".weight"):
            kinds = {0: "number", 1: "vector", 2: "no weight of a module"}
            return kinds.get(len(tensor.shape), f"{len(tensor.shape)} dimensions")
        if not all(tensor.shape):
            return "empty"
        if _matches(module, self.keep):
            return "--keep"
        if _matches(module, self.also):
            return None
        last = module.rpartition(".")[2]
        if module == "output":  # Llama's own name, and GGUF's; BERT has a block of this name inside
            return "output layer"
        return next((kind for kind, pattern in _COMPILED.items() if pattern.fullmatch(last)), None)

    def check(self, tensors: Iterable[StoredTensor], mixed: tuple[str, ...] = ()) -> None:
        """Raises for a pattern, of these rules or of `mixed` types, that no module has.

        Raises:
            UsageError: it has not.
        """
        modules = [module_of(t.name) for t in tensors]
        for option, patterns in (("--keep", self.keep), ("--also", self.also), ("--mix", mixed)):
            for pattern in patterns:
                if not any(fnmatchcase(module, pattern) for module in modules):
                    hint = f"Give a module's name or a pattern with *, as in {modules[0]!r}." if modules else None
                    raise UsageError(f"no module is called {pattern!r}", where=option, hint=hint)


def module_of(name: str) -> str:
    """The module that a tensor belongs to.

    >>> module_of("lm_head.weight"), module_of("blocks.0.A_log")
    ('lm_head', 'blocks.0')
    """
    return name.rpartition(".")[0]


def _matches(module: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)
