"""`weigh devices`: the list, what is searched for, one in full."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess

from weigh.hardware import all_devices, get_device

Run = Callable[..., CompletedProcess[str]]


def test_every_device_has_a_line_that_fits_a_terminal(weigh: Run) -> None:
    lines = weigh("devices").stdout.splitlines()
    names = [line.split()[0] for line in lines[1 : len(all_devices()) + 1]]
    assert names == [d.name for d in all_devices()]
    assert max(map(len, lines)) <= 88


def test_searching(weigh: Run) -> None:
    found = json.loads(weigh("devices", "--search", "RTX super", "--maker", "nvidia", "--json").stdout)["devices"]
    assert {d["name"] for d in found} >= {"rtx-4080-super", "rtx-2060-super"}
    assert all("super" in d["name"] for d in found)
    assert weigh("devices", "--search", "abacus").stdout.startswith("No device has 'abacus'")


def test_makers(weigh: Run) -> None:
    found = json.loads(weigh("devices", "--maker", "amd", "--json").stdout)["devices"]
    assert {d["name"] for d in found} == {d.name for d in all_devices() if d.maker == "AMD"}
    wrong = weigh("devices", "--maker", "Nvidea")
    assert wrong.returncode == 3
    assert "Did you mean NVIDIA?" in wrong.stderr


def test_one_in_full_has_every_source(weigh: Run) -> None:
    said = weigh("devices", "mi300x").stdout
    for figure in get_device("mi300x").sources.values():
        assert figure.url in said


def test_this_machine_without_a_device_is_told_so(weigh: Run) -> None:
    result = weigh("devices", "here", PATH="/nowhere")
    assert result.returncode == 3
    assert "no accelerator found" in result.stderr
