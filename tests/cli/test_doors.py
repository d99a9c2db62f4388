"""The command line's manners: help, exit codes, colour, pipes, files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

COMMANDS = ("params", "train", "generate", "serve", "rules", "scaling", "dtypes", "models", "devices", "validate")


def test_help_names_every_command(weigh) -> None:  # type: ignore[no-untyped-def]
    for words in ((), ("--help",)):
        result = weigh(*words)
        assert result.returncode == 0
        assert all(f"\n  {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(weigh, command: str) -> None:  # type: ignore[no-untyped-def]
    result = weigh(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: weigh {command}")
    assert "--json" in result.stdout


def test_every_option_of_a_recipe_is_explained(weigh) -> None:  # type: ignore[no-untyped-def]
    text = " ".join(weigh("train", "--help").stdout.split())
    assert "Sequences in a micro-batch on one device. Default: 1." in text
    assert "paged_adamw_8bit" in text


def test_version(weigh) -> None:  # type: ignore[no-untyped-def]
    assert weigh("--version").stdout.startswith("weigh 0.")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("train gpt2 --device h100", 0),
        ("train llama-3.1-405b --device h100", 1),
        ("generate llama-3-8b --device rtx-4090", 0),
        ("generate llama-2-70b --device rtx-4090 --json", 1),
        ("params llama-3.1-405b", 0),
    ],
)
def test_the_exit_code_says_whether_it_fits(weigh, words: str, code: int) -> None:  # type: ignore[no-untyped-def]
    assert weigh(*words.split()).returncode == code


def test_help_loads_next_to_nothing() -> None:
    code = "import sys; from weigh.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stderr.split())
    assert not loaded & {"argparse", "dataclasses", "json", "typing", "weigh.api", "weigh.dtypes"}


def test_an_answer_loads_no_more_than_it_needs() -> None:
    main = "import sys; from weigh.cli import main; main(['train', 'gpt2', '--json'])"
    code = f"{main}; print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stderr.split())
    assert not loaded & {"difflib", "gzip", "hashlib", "html", "shutil", "weigh.report.svg", "weigh.report.chart"}


def test_standard_input(weigh) -> None:  # type: ignore[no-untyped-def]
    config = {"model_type": "gpt2", "vocab_size": 10, "n_positions": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}
    answer = json.loads(weigh("params", "-", "--json", stdin=json.dumps(config)).stdout)
    assert answer["parameters"]["total"] == 10 * 8 + 4 * 8 + (12 * 8 * 8 + 13 * 8) + 2 * 8
    assert answer["model"]["name"] == "standard input"


def test_a_dict_as_a_word(weigh) -> None:  # type: ignore[no-untyped-def]
    sizes = "'vocab_size': 50257, 'context_length': 1024, 'emb_dim': 768, 'n_heads': 12, 'n_layers': 12"
    text = f"{{{sizes}, 'drop_rate': 0.1, 'qkv_bias': False}}"
    assert json.loads(weigh("params", text, "--json").stdout)["parameters"]["total"] == 163_009_536


def test_a_picture(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = weigh("generate", "gpt2", "--prompt", "16", "--svg", tmp_path / "x.svg")
    assert result.returncode == 0
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} -m weigh params llama-3.1-405b --tensors | head -n 1"
    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stderr == ""


def on_a_terminal(*words: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color", **environment}
    process = subprocess.Popen([sys.executable, "-m", "weigh", *words], stdout=theirs, env=env)
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:  # Linux says so when the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0
    return b"".join(chunks).decode()


def test_colour_on_a_terminal() -> None:
    assert "\x1b[38;5;" in on_a_terminal("train", "gpt2")


def test_no_colour_where_it_is_not_wanted(weigh) -> None:  # type: ignore[no-untyped-def]
    assert "\x1b" not in on_a_terminal("train", "gpt2", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("train", "gpt2", TERM="dumb")
    assert "\x1b" not in weigh("train", "gpt2").stdout


def test_output_that_cannot_take_every_letter(weigh) -> None:  # type: ignore[no-untyped-def]
    result = weigh("train", "gpt2", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "Training gpt2 takes" in result.stdout
