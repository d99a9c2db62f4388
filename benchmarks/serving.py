"""How fast `weigh serve` answers: CPU seconds of whole processes, and of a table over contexts, users and devices.

cold      CPU seconds (user + system) of `weigh serve MODEL --device h100`, beside the bare interpreter
table     20 contexts x 20 numbers of users x 10 devices of one model in a warm process
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from speed import cpu_seconds, median_cpu

import weigh
from weigh.report.serving import table_of

MODELS = ("llama-3-8b", "gpt-oss-20b", "deepseek-v3")
ENGINES = ("vllm", "sglang", "llama.cpp")
DEVICES = "b200 h200 h100 a100-80gb a100-40gb l40s l4 rtx-4090 mi300x mi250x".split()
CONTEXTS = tuple(range(400, 8001, 400))
USERS = tuple(range(1, 100, 5))


def table() -> int:
    """How many cells fit."""
    fits = 0
    for device in DEVICES:
        launch = weigh.serve("llama-3-8b", device).launch
        found = table_of(launch, CONTEXTS, USERS)
        fits += sum(need <= (found.supply or 0) for row in found.demand for need in row)
    return fits


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
    seconds = median_cpu(table, times=5)
    cells = len(CONTEXTS) * len(USERS) * len(DEVICES)
    print(f"a table of {cells:,} cells                    {seconds * 1e3:8.1f} ms CPU   (1 s)")


if __name__ == "__main__":
    main()
