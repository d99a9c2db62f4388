"""What a run knows besides its tensors: the ledger, the grad mode, autocast, the saved-tensor hooks and the kernels.

PyTorch keeps these in thread-local state and in the dispatcher; here they are the attributes of one object, `state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weigh.errors import UnknownNameError
from weigh.ghost.ledger import Ledger

if TYPE_CHECKING:
    from weigh.ghost.autocast import Autocast


ATTENTION = ("sdpa", "eager", "flash_attention_2")


class State:
    """The mutable surroundings of a run. Use the context managers below; they restore what they change."""

    __slots__ = (
        "attention",
        "autocast",
        "grad_enabled",
        "ledger",
        "one_of_each",
        "overrides",
        "pack_hook",
        "recorder",
        "sequence",
        "traced",
        "trailing",
        "unrolled",
    )

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.grad_enabled = True
        self.attention = "sdpa"
        """transformers' attention implementation: "sdpa" or "eager"."""
        self.autocast: Autocast | None = None
        self.pack_hook: Callable[[Any], Any] | None = None
        self.overrides: dict[str, Any] = {}
        """Rows of the op table that the kernels in use replace: op name -> op."""
        self.recorder: Callable[..., None] | None = None
        """What is told of every op that runs, but not of those that it runs itself."""
        self.sequence = 0
        self.one_of_each = False
        """One block of a stack stands for all that are alike (see `weigh.ghost.repeat`)."""
        self.traced = False
        """The run is seen through a dispatch mode (as the recorded witnesses are): nothing is then summed in place."""
        self.trailing = 0
        """Blocks at the end of a stack that differ from those before them: what reaches across blocks ends there."""
        self.unrolled = False
        """Stacks have all their blocks (see `weigh.ghost.repeat`)."""


state = State()


@contextmanager
def recording(
    kernels: dict[str, Any] | None = None, *, traced: bool = False, attention: str = "sdpa"
) -> Iterator[Ledger]:
    """Run the body on a fresh ledger, with `kernels` in place of their rows of the op table.

    Raises `UnknownNameError` for an attention implementation that is not in `ATTENTION`.
    """
    if attention not in ATTENTION:
        raise UnknownNameError("attention implementation", attention, ATTENTION)
    saved = {name: getattr(state, name) for name in State.__slots__}
    state.__init__()  # type: ignore[misc]
    state.overrides = dict(kernels or {})
    state.traced = traced
    state.attention = attention
    state.unrolled, state.one_of_each = saved["unrolled"], saved["one_of_each"]
    try:
        yield state.ledger
    finally:
        state.ledger.on_phase = None  # it may hold tensors, and they the ledger
        for name, value in saved.items():
            setattr(state, name, value)


@contextmanager
def no_grad() -> Iterator[None]:
    """As `torch.no_grad()`."""
    before, state.grad_enabled = state.grad_enabled, False
    try:
        yield
    finally:
        state.grad_enabled = before


@contextmanager
def enable_grad() -> Iterator[None]:
    """As `torch.enable_grad()`."""
    before, state.grad_enabled = state.grad_enabled, True
    try:
        yield
    finally:
        state.grad_enabled = before


@contextmanager
def saved_tensors_hooks(pack: Callable[[Any], Any] | None) -> Iterator[None]:
    """As `torch.autograd.graph.saved_tensors_hooks`: `pack` turns a saved tensor into something with an `unpack()`.

    None puts hooks that do nothing over those that are there.
    """
    before, state.pack_hook = state.pack_hook, pack
    try:
        yield
    finally:
        state.pack_hook = before


@contextmanager
def inside_unit(unit: int | None) -> Iterator[None]:
    """What happens in the body belongs to a repeated block."""
    ledger = state.ledger
    before, ledger.unit = ledger.unit, unit
    try:
        yield
    finally:
        ledger.unit = before


@contextmanager
def recomputing() -> Iterator[None]:
    """A checkpointed block runs forward again, in the middle of a backward pass."""
    ledger = state.ledger
    before, ledger.recomputing = ledger.recomputing, True
    try:
        yield
    finally:
        ledger.recomputing = before


@contextmanager
def by_owner(on: bool = True) -> Iterator[None]:
    """Outside every block, over a list of tensors: what dies in the body belongs to the block that owns it."""
    ledger = state.ledger
    before, ledger.by_owner = ledger.by_owner, on
    try:
        yield
    finally:
        ledger.by_owner = before
