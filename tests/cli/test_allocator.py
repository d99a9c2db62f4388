"""What PyTorch's allocator makes of a run, from the command line; and snapshots."""

import json
from pathlib import Path

import pytest

from weigh.errors import UsageError


def test_the_command_names_the_reserved_bytes_and_draws_them(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = weigh("train", "gpt2", "--sequence", "64", "--allocator", "default", "--segments", tmp_path / "x.svg")
    assert result.returncode == 0, result.stderr
    assert "PyTorch's allocator reserves" in result.stdout
    assert (tmp_path / "x.svg").read_text().startswith("<svg")


def test_the_cpu_has_no_allocator(weigh) -> None:  # type: ignore[no-untyped-def]
    result = weigh("train", "gpt2", "--kernels", "cpu", "--allocator", "default")
    assert result.returncode == UsageError.exit_code
    assert "no caching allocator" in result.stderr


@pytest.mark.parametrize("conf", ["expandable_segment:True", "max_split_size_mb:1"])
def test_wrong_settings_are_refused(weigh, conf: str) -> None:  # type: ignore[no-untyped-def]
    assert weigh("train", "gpt2", "--allocator", conf).returncode in (2, 3)


def test_a_snapshot_is_summed_up_beside_the_prediction(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "x.pickle"
    assert weigh("train", "gpt2", "--sequence", "64", "--snapshot", file).returncode == 0
    result = weigh("snapshot", file, "--model", "gpt2", "--sequence", "64")
    assert result.returncode == 0, result.stderr
    assert "Beside weigh's prediction" in result.stdout
    found = json.loads(weigh("snapshot", file, "--model", "gpt2", "--sequence", "64", "--json").stdout)
    assert found["predicted"] == {"allocated": found["peak"]["bytes"], "reserved": found["reserved"]["max_bytes"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--batch", "2"), "Name the model"), (("--number", "3"), "nothing was recorded of device 3")],
)
def test_wrong_questions_about_a_snapshot(weigh, tmp_path: Path, words: tuple[str, ...], said: str) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "x.pickle"
    weigh("train", "gpt2", "--sequence", "64", "--snapshot", file)
    result = weigh("snapshot", file, *words)
    assert result.returncode == UsageError.exit_code
    assert said in result.stderr


def test_a_file_that_is_no_snapshot(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "x").write_text("hello")
    result = weigh("snapshot", tmp_path / "x")
    assert result.returncode == 3
    assert "no memory snapshot" in result.stderr
