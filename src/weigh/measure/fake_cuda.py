"""Fake CUDA tensors that autograd accepts, on a PyTorch that was built without CUDA.

`FakeTensorMode` can make tensors that claim to be on "cuda" anywhere, and every op on them gives the right shapes,
strides and dtypes. Only the backward pass fails: a build without CUDA lacks two small things that autograd's engine
asks for. `install` puts them there through `ctypes`; nothing is compiled and nothing is written to disk.

1. A device guard. `c10::impl::device_guard_impl_registry` holds one pointer a device type; CUDA's is null, and the
   engine aborts the process when it looks ("PyTorch is not linked with support for cuda devices"). PyTorch owns a guard
   that does nothing (`NoOpDeviceGuardImpl`), and `torch._C._ensureCUDADeviceGuardSet()` installs it, but only in place
   of an existing guard whose `deviceCount()` is zero. So a stand-in whose every virtual function returns zero goes
   first.
2. An accelerator. `at::accelerator::getAccelerator()` asks the CUDA hooks `isBuilt()`; without a yes the engine refuses
   to order streams. The hooks object gets a copy of its vtable with two entries replaced. The order of a vtable is the
   order of declaration in the header (ATen/detail/AcceleratorHooksInterface.h), after two for the destructor.

Both depend on the ABI of one release and are checked with assertions. Use this in a process of its own, and leave with
`os._exit`: the patched objects are not to be destroyed by the usual exit.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from weigh.errors import InputError
from weigh.measure.requirements import CPU_BUILDS, RELEASE

CUDA = 1
"""The place of CUDA in the registry of guards (c10/core/DeviceType.h)."""
IS_BUILT = 2
"""The vtable slot of `AcceleratorHooksInterface::isBuilt`, after the two of the destructor."""
HAS_PRIMARY_CONTEXT = 4
"""The vtable slot of `hasPrimaryContext`, after `isAvailable`."""
VTABLE_HEADER = 2
"""Entries before the first function: the offset to the top and the type's description (Itanium C++ ABI)."""
VTABLE_SIZE = 100
"""Entries copied: more than the class has, so that none is missing."""
POINTER = ctypes.sizeof(ctypes.c_void_p)

_alive: list[Any] = []
"""What C++ now points to, and Python must not collect."""


def install() -> None:
    """Make autograd work on fake CUDA tensors, in this process, until it ends; where there is a GPU it does already.

    Raises:
        InputError: this PyTorch was built for CUDA and finds no GPU, or is of a kind or release that is not known here.
    """
    if torch.cuda.is_available() or _alive:
        return
    try:
        _install()
    except (AssertionError, AttributeError, OSError, ValueError) as error:
        raise InputError(
            f"fake CUDA tensors cannot be set up in PyTorch {torch.__version__} ({error})",
            where="torch",
            hint=f"Install a build without CUDA, `pip install torch=={RELEASE}.* --index-url {CPU_BUILDS}`, on Linux.",
        ) from None


def _install() -> None:
    assert torch.version.cuda is None, "it is a build for CUDA, and finds no GPU"
    libraries = Path(torch.__file__).parent / "lib"
    _install_guard(ctypes.CDLL(str(libraries / "libc10.so")))
    _install_hooks(ctypes.CDLL(str(libraries / "libtorch_cpu.so")))
    torch.cuda.current_device = lambda: 0
    # torch.autocast("cuda") switches itself off, with a warning, where there is no CUDA.
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_: True
    torch.cuda.get_device_capability = lambda *_, **__: (9, 0)


def _function(result: Any, *arguments: Any, value: int) -> int:
    """The address of a C function that returns `value`."""
    function = ctypes.CFUNCTYPE(result, *arguments)(lambda *_: value)
    _alive.append(function)
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _install_guard(c10: ctypes.CDLL) -> None:
    registry = (ctypes.c_void_p * (CUDA + 1)).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    assert not registry[CUDA], "there is a CUDA guard already"
    zero = _function(ctypes.c_int64, ctypes.c_void_p, value=0)
    vtable = (ctypes.c_void_p * VTABLE_SIZE)(*[zero] * VTABLE_SIZE)
    stand_in = (ctypes.c_void_p * 1)(ctypes.addressof(vtable))
    _alive.extend((vtable, stand_in))
    registry[CUDA] = ctypes.addressof(stand_in)
    torch._C._ensureCUDADeviceGuardSet()
    assert registry[CUDA] != ctypes.addressof(stand_in), "PyTorch did not install its own guard"


def _install_hooks(torch_cpu: ctypes.CDLL) -> None:
    get_hooks = torch_cpu._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype, get_hooks.argtypes = ctypes.c_void_p, []
    hooks = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    first = hooks[0]
    assert first is not None
    header = VTABLE_HEADER * POINTER
    old = ctypes.cast(first - header, ctypes.POINTER(ctypes.c_void_p))
    new = (ctypes.c_void_p * VTABLE_SIZE)(*[old[i] for i in range(VTABLE_SIZE)])
    new[VTABLE_HEADER + IS_BUILT] = _function(ctypes.c_int64, ctypes.c_void_p, value=1)
    new[VTABLE_HEADER + HAS_PRIMARY_CONTEXT] = _function(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, value=0)
    _alive.append(new)
    hooks[0] = ctypes.addressof(new) + header
    assert str(torch._C._accelerator_getAccelerator()) == "cuda", "the CUDA hooks do not answer"
