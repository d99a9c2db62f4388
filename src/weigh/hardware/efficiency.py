"""What programs reach of a device's peaks: measured, program by program and generation by generation.

The table is `efficiencies.json` beside this file, which `tools/speed.py` fits to published measurements; docs/speed.md
has the cases and the errors. A program that nobody's measurements cover is not given another's figure here: who does
so says it.
"""

from __future__ import annotations

import json
from functools import cache
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

from weigh.hardware.roofline import Efficiency
from weigh.records import dataclass, fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.hardware.devices import Device


EXPERTS, USERS, PROMPTS = "experts", "users", "prompts"
"""Of models of experts; of the others, of several users' (or tokens') steps; of reading one prompt."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one program reaches."""

    program: str
    generations: Mapping[str, Efficiency]
    """By generation of devices."""
    usual: Efficiency
    """Its middle ones, for generations that were not measured."""
    decode: frozenset[str]
    """Generations whose share of the bandwidth was measured, with it or programs like it; others have the usual one."""
    prefill: frozenset[str]
    """Generations whose share of the arithmetic was measured; the others have the usual one."""
    ranges: dict[str, tuple[float, float]]
    """Measured speed over predicted, of one case in ten at either end, of all but single users' steps of dense models:
    `EXPERTS`, `USERS`, `PROMPTS`."""

    def on(self, device: Device) -> Efficiency:
        """What it reaches on a device."""
        return self.generations.get(device.generation, self.usual)

    def as_dict(self) -> dict[str, Any]:
        """For the file."""
        return {
            "decode": sorted(self.decode),
            "prefill": sorted(self.prefill),
            "ranges": {kind: [float(f"{end:.4g}") for end in ends] for kind, ends in self.ranges.items()},
            "usual": _rounded(self.usual),
            "generations": {name: _rounded(reached) for name, reached in self.generations.items()},
        }


def _rounded(reached: Efficiency) -> dict[str, Any]:
    said = {f.name: getattr(reached, f.name) for f in fields(reached)}
    return {k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in said.items()}


@cache
def measured() -> dict[str, Measured]:
    """Every program that published measurements were fitted to."""
    raw = get_data("weigh.hardware", "efficiencies.json")
    assert raw is not None, "the loader of this package cannot read data"
    return {name: _read(name, row) for name, row in json.loads(raw).items()}


def _read(program: str, row: dict[str, Any]) -> Measured:
    generations = {name: Efficiency(**figures) for name, figures in row["generations"].items()}
    ranges = {kind: (low, high) for kind, (low, high) in row["ranges"].items()}
    usual, decode, prefill = Efficiency(**row["usual"]), frozenset(row["decode"]), frozenset(row["prefill"])
    return Measured(program, generations, usual, decode, prefill, ranges)
