import pytest

from weigh import dtypes
from weigh.errors import NotModelledError, UnknownNameError
from weigh.hardware import Device, all_devices, get_device

EVERY = pytest.mark.parametrize("device", all_devices(), ids=lambda d: d.name)
GIB = 2**30


@EVERY
def test_every_figure_has_a_source(device: Device) -> None:
    figures = {f"flops.{dtype}" for dtype in device.flops} | {
        key
        for key in ("memory_bytes", "reserved_bytes", "compute_capability", "bandwidth_bytes_per_second")
        if getattr(device, key) is not None
    }
    assert set(device.sources) == figures
    for figure in device.sources.values():
        assert figure.words
        assert figure.url.startswith("https://")
        assert len(figure.date) == len("2026-11-21")


@EVERY
def test_figures_are_possible(device: Device) -> None:
    assert 4 * GIB < device.memory_bytes < 512 * GIB
    assert device.reserved_bytes is None or device.reserved_bytes < GIB
    assert device.bandwidth_bytes_per_second is None or 10**11 < device.bandwidth_bytes_per_second < 10**13
    for name, flops in device.flops.items():
        assert dtypes.get(name).name == name, "speeds are listed by canonical dtype"
        assert 10**12 < flops < 10**16
    if "fp32" in device.flops:
        assert device.flops["fp32"] <= min(device.flops.values())


@EVERY
def test_the_words_hold_the_memory(device: Device) -> None:
    words = device.sources["memory_bytes"].words
    figures = (device.memory_bytes // 2**20, device.memory_bytes, device.memory_bytes // 8)
    assert any(str(figure) in words for figure in figures)


def test_names_are_unique() -> None:
    names = [name for d in all_devices() for name in (d.name, *d.aliases)]
    assert len(names) == len(set(names))


@EVERY
def test_keys_aliases_and_the_drivers_names_are_understood(device: Device) -> None:
    for name in (device.name, device.name.upper(), device.marketing_name, *device.aliases):
        assert get_device(name) is device


@pytest.mark.parametrize(
    ("name", "key"),
    [("RTX 4090", "rtx-4090"), ("nvidia_h200", "h200"), ("H100 80GB HBM3", "h100-80gb"), ("4090", "rtx-4090")],
)
def test_makers_spaces_and_case_do_not_matter(name: str, key: str) -> None:
    assert get_device(name).name == key


@pytest.mark.parametrize(
    ("name", "suggested"), [("a100", "a100-80gb"), ("v100", "v100-32gb"), ("h10O-80gb", "h100-80gb"), ("l4s", "l40s")]
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
    with pytest.raises(NotModelledError, match="bf16 speed of NVIDIA GeForce RTX 3090"):
        get_device("rtx-3090").peak_flops("bf16")
