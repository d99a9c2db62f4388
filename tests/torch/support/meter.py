"""What a piece of real PyTorch allocates, as live bytes after every birth."""

from __future__ import annotations

from collections.abc import Iterator

from weigh.measure.recorder import Recorder


class Meter(Recorder):
    """The levels of a recorder since the last restart."""

    start = base = 0

    def restart(self) -> int:
        """Forget the births so far; returns the live bytes."""
        self.start, self.base = len(self.events), self.live
        return self.live

    @property
    def births(self) -> list[int]:
        """The live bytes after each birth."""
        return [level for level, _ in self._births()]

    @property
    def ops(self) -> list[str]:
        """The op of each birth."""
        return [op for _, op in self._births()]

    def _births(self) -> Iterator[tuple[int, str]]:
        level = self.base
        for event in self.events[self.start :]:
            made = self.allocations[abs(event) - 1]
            level += made.num_bytes if event > 0 else -made.num_bytes
            if event > 0:
                yield level, made.op

    @property
    def known(self) -> dict[int, int]:
        """PyTorch's addresses of the living storages."""
        return self._storages
