"""Whether PyTorch is there, and of which release. Loads nothing of it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from weigh.errors import InputError

RELEASE = "2.13"
"""The release of PyTorch that fake CUDA tensors reach into, and that the tests run with."""
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
NEEDED = {"torch": "2.9", "transformers": "5.0"}
"""The oldest releases of what every run needs."""


def check(fake_cuda: bool = False, also: tuple[str, ...] = ()) -> None:
    """That what a run needs is installed.

    Raises:
        InputError: something is missing or of another release; it says what to install.
    """
    for name in (*NEEDED, *also):
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed", hint=f"{_install(name)} adds it.")
        oldest = NEEDED.get(name)
        if oldest is not None and _numbers(_version(name)) < _numbers(oldest):
            raise InputError(
                f"{name} {_version(name)} is too old", hint=f"At least {oldest} is needed: {_install(name)}."
            )
    if fake_cuda and _numbers(_version("torch"))[:2] != _numbers(RELEASE):
        raise InputError(
            f"fake CUDA tensors reach into PyTorch {RELEASE}, and this is {_version('torch')}",
            where="torch",
            hint=f"`pip install torch=={RELEASE}.* --index-url {CPU_BUILDS}`, or trace the CPU: --kernels cpu.",
        )


def _install(name: str) -> str:
    return "`pip install 'weigh[torch]'`" if name in NEEDED else f"`pip install {name}`"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "0"


def _numbers(release: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _numbers("2.13.0+cpu")
    (2, 13, 0)
    """
    parts = release.partition("+")[0].split(".")
    return tuple(int(p) for p in parts if p.isdecimal())
