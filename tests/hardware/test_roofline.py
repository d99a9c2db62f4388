"""The roofline: peaks, which of them a card without a figure has, links."""

import pytest

from weigh.errors import NotModelledError
from weigh.hardware import all_devices, get_device
from weigh.hardware.roofline import Efficiency, all_reduce_seconds, balance, bandwidth, rate, seconds

H100 = get_device("h100")


def test_an_operation_waits_for_its_arithmetic_or_for_its_bytes() -> None:
    ridge = balance(H100, "bf16")
    for intensity in (ridge / 100, ridge / 2, ridge, 2 * ridge, 100 * ridge):
        took = seconds(intensity * 1e9, 1e9, H100, "bf16")
        assert took == pytest.approx(max(intensity * 1e9 / 989e12, 1e9 / 3.35e12))


def test_the_ratios_that_are_taught() -> None:
    """A100-40GB 201 and A100-80GB 156 operations for each byte in 16 bits, H100 295; without matrix units 13."""
    figures = [
        round(balance(get_device(n), d)) for n, d in (("a100-40gb", "bf16"), ("h100", "bf16"), ("a100-40gb", "fp32"))
    ]
    assert figures == [201, 295, 13]


def test_efficiency_takes_its_share() -> None:
    reached = Efficiency(bandwidth=0.5, compute=0.25)
    assert seconds(1.0, 1e12, H100, "bf16", reached) == pytest.approx(2 * seconds(1.0, 1e12, H100, "bf16"))
    assert seconds(1e18, 1.0, H100, "bf16", reached) == pytest.approx(4 * seconds(1e18, 1.0, H100, "bf16"))


def test_every_device_with_figures_has_a_rate_for_16_bits() -> None:
    for device in all_devices():
        if device.flops:
            flops, of = rate(device, "bf16")
            assert flops == device.flops[of]


def test_without_figures_there_is_no_speed() -> None:
    with pytest.raises(NotModelledError, match="H20"):
        rate(get_device("h20"), "bf16")
    with pytest.raises(NotModelledError, match="bandwidth of NVIDIA H20"):
        bandwidth(get_device("h20"))
    with pytest.raises(NotModelledError, match="fp8"):
        rate(get_device("a100-80gb"), "fp8_e4m3")


def test_rings() -> None:
    assert all_reduce_seconds(1e9, 1, H100) == 0
    assert all_reduce_seconds(450e9, 2, H100) == pytest.approx(1.0)
    assert all_reduce_seconds(450e9, 8, H100) == pytest.approx(2 * 7 / 8)
    with pytest.raises(NotModelledError, match="links of Apple M1"):
        all_reduce_seconds(1e9, 2, get_device("m1-8gb"))
