"""The device of the machine at hand, as the drivers' own programs tell it.

nvidia-smi, rocm-smi and, on a Mac, sysctl are asked, each for a few seconds at most; what they print is read here and
nothing else is run. Where none of them is installed there is no device, and that is said. A card of a size that the
catalogue lacks is not taken for a sibling.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from shutil import which
from typing import TYPE_CHECKING

from weigh.errors import InputError
from weigh.hardware.devices import Device, named
from weigh.records import dataclass
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 5
"""How long a program is waited for: nvidia-smi takes up to two seconds where the driver is not kept loaded."""
NEAR = 0.02
"""How far a driver's report may lie from the catalogue's; ECC and driver versions move it by less than 2 %."""


@dataclass(frozen=True, slots=True)
class Found:
    """One accelerator as a driver's program names it."""

    name: str
    memory_bytes: int


def device_here() -> Device:
    """The catalogue's device for this machine's first accelerator.

    Raises:
        InputError: none is found, or the catalogue does not have the one that is.
    """
    found = found_here()
    if not found:
        raise InputError(
            "no accelerator found: neither nvidia-smi nor rocm-smi nor, on a Mac, sysctl reports one",
            where="this machine",
            hint="Name a device; `weigh devices` lists them.",
        )
    return known(found[0])


def known(found: Found) -> Device:
    """The catalogue's device of that name and size.

    Raises:
        InputError: the catalogue has no such device, or none of that size.
    """
    sizes = named(found.name)
    for device in sizes:
        room = 0.11 if device.memory_is_label else NEAR
        if abs(device.memory_bytes - found.memory_bytes) <= room * device.memory_bytes:
            return device
    other = ", ".join(device.name for device in sizes)
    raise InputError(
        f"the catalogue has no {found.name} with {format_bytes(found.memory_bytes)}",
        where="this machine",
        hint=f"It has {other}." if other else "`weigh devices` lists what it has.",
    )


def found_here(run: Callable[[list[str]], str] | None = None) -> list[Found]:
    """Every accelerator that this machine's programs report, in their order; `run` runs one of them."""
    run = _run if run is None else run
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    found = read_nvidia_smi(run(asked))
    if not found:
        found = read_rocm_smi(run(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"]))
    if not found and sys.platform == "darwin":
        found = read_sysctl(run(["sysctl", "machdep.cpu.brand_string", "hw.memsize"]))
    return found


def read_nvidia_smi(text: str) -> list[Found]:
    """`nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits`.

    >>> read_nvidia_smi("NVIDIA GeForce RTX 4090, 24564")
    [Found(name='NVIDIA GeForce RTX 4090', memory_bytes=25757220864)]
    """
    rows = re.findall(r"^(.+), (\d+)$", text, re.MULTILINE)
    return [Found(name, int(mib) * 2**20) for name, mib in rows]


def read_rocm_smi(text: str) -> list[Found]:
    """`rocm-smi --showproductname --showmeminfo vram --json`: one object a card."""
    try:
        cards = json.loads(text)
    except ValueError:
        return []
    return [
        Found(name if name.startswith("AMD") else f"AMD {name}", int(memory))
        for card in (cards.values() if isinstance(cards, dict) else ())
        if isinstance(card, dict)
        and isinstance(name := card.get("Card Series", card.get("Card series")), str)
        and str(memory := card.get("VRAM Total Memory (B)", "")).isdigit()
    ]


def read_sysctl(text: str) -> list[Found]:
    r"""`sysctl machdep.cpu.brand_string hw.memsize` of a Mac: its GPU is the chip's, its memory the machine's.

    >>> read_sysctl("machdep.cpu.brand_string: Apple M3 Max\nhw.memsize: 68719476736")
    [Found(name='Apple M3 Max', memory_bytes=68719476736)]
    """
    chip = re.search(r"brand_string: (Apple .+)$", text, re.MULTILINE)
    memory = re.search(r"hw\.memsize: (\d+)", text)
    return [Found(chip[1].strip(), int(memory[1]))] if chip and memory else []


def _run(command: list[str]) -> str:
    """What a program prints, or nothing where it is not installed, fails or does not answer in time."""
    path = which(command[0])
    if path is None:
        return ""
    try:
        answer = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
