"""Techniques: what changes how a model runs, applied to it from outside. One file each.

A technique is a frozen dataclass of settings with one method, `apply`. A recipe lists its techniques in the order in
which they are applied.
"""

from __future__ import annotations

from weigh.ghost.nn import Module


class Technique:
    """What every technique can do."""

    __slots__ = ()

    @property
    def uneven(self) -> bool:
        """Blocks of a stack differ afterwards, so that all of them have to be run."""
        return False

    @property
    def trailing(self) -> int:
        """How many blocks at the end of a stack do something else afterwards than those before them."""
        return 0

    @property
    def materialises(self) -> bool:
        """It puts the rank's share in the parameters' place, so that the whole model need never be on the device."""
        return False

    @property
    def divides(self) -> bool:
        """Parameters are the rank's share of the model's afterwards."""
        return False

    def apply(self, model: Module) -> None:
        """Change the model.

        Raises:
            WeighError: there is nothing to change; it says what was looked for.
        """
        raise NotImplementedError
