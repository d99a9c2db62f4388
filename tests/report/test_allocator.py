"""Whether a run fits, where that depends on the allocator."""

from dataclasses import replace

import weigh
from weigh.report.fit import CONTEXT, LIBRARY, Fit
from weigh.report.text import PLAIN

TINY = {"model_type": "gpt2", "vocab_size": 3000, "n_positions": 256, "n_embd": 256, "n_layer": 4, "n_head": 4}


def fit_on(extra: int) -> Fit:
    """A tiny training on a device with its reserved peak and `extra` bytes, beside the least that is outside."""
    report = weigh.train(TINY, batch=8, device="h100")
    assert report.fit is not None
    room = report.replayed.reserved + CONTEXT[0] + LIBRARY[0] + extra
    device = replace(report.fit.device, memory_bytes=room, reserved_bytes=0)
    found = replace(report, device=device).fit
    assert found is not None
    return found


def test_the_allocator_decides_what_is_close() -> None:
    roomy, tight = fit_on(CONTEXT[1] - CONTEXT[0] + LIBRARY[1]), fit_on(0)
    assert (roomy.verdict, tight.verdict) == ("yes", "close")
    assert roomy.replays is not None
    assert tight.replays is not None
    assert tight.replays[0].out_of_memory is None
    assert tight.replays[1].out_of_memory is not None
    assert "runs out of memory in the" in tight.text(PLAIN)


def test_what_cannot_fit_says_so_without_the_allocator() -> None:
    found = fit_on(-400 << 20)
    assert (found.verdict, found.replays) == ("no", None)
