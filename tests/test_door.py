"""Importing `weigh` loads nothing heavy, whatever is installed."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("ml_dtypes", "numpy", "peft", "rich", "torch", "transformers", "yaml")
BESIDE = ("weigh.hooks", "weigh.lab.real", "weigh.measure", "weigh.quant")
"""Imported inside commands only: they may need torch or numpy."""

LOADED = """
import json, sys
print(json.dumps([name for name in {heavy!r} if name in sys.modules]))
"""
IMPORT_EVERYTHING = f"""
import importlib, pkgutil, weigh

def walk(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name not in {BESIDE!r} and not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            if found.ispkg:
                walk(module)

walk(weigh)
"""


def heavy_modules_after(code: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """The heavy modules that a fresh interpreter has loaded after running `code`, away from the current folder."""
    command = [sys.executable, "-I", "-c", code + LOADED.format(heavy=heavy)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    loaded: list[str] = json.loads(result.stdout.splitlines()[-1])
    return loaded


def test_importing_weigh_loads_nothing_heavy() -> None:
    assert heavy_modules_after("import weigh") == []


def test_importing_every_floor_loads_nothing_heavy() -> None:
    assert heavy_modules_after(IMPORT_EVERYTHING) == []


def test_the_core_of_the_command_line_loads_nothing_heavy() -> None:
    assert heavy_modules_after("from weigh.cli import main; main(['params', 'gpt2'])") == []
    assert heavy_modules_after("import weigh.quant; from weigh.cli import main; main(['errors', '--help'])") == []


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "heavyweight.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import weigh, heavyweight"
    assert heavy_modules_after(code, (*HEAVY, "heavyweight")) == ["heavyweight"]


def test_every_name_of_the_package_is_there() -> None:
    import weigh

    assert all(getattr(weigh, name) is not None for name in weigh.__all__)
