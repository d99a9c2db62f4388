"""The host's memory beside the device's: what a technique puts there, and the most that it ever was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from weigh.dims import Shape, Size
from weigh.dtypes import DType
from weigh.ghost.ledger import Ledger
from weigh.ghost.nn import Module
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty
from weigh.trace.peak import phase_peaks


class _Beside(Ledger):
    """A ledger in which things happen in the blocks in which they happen on the device."""

    def __init__(self, device: Ledger) -> None:
        self.device = device
        self.chosen: int | None = None
        super().__init__()

    @property
    def unit(self) -> int | None:
        """The block that was named here, or else the one that is running on the device."""
        return self.device.unit if self.chosen is None else self.chosen

    @unit.setter
    def unit(self, unit: int | None) -> None:
        self.chosen = None if unit == self.device.unit else unit


class Host:
    """Memory of the host, for one purpose. On the CPU it is the device's."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.device = state.ledger
        self.apart = state.overrides.get("device") != "cpu"
        """What moves to the device or back is copied."""
        self.ledger = _Beside(self.device) if self.apart else self.device

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Tensors are made on the host while this is entered."""
        state.ledger = self.ledger
        try:
            yield
        finally:
            state.ledger = self.device

    def empty(self, shape: Shape, dtype: DType, purpose: str) -> Tensor:
        """Room on the host."""
        with self.instead():
            return empty(shape, dtype, "aten::_to_copy", purpose=purpose)

    def peak(self) -> Size:
        """The most bytes at once, beside the device's."""
        if not self.apart:
            return 0
        self.ledger.repeats = self.device.repeats
        return max((p.peak for p in phase_peaks(self.ledger.trace())), default=0)


def host_of(model: Module, what: str) -> Host:
    """The host's memory for a purpose; the model knows of it, and a run asks it at the end."""
    hosts = hosts_of(model)
    if what not in hosts:
        hosts[what] = Host(what)
        model.hosts = hosts  # type: ignore[attr-defined]
    return hosts[what]


def where_updates_are(model: Module) -> AbstractContextManager[None]:
    """Where what the optimizer does happens: on the host, where a technique says so."""
    host: Host | None = getattr(model, "updates_on", None)
    return nullcontext() if host is None else host.instead()


def hosts_of(model: Module) -> dict[str, Host]:
    """What there is on the host, by purpose."""
    found: dict[str, Host] = getattr(model, "hosts", {})
    return found
