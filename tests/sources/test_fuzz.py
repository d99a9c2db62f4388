"""No bytes make a reader fail but with one clear error (`make fuzz` goes on for longer)."""

import fuzzing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(max_examples=150, deadline=5000, suppress_health_check=list(HealthCheck))


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good file with some bytes changed, cut out, or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        end = at + draw(st.integers(0, 8))
        data[at:end] = draw(st.binary(max_size=9) | st.sampled_from([b"\xff" * 8, bytes(8), bytes(data[: end - at])]))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_the_good_files_are_read(name: str) -> None:
    assert fuzzing.run(name, fuzzing.TARGETS[name].seeds[0])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_damaged_files(name: str) -> None:
    @quick
    @given(damaged(fuzzing.TARGETS[name].seeds))
    def check(data: bytes) -> None:
        fuzzing.run(name, data)

    check()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_any_bytes(name: str) -> None:
    @quick
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        fuzzing.run(name, data)

    check()
