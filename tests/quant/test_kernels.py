"""weigh-kernels gives the bits of numpy: compiled here, where there is a C compiler."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh import quant
from weigh.errors import InputError
from weigh.quant import kernels
from weigh.quant.base import Packed

SOURCES = Path(__file__).parents[2] / "kernels/src/weigh_kernels"
FLAGS = (
    "-O3 -fno-strict-aliasing -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC "
    "-DPy_LIMITED_API=0x030B0000"
).split()
SPECS = ["absmax_block", "absmax_block:block=7", "dynamic", "dynamic_unsigned:block=2048", "nf4", "fp4:block=6"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package, built from its sources."""
    compiler, headers = shutil.which("cc"), Path(sysconfig.get_path("include"))
    if compiler is None or not (headers / "Python.h").exists():
        pytest.skip("needs a C compiler and Python's headers")
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copytree(SOURCES, folder / "weigh_kernels")
    built = folder / "weigh_kernels/_kernels.abi3.so"
    subprocess.run([compiler, *FLAGS, f"-I{headers}", str(SOURCES / "kernels.c"), "-o", str(built)], check=True)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("weigh_kernels")
    finally:
        sys.path.remove(str(folder))


def both(package: ModuleType, spec: str, array: Any) -> tuple[Any, Any]:
    """The parts and the values, or the error, by the kernels and by numpy."""

    def run(loaded: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "loaded", lambda: loaded)
            quantizer = quant.parse(spec)
            try:
                packed = quantizer.quantize(array)
            except InputError as error:
                return str(error)
            parts = {name: part.tobytes() for name, part in packed.parts.items()}
            return parts, quantizer.dequantize(packed).tobytes()

    return run(package), run(None)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 700),
    kind=st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float16]),
    bits=st.sampled_from(["normal", "any", "zeros", "denormal"]),
)
def test_the_bits_are_numpys(package: ModuleType, spec: str, seed: int, size: int, kind: Any, bits: str) -> None:
    rng = np.random.default_rng(seed)
    width = np.dtype(kind).itemsize
    if bits == "any":
        array = np.frombuffer(rng.bytes(size * width), kind)
    else:
        scale = {"normal": rng.choice([1e-30, 0.02, 1e30]), "zeros": 0.0, "denormal": 1e-42}[bits]
        with np.errstate(over="ignore"):
            array = (rng.standard_normal(size) * scale).astype(np.float32).astype(kind)
    ours, numpys = both(package, spec, array)
    assert ours == numpys


@pytest.mark.parametrize("spec", SPECS)
def test_every_bf16_number_and_long_arrays(package: ModuleType, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in several threads."""
    monkeypatch.setenv("WEIGH_THREADS", "3")
    patterns = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = patterns[np.isfinite(patterns.astype(np.float32))]
    every = np.random.default_rng(0).permutation(np.tile(finite, 50)).astype(np.float32)
    ours, numpys = both(package, spec, every)
    assert ours == numpys
    assert both(package, spec, finite)[0] == both(package, spec, finite)[1]


def test_sizes_are_checked(package: ModuleType) -> None:
    array = np.zeros(64, np.float32)
    codes, absmax = np.zeros(64, np.int8), np.zeros(1, np.float32)
    package.quantize(package.INT8, array, False, 64, codes, absmax)
    for block, room in ((32, absmax), (0, absmax), (-1, absmax), (5000, absmax), (64, absmax[:0])):
        with pytest.raises((ValueError, ZeroDivisionError)):
            package.quantize(package.INT8, array, False, block, codes, room)
    with pytest.raises(ValueError, match="do not fit"):
        package.dequantize(package.FOUR_BIT, codes[:31], absmax, 64, array, np.zeros(16, np.float32))


def test_another_interface_is_not_used(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weigh_kernels", package)
    monkeypatch.delenv("WEIGH_KERNELS", raising=False)
    assert kernels.loaded.__wrapped__() is package
    monkeypatch.setattr(package, "VERSION", 0)
    assert kernels.loaded.__wrapped__() is None
    monkeypatch.undo()
    monkeypatch.setenv("WEIGH_KERNELS", "0")
    assert kernels.loaded.__wrapped__() is None


def test_what_is_stored_can_be_read_only(package: ModuleType) -> None:
    """As bytes of a file are."""
    packed = quant.get("nf4").quantize(np.linspace(-1, 1, 128, dtype=np.float32))
    frozen = Packed(
        {n: np.frombuffer(p.tobytes(), p.dtype).reshape(p.shape) for n, p in packed.parts.items()}, (128,), packed.dtype
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "loaded", lambda: package)
        by_kernel = quant.get("nf4").dequantize(frozen)
    assert np.array_equal(by_kernel, quant.get("nf4").dequantize(packed))
