"""How fast `weigh serve` answers: CPU seconds of whole processes, and of a table over contexts, users and devices.

cold      CPU seconds (user + system) of `weigh serve MODEL --device h100`, beside the bare interpreter
cells     the same of `weigh serve` over 20 contexts x 20 numbers of users x 10 devices, memory and speed of each
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

from speed import cpu_seconds

MODELS = ("llama-3-8b", "gpt-oss-20b", "deepseek-v3")
ENGINES = ("vllm", "sglang", "llama.cpp")
DEVICES = "b200 h200 h100 a100-80gb a100-40gb l40s l4 rtx-4090 mi300x mi250x".split()
CONTEXTS, USERS = "400..8000+400", "1..96+5"


def words(model: str, engine: str) -> list[str]:
    """A table of 20 contexts x 20 numbers of users x 10 devices."""
    cells = ["--context", CONTEXTS, "--concurrency", USERS, "--device", ",".join(DEVICES)]
    return ["serve", model, "--runtime", engine, *cells]


def main() -> None:
    """Print every figure."""
    command = shutil.which("weigh", path=str(Path(sys.executable).parent)) or "weigh"
    bare, _ = cpu_seconds([sys.executable, "-c", "pass"])
    print(f"bare python                             {bare * 1e3:8.1f} ms CPU")
    for engine in ENGINES:
        for model in MODELS:
            cold, _ = cpu_seconds([command, "serve", model, "--runtime", engine, "--device", "h100"], times=5)
            name = f"weigh serve {model} --runtime {engine}"
            print(f"{name:50}{cold * 1e3:8.1f} ms CPU   {cold / bare:.2f} x bare   (100 ms)")
    with TemporaryDirectory() as folder:
        for engine in ENGINES:
            for model in MODELS[:2]:
                for form in ((), ("--json",), ("--csv", f"{folder}/x.csv"), ("--picture", f"{folder}/x.svg")):
                    took, _ = cpu_seconds([command, *words(model, engine), *form], times=3)
                    name = f"4,000 cells of {model} in {engine} {' '.join(form[:1]) or 'as text'}"
                    print(f"{name:50}{took * 1e3:8.1f} ms CPU   (1 s)")


if __name__ == "__main__":
    main()
