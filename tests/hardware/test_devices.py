import itertools
import re
from collections import Counter
from collections.abc import Sequence

import pytest

from weigh import dtypes
from weigh.errors import NotModelledError, UnknownNameError
from weigh.hardware import Device, all_devices, get_device, named

SINGLE = ("memory_bytes", "reserved_bytes", "compute_capability", "bandwidth_bytes_per_second", "power_watts")
EVERY = pytest.mark.parametrize("device", all_devices(), ids=lambda d: d.name)
GIB = 2**30


@EVERY
def test_every_figure_has_a_source(device: Device) -> None:
    figures = {
        *(f"flops.{dtype}" for dtype in device.flops),
        *(f"links.{link}" for link in device.links),
        *(key for key in SINGLE if getattr(device, key) is not None),
    }
    assert set(device.sources) == figures
    for figure in device.sources.values():
        assert figure.words
        assert figure.url.startswith("https://")
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", figure.date)


@EVERY
def test_figures_are_possible(device: Device) -> None:
    assert 3.9 * GIB < device.memory_bytes < 512 * GIB
    kept = 0.34 * device.memory_bytes if device.maker == "Apple" else GIB
    assert device.reserved_bytes is None or device.reserved_bytes < kept
    assert device.bandwidth_bytes_per_second is None or 6 * 10**10 < device.bandwidth_bytes_per_second < 10**13
    assert device.power_watts is None or 30 < device.power_watts < 1500
    for name, speed in device.links.items():
        assert name in ("pcie", "nvlink", "xgmi", "ici", "roce", "ub", "neuronlink")
        assert 7 * 10**9 < speed < 10**12
    for name, flops in device.flops.items():
        assert dtypes.get(name).name == name, "speeds are listed by canonical dtype"
        assert 10**12 < flops < 2 * 10**16
    assert 6 <= (device.compute_capability or (6, 0))[0] <= 12


@EVERY
def test_narrow_formats_are_no_slower(device: Device) -> None:
    order = [device.flops[name] for name in ("fp32", "tf32", "fp16", "fp8_e4m3", "fp4_e2m1") if name in device.flops]
    assert all(wide <= 1.01 * narrow for wide, narrow in itertools.pairwise(order))


@EVERY
def test_the_words_hold_the_figures(device: Device) -> None:
    """As they stand there or in another unit; a link, a derived speed and a Mac's share say how they follow."""
    sources = device.sources
    memory = (device.memory_bytes / 2**30, device.memory_bytes / 2**20, device.memory_bytes, device.memory_bytes // 8)
    assert _holds(sources["memory_bytes"].words, memory)
    bandwidth = device.bandwidth_bytes_per_second
    if bandwidth is not None:
        assert _holds(sources["bandwidth_bytes_per_second"].words, [bandwidth / 10**e for e in (0, 9, 12)])
    if device.power_watts is not None:
        assert _holds(sources["power_watts"].words, [device.power_watts])
    for dtype, flops in device.flops.items():
        words = sources[f"flops.{dtype}"].words
        times = 2 if "half" in words.replace("half_float", "").replace("Half precision", "") or "halved" in words else 1
        assert _holds(words, [times * flops / 10**e for e in (0, 9, 12)]), (dtype, words)


def _holds(words: str, figures: Sequence[float]) -> bool:
    """Whether a number in the words is one of the figures, in as many digits as they have."""
    found = [float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e[+]?\d+)?", words.replace(",", ""))]
    return any(abs(number - figure) <= 0.006 * abs(figure) for number in found for figure in figures)


def test_there_are_enough_and_of_many_makers() -> None:
    makers = Counter(d.maker for d in all_devices())
    assert len(all_devices()) >= 80
    assert {"NVIDIA", "AMD", "Intel", "Apple", "Google", "Huawei"} <= set(makers)
    assert {"Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"} <= {
        d.generation.split()[0] for d in all_devices() if d.maker == "NVIDIA"
    }


def test_what_programs_get_of_a_mac() -> None:
    assert get_device("m1-max-64gb").usable_bytes == 48 * GIB


def test_names_are_unique() -> None:
    names = [name for d in all_devices() for name in (d.name, *d.aliases)]
    assert len(names) == len(set(names))


@EVERY
def test_keys_aliases_and_the_drivers_names_are_understood(device: Device) -> None:
    for name in (device.name, device.name.upper(), *device.aliases):
        assert get_device(name) is device
    assert device in named(device.marketing_name)


@pytest.mark.parametrize(
    ("name", "key"),
    [("RTX 4090", "rtx-4090"), ("nvidia_h200", "h200"), ("H100 80GB HBM3", "h100-80gb"), ("4090", "rtx-4090")],
)
def test_makers_spaces_and_case_do_not_matter(name: str, key: str) -> None:
    assert get_device(name).name == key


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("a100", "a100-80gb"),
        ("rtx-4060-ti", "rtx-4060-ti-16gb"),
        ("rtx-3080", "rtx-3080-12gb"),
        ("v100", "v100-32gb"),
        ("h10O-80gb", "h100-80gb"),
        ("l4s", "l40s"),
    ],
)
def test_near_misses_are_suggested_and_never_guessed(name: str, suggested: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_device(name)
    assert suggested in caught.value.suggestions


def test_the_published_h100() -> None:
    h100 = get_device("h100")
    assert h100.memory_bytes == 81559 * 2**20
    assert h100.compute_capability == (9, 0)
    assert h100.peak_flops(dtypes.BFLOAT16) == h100.peak_flops("torch.float16") == 989 * 10**12


def test_a_speed_without_a_source_is_refused() -> None:
    with pytest.raises(NotModelledError, match="bf16 speed of NVIDIA GeForce RTX 2080 Ti"):
        get_device("rtx-2080-ti").peak_flops("bf16")


def test_two_sizes_that_drivers_call_alike_are_both_named() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_device("NVIDIA GeForce RTX 3080")
    assert set(caught.value.known) == {"rtx-3080-10gb", "rtx-3080-12gb"}
