"""Frozen parameters: no gradient, no optimizer state, and nothing saved that only their gradients would need."""

from __future__ import annotations

from weigh.errors import UnknownNameError, WeighError
from weigh.ghost import nn
from weigh.ghost.nn import Module, Stack
from weigh.records import dataclass
from weigh.techniques import Technique

PARTS = ("embeddings", "all_but_last_layer", "all_but_head", "layers_first_half")


@dataclass(frozen=True, slots=True)
class Freezing(Technique):
    """Freeze a part of the model."""

    part: str
    """ "embeddings", "all_but_last_layer", "all_but_head" or "layers_first_half" (with the embeddings)."""

    def apply(self, model: Module) -> None:
        """Switch `requires_grad` off.

        Raises:
            UnknownNameError: no such part.
            WeighError: the model has no such part.
        """
        if self.part not in PARTS:
            raise UnknownNameError("part to freeze", self.part, PARTS)
        modules = list(model.modules())
        embeddings = [m for m in modules if m.role == nn.EMBEDDING][:1]
        stacks = [m for m in modules if isinstance(m, Stack) and m.blocks[0].role == nn.BLOCK]
        heads = [m for m in modules if m.role == nn.HEAD]
        if not embeddings or not stacks or not heads:
            raise WeighError("freezing found no embedding, blocks or head", hint="It looks for modules by their roles.")
        if self.part == "embeddings":
            _set(embeddings, False)
        elif self.part == "layers_first_half":
            blocks = stacks[0].blocks
            _set([*blocks[: len(blocks) // 2], *embeddings], False)
        else:
            _set([model], False)
            _set([stacks[0].blocks[-1]] if self.part == "all_but_last_layer" else heads, True)

    @property
    def uneven(self) -> bool:
        """Blocks differ after this, so that the stack cannot be compressed."""
        return self.part in ("all_but_last_layer", "layers_first_half")


def _set(modules: list[Module], requires_grad: bool) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.tensor.requires_grad = requires_grad
