"""Every command that the documentation shows runs, and exits as it says.

A command is a line that starts with `$ weigh` in a code block marked ```console; `# exit N` behind it names another
exit code than 0. Every `make TARGET` that the documentation mentions exists.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))) if page.exists()
]


JOBS = {
    "axolotl.yaml": "axolotl-fft-8b.yaml",
    "accelerate.yaml": "accelerate-fsdp2.yaml",
    "sft_config.yaml": "trl-zephyr-sft.yaml",
}
"""Files of a reader's own that pages name, and those of `tests/data/jobs` that stand for them."""


def write_model(folder: Path) -> None:
    """A checkpoint of a reader's own, small and all zeros."""
    making = runpy.run_path(str(ROOT / "tests/sources/making.py"))
    config = {**making["CONFIG"], "hidden_size": 128, "intermediate_size": 256}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(making["safetensors"](making["llama_tensors"](config)))


def commands(markdown: str) -> list[tuple[str, int]]:
    """The commands of a page's console blocks, each with its exit code; a trailing backslash continues a line."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^\$ (weigh\b.*)$", block.replace("\\\n", " "), flags=re.MULTILINE):
            code = re.search(r"# exit (\d+)\s*$", line)
            found.append((line, int(code[1]) if code else 0))
    return found


def make_targets(markdown: str) -> set[str]:
    """The targets that a page names, as `make TARGET` in a code span or after a dollar sign."""
    return set(re.findall(r"(?:`|^\$ )make ([a-z][a-z-]*)", markdown, flags=re.MULTILINE))


SHOWN = [
    pytest.param(command, code, id=f"{page.name}: {command}")
    for page in PAGES
    for command, code in commands(page.read_text())
]


def test_the_documentation_shows_commands() -> None:
    assert SHOWN


@pytest.mark.parametrize(("command", "code"), SHOWN)
def test_documented_commands_run(command: str, code: int, tmp_path: Path) -> None:
    for name, example in JOBS.items():
        (tmp_path / name).write_bytes((ROOT / "tests/data/jobs" / example).read_bytes())
    write_model(tmp_path / "model")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the weigh installed beside this Python
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == code, result.stderr or result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert make_targets(page.read_text()) <= set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


def test_commands_are_found() -> None:
    console = "```console\n$ weigh a | cat\noutput\n$ weigh b \\\n    --c  # exit 1\n$ ls\n```\n"
    page = f"Text\n{console}```sh\n$ weigh no\n```\n"
    assert commands(page) == [("weigh a | cat", 0), ("weigh b      --c  # exit 1", 1)]
    assert make_targets("Run `make check`.\n$ make test-torch\nmake sense") == {"check", "test-torch"}
