"""From a number of parameters to something that can be trained: catalogue models, a shape, devices and days."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.models import language_config
from weigh.records import dataclass
from weigh.sources.catalogue import entries

if TYPE_CHECKING:
    from weigh.hardware import Device
    from weigh.sources.catalogue import Entry

SMALL = 3e9
"""Parameters below which models are usually given the smaller vocabulary, and tie it to the output."""
_HEAD = 128


def nearest(parameters: float, limit: int = 3) -> list[Entry]:
    """The catalogue's models whose size is nearest, nearest first (mixtures of experts by all their parameters).

    >>> nearest(7e10)[0].parameters / 7e10 < 1.05
    True
    """
    return sorted(entries(), key=lambda e: abs(log(e.parameters / parameters)))[:limit]


def shape(parameters: float) -> dict[str, Any] | None:
    """A Llama of about so many parameters: heads of 128, a gated layer of 8/3 the width.

    Among widths that are multiples of 128 and depths of a 64th to a 160th of the width (as published models have), the
    nearest count. Llama 3's vocabulary of 128,256; below 3 billion parameters Llama 2's of 32,000, tied to the output.
    None where no such shape is within a tenth of the size.

    >>> from weigh import api
    >>> config = shape(7e9)
    >>> config["hidden_size"], config["num_hidden_layers"], abs(api.params(config).total / 7e9 - 1) < 0.05
    (3840, 34, True)
    """
    tied = parameters < SMALL
    best: tuple[float, int, int] | None = None
    for width in range(_HEAD, 65_537, _HEAD):
        for depth in range(max(1, width // 160), width // 64 + 2):
            off = abs(log(_count(width, depth, tied) / parameters))
            if best is None or off < best[0]:
                best = (off, width, depth)
    assert best is not None
    off, width, depth = best
    if off > log(1.1):
        return None
    return {
        "model_type": "llama",
        "vocab_size": _vocabulary(tied),
        "hidden_size": width,
        "intermediate_size": _feed_forward(width),
        "num_hidden_layers": depth,
        "num_attention_heads": width // _HEAD,
        "tie_word_embeddings": tied,
    }


def _vocabulary(small: bool) -> int:
    return 32_000 if small else 128_256


def _feed_forward(width: int) -> int:
    return -(-8 * width // 3 // 256) * 256


def _count(width: int, depth: int, tied: bool) -> int:
    layer = 4 * width * width + 3 * width * _feed_forward(width) + 2 * width
    return (1 if tied else 2) * _vocabulary(tied) * width + depth * layer + width


@dataclass(frozen=True, slots=True)
class Machines:
    """Devices for a training run."""

    device: Device
    """Which."""
    count: int
    """How many share it."""
    sequence: int
    """Tokens in the one sequence of each."""
    peak: int
    """Bytes on one of them, as `weigh train` says."""
    days: float
    """Until the budget is spent."""


RUN: dict[str, Any] = {"dtype": "fp32", "checkpointing": "full", "batch": 1}
FSDP: dict[str, Any] = {"shard": "fsdp2", "param_dtype": "bf16"}
"""How it is trained: fp32 weights and states, every layer recomputed; sharded, and computing in bf16."""


def machines(model: Any, flops: float, device: Device, mfu: float, count: int | None) -> Machines | None:
    """How many devices hold the training (else `count`), and the days that they take at a share `mfu` of bf16's peak.

    None where even 65,536 of them are too small.

    Raises:
        NotModelledError: no source states the device's speed.
    """
    sequence = min(4096, _context(model))
    speed = mfu * device.peak_flops("bf16")
    for devices in (count,) if count is not None else (1, *(2**power for power in range(1, 17))):
        sharing = {**FSDP, "gpus_per_node": devices} if devices > 1 else {"autocast": "bf16"}
        report = api.train(model, device, sequence=sequence, **RUN, **sharing)
        assert report.fit is not None
        if report.fit.verdict == "yes" or count is not None:
            return Machines(device, devices, sequence, report.peak, flops / (speed * devices * 86_400))
    return None


def _context(model: Any) -> int:
    """The longest sequence that a config allows; 4096 where it says nothing."""
    config = language_config(api.model(model).config)
    found = (config.get(key) for key in ("n_positions", "n_ctx", "max_position_embeddings"))
    return next((length for length in found if isinstance(length, int)), 4096)
