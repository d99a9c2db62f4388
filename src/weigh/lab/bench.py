"""The settings of a run: the model, its sizes, and how long it is trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from weigh.errors import UsageError
from weigh.records import dataclass, replace

MODELS = ("llama", "gpt")
VOCABULARY = 256
"""A token is a byte."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One run, small enough for a CPU."""

    model: str = "llama"
    """ "llama" or "gpt"."""
    layers: int = 4
    hidden: int = 128
    """Width of the model."""
    heads: int = 4
    sequence: int = 128
    """Bytes in a sequence."""
    batch: int = 8
    """Sequences in a step, whatever the technique divides them into."""
    steps: int = 120
    """Steps of each training."""
    seed: int = 0
    """Of the initial weights and of the batches: the same for every technique."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"there is no model {self.model!r}", where="--model", hint=f"Use {' or '.join(MODELS)}.")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UsageError(f"is {getattr(self, name)}", where=f"--{name}", hint=f"It must be {least} at least.")
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            hint = "Each head must be as wide as the others, and even (rotary positions come in pairs)."
            raise UsageError(f"{self.heads} heads in a width of {self.hidden}", where="--heads", hint=hint)
        if self.batch % SHARES:
            hint = f"Give a multiple of {SHARES}: gradient accumulation divides it so."
            raise UsageError(f"is {self.batch}", where="--batch", hint=hint)

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layers: as many parameters as a GPT's two matrices of 4 x hidden."""
        return 4 * self.hidden if self.model == "gpt" else 8 * self.hidden // 3 // 16 * 16 or 16

    def config(self) -> dict[str, Any]:
        """The model as transformers and `weigh` know it. No dropout: losses shall differ by the technique alone."""
        if self.model == "gpt":
            return {
                "model_type": "gpt2",
                "n_layer": self.layers,
                "n_embd": self.hidden,
                "n_head": self.heads,
                "n_inner": self.feed_forward,
                "n_positions": self.sequence,
                "vocab_size": VOCABULARY,
                **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
            }
        return {
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.sequence,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
        }

    def larger(self) -> Bench:
        """The teacher's: twice as wide."""
        return replace(self, hidden=2 * self.hidden, heads=2 * self.heads)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


SHARES = 2
"""Micro-batches in a step where they are accumulated, and processes that share one."""
LEAST = {"layers": 1, "hidden": 8, "heads": 1, "sequence": 8, "batch": SHARES, "steps": 2, "seed": 0}
"""The smallest sizes that mean something: the second step is the first with the optimizer's state."""

SUITES = {
    "quick": Bench(),
    "full": Bench(layers=6, hidden=256, heads=8, sequence=256, batch=16, steps=600),
}
"""What is run where nothing else is said: minutes on two cores, or hours."""


def bench(suite: str = "quick", **changes: Any) -> Bench:
    """The settings of a suite, changed.

    >>> bench("quick", steps=10).steps
    10

    Raises:
        UsageError: there is no such suite, or a size cannot be.
    """
    if suite not in SUITES:
        raise UsageError(f"there is no suite {suite!r}", where="--suite", hint=f"Use {' or '.join(SUITES)}.")
    return replace(SUITES[suite], **{name: value for name, value in changes.items() if value is not None})
