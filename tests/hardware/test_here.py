"""This machine's own device, from what the drivers' programs print. The outputs are recorded ones."""

import stat
import sys
import time
from pathlib import Path

import pytest

from weigh.errors import InputError
from weigh.hardware import here
from weigh.hardware.here import Found, device_here, found_here, known, read_nvidia_smi, read_rocm_smi, read_sysctl

NVIDIA = "NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 4080, 16376\n"
"""Name and memory as in the captures of github.com/utkuozdemir/nvidia_gpu_exporter and of XiongjieDai's notebooks."""
ROCM = """{
  "card0": {
    "GPU use (%)": "0",
    "VRAM Total Memory (B)": "21458059264",
    "VRAM Total Used Memory (B)": "27856896",
    "Card Series": "Radeon RX 7900 XT",
    "Card Model": "0x744c",
    "GFX Version": "gfx1100"
  }
}"""
"""github.com/marimo-team/marimo/issues/9237: rocm-smi --showproductname --showuse --showmeminfo vram --json."""
SYSCTL = "machdep.cpu.brand_string: Apple M3 Max\nhw.memsize: 68719476736\n"


def test_every_card_is_read() -> None:
    names = [found.name for found in read_nvidia_smi(NVIDIA)]
    assert names == ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4080"]
    assert [known(found).name for found in read_nvidia_smi(NVIDIA)] == ["rtx-4090", "rtx-4080"]


def test_amd_and_apple() -> None:
    assert [known(found).name for found in read_rocm_smi(ROCM)] == ["rx-7900-xt"]
    assert [known(found).name for found in read_sysctl(SYSCTL)] == ["m3-max-64gb"]


def test_the_size_decides_between_cards_of_one_name() -> None:
    assert known(Found("NVIDIA GeForce RTX 4060 Ti", 16380 * 2**20)).name == "rtx-4060-ti-16gb"
    assert known(Found("NVIDIA GeForce RTX 4060 Ti", 8188 * 2**20)).name == "rtx-4060-ti-8gb"


def test_another_size_is_not_taken_for_a_sibling() -> None:
    with pytest.raises(InputError, match=r"no Apple M3 Max with 128\.00 GiB.*m3-max-64gb"):
        known(Found("Apple M3 Max", 128 * 2**30))
    with pytest.raises(InputError, match="no Quadro K620"):
        known(Found("Quadro K620", 2 * 2**30))


@pytest.mark.parametrize(
    "text", ["", "No devices were found", "[]", '{"card0": {}}', '{"card0": 3}', "NVIDIA GB10, [N/A]"]
)
def test_nonsense_is_no_device(text: str) -> None:
    assert read_nvidia_smi(text) == read_rocm_smi(text) == read_sysctl(text) == []


def test_the_programs_are_asked_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    answers = {"nvidia-smi": "", "rocm-smi": "", "sysctl": SYSCTL}
    assert found_here(lambda command: answers[command[0]]) == read_sysctl(SYSCTL)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def _write(folder: Path, text: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.usefixtures("programs")
def test_no_program_no_device() -> None:
    with pytest.raises(InputError, match="no accelerator found"):
        device_here()


def test_a_program_is_run(programs: Path) -> None:
    _write(programs, f'#!/bin/sh\n[ "$1" = --query-gpu=name,memory.total ] && echo "{NVIDIA.splitlines()[0]}"\n')
    assert device_here().name == "rtx-4090"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\nprintf '\\377\\n'\n", "no program\n"])
def test_a_failing_program_is_no_device(programs: Path, text: str) -> None:
    _write(programs, text)
    with pytest.raises(InputError, match="no accelerator found"):
        device_here()


def test_a_program_that_hangs_is_left(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "SECONDS", 0.2)
    _write(programs, "#!/bin/sh\nexec /bin/sleep 30\n")
    start = time.monotonic()
    with pytest.raises(InputError, match="no accelerator found"):
        device_here()
    assert time.monotonic() - start < 5
