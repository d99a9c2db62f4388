import pytest

from weigh.hardware import get_device
from weigh.report.fit import Fit

DEVICE = get_device("h100")
CAPACITY = DEVICE.memory_bytes - (DEVICE.reserved_bytes or 0)


@pytest.mark.parametrize(
    ("peak", "verdict"),
    [(0, "yes"), (CAPACITY // 2, "yes"), (CAPACITY * 95 // 100, "close"), (CAPACITY - 1, "no"), (CAPACITY + 1, "no")],
)
def test_what_is_outside_of_the_peak_decides(peak: int, verdict: str) -> None:
    fit = Fit(DEVICE, peak)
    assert fit.verdict == verdict
    assert fit.spare == CAPACITY - peak
    least, most = fit.outside
    assert (peak + most <= CAPACITY) == (verdict == "yes")
    assert (peak + least > CAPACITY) == (verdict == "no")
