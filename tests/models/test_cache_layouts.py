"""What a family says that its layers keep is what a generation ends with."""

from typing import Any

import pytest
from architectures import ARCHITECTURES, Architecture

from weigh.dtypes import BFLOAT16
from weigh.errors import WeighError
from weigh.ghost.state import recording
from weigh.models import build, default_attention
from weigh.models.layout import CHUNKED, SLIDING
from weigh.recipes.generation import Generation, run
from weigh.recipes.keeping import Keeping, keep
from weigh.trace.events import KV_CACHE, RECURRENT_STATE
from weigh.trace.peak import Moment, breakdown

WINDOW = 40
COUNTER = 8
"""Bytes in which a layer with a window keeps its size."""


def runs(architecture: Architecture) -> bool:
    try:
        model = architecture.build()
    except WeighError:
        return False
    return not model.unmodelled and not model.encoder_decoder and bool(model.cache_layout())


RUNNING = [a for a in ARCHITECTURES if runs(a)]


def config_of(architecture: Architecture) -> dict[str, Any]:
    """The default config, with a window that a short prompt overruns."""
    window = {"sliding_window": WINDOW} if architecture.config.get("sliding_window") else {}
    return architecture.config | window


def kept_by_a_run(config: dict[str, Any], recipe: Generation) -> int:
    trace = run(config, recipe).trace
    end = Moment(len(trace.spans) - 1, trace.spans[-1].count - 1, len(trace.events) - 1)
    held = breakdown(trace, end, lambda a: a.purpose)
    return held.get(KV_CACHE, 0) + held.get(RECURRENT_STATE, 0)  # type: ignore[return-value]


@pytest.mark.parametrize("prompt", [WINDOW // 2, 2 * WINDOW])
@pytest.mark.parametrize("architecture", RUNNING, ids=lambda a: a.name)
def test_what_layers_keep_is_what_a_run_ends_with(architecture: Architecture, prompt: int) -> None:
    config = config_of(architecture)
    attention = default_attention(config)
    recipe = Generation(batch=3, prompt=prompt, new_tokens=4, dtype=BFLOAT16, attention=attention, bare=True)
    with recording():
        layers = build(config, BFLOAT16).cache_layout()
    kept = keep(layers, Keeping(prompt + 4, encoder=0), BFLOAT16)
    counters = COUNTER * sum(layer.kind in (CHUNKED, SLIDING) for layer in layers)
    assert kept_by_a_run(config, recipe) == 3 * sum(k.num_bytes for k in kept) + counters


def test_many_families_run() -> None:
    assert len(RUNNING) >= 95
