"""What devices hold for other contexts and other numbers of users than a launch has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.models.layout import SLIDING

if TYPE_CHECKING:
    from weigh.models.layout import LayerCache
    from weigh.runtimes.llama_cpp.compute import Compute
    from weigh.runtimes.llama_cpp.placement import Placement


def rounded(cells: int, sequences: int, unified: bool) -> int:
    """Cells of the cache, as llama.cpp rounds them: to 256, for each sequence where each has its own (`n_ctx_seq`).

    >>> rounded(1000, 3, True), rounded(1000, 3, False)
    (1024, 1536)
    """
    cells = -(-cells // 256) * 256
    return cells if unified else -(-(cells // sequences) // 256) * 256 * sequences


class Room:
    """A placement, for any context and any number of users."""

    def __init__(self, placed: Placement, unified: bool, compute: Compute) -> None:
        self.compute = compute
        self.placed, self._unified = placed, unified
        self._model = placed.device_bytes()
        states = placed.state_sizes()
        self._states = [states.get(name, 0) // placed.how.n_seq_max for name in placed.names]
        self._rows = [self._rows_on(name) for name in placed.names]
        self._found: dict[tuple[int, int], list[int]] = {}

    def _rows_on(self, device: str) -> list[tuple[LayerCache, int]]:
        """Layers that keep cells for as long, and what a cell takes in all of them."""
        found: dict[object, tuple[LayerCache, int]] = {}
        for number, layer in enumerate(self.placed.gguf.layers):
            if layer.heads and self.placed.cache_buffer(number) == device:
                key = layer.window if layer.kind == SLIDING else None
                found[key] = layer, self.placed.row_bytes(layer) + found.get(key, (layer, 0))[1]
        return list(found.values())

    def on_devices(self, context: int, users: int) -> list[int]:
        """Bytes of each device: model, cache, states and compute buffer."""
        users = max(1, users)
        unified = self._unified or users == 1
        cells = rounded(max(1, context) * users, users, unified)
        if (cells, users) not in self._found:
            compute = self.compute.at(cells, users, unified, tuple(self.placed.names))
            self._found[cells, users] = [
                model
                + states * users
                + sum(self.placed.cells(layer, cells, users, unified) * row for layer, row in rows)
                + compute.get(name, 0)
                for name, model, states, rows in zip(
                    self.placed.names, self._model, self._states, self._rows, strict=True
                )
            ]
        return self._found[cells, users]
