"""How fast weigh answers: medians of one run, beside the bare interpreter and, where it can answer, a peer.

    cold      CPU seconds (user + system) and peak memory of a whole `weigh train gpt2 --json` process
    step      one steady training step of Llama-2-7B in a warm process, with purposes, paths and FLOPs
    depth     the same step at 126 layers against 4 of the same width
    stages    Llama 405B on 4,096 GPUs with Megatron-LM: a steady step of all 16 pipeline stages
    sweep     a million (batch, sequence) settings of GPT-2 in one run: peaks of every phase

The machine's speed drifts, so read the ratios; the budgets beside the figures are those of the project's plan.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weigh import dtypes, runtimes
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.peak import breakdown, phase_peaks

LLAMA_2_7B = {"model_type": "llama"}
"""LlamaConfig's defaults are Llama-2-7B."""


LLAMA_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 53248,
    "vocab_size": 128256,
}


def cpu_seconds(command: list[str], times: int = 9) -> tuple[float, float]:
    """Median CPU seconds of a whole process, and the largest resident size in MiB."""
    seconds = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    probe = (
        "import resource,subprocess,sys;"
        "subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    resident = subprocess.run([sys.executable, "-c", probe, *command], capture_output=True, text=True, check=True)
    return statistics.median(seconds), int(resident.stdout) / 1024


def median_cpu(function: Callable[[], object], times: int = 21) -> float:
    """Median CPU seconds of a call, after three to warm up."""
    for _ in range(3):
        function()
    seconds = []
    for _ in range(times):
        before = time.process_time()
        function()
        seconds.append(time.process_time() - before)
    return statistics.median(seconds)


def step(layers: int) -> object:
    """Weigh one steady step of a Llama as wide as 7B: peaks of every phase, and who owns the highest."""
    recipe = Training(batch=4, sequence=2048, dtype=dtypes.BFLOAT16, steps=1, warm=True)
    made = run(LLAMA_2_7B | {"num_hidden_layers": layers}, recipe)
    highest = max(phase_peaks(made.trace), key=lambda p: p.peak)
    assert highest.moment is not None
    return breakdown(made.trace, highest.moment, lambda a: (a.purpose, a.path))


def stages() -> object:
    """Each distinct rank of Llama 405B on 4,096 GPUs: 8 tensor x 16 pipeline x 2 context x 16 that share states."""
    program = runtimes.get("megatron")
    words: dict[str, Any] = {
        "batch": 1,
        "sequence": 8192,
        "accumulation": 32,
        "checkpointing": "selective",
        "nodes": 512,
        "gpus_per_node": 8,
        "tensor": 8,
        "sequence_parallel": True,
        "pipeline": 16,
        "context": 2,
        "shard": "distributed_optimizer",
        "pipeline_layout": f"Et*7|{'t*8|' * 14}t*7L",
    }
    recipe = make(Training, program.settings(words, LLAMA_405B, None))
    return program.loop.stages(LLAMA_405B, recipe, "config")


def sweep() -> object:
    """A thousand batch sizes by a thousand lengths, every phase's peak."""
    import numpy as np

    from weigh.recipes.sweep import sweep as run_sweep

    batch, sequence = np.meshgrid(np.arange(1, 1001), np.arange(1, 1001), indexing="ij")
    return run_sweep({"model_type": "gpt2"}, Training(), batch=batch.ravel(), sequence=sequence.ravel())


def main() -> None:
    """Print every figure."""
    weigh = shutil.which("weigh", path=str(Path(sys.executable).parent)) or "weigh"
    bare, bare_mib = cpu_seconds([sys.executable, "-c", "pass"])
    cold, cold_mib = cpu_seconds([weigh, "train", "gpt2", "--json"])
    print(f"bare python            {bare * 1e3:8.1f} ms CPU   {bare_mib:6.1f} MiB")
    print(
        f"weigh train gpt2 --json{cold * 1e3:8.1f} ms CPU   {cold_mib:6.1f} MiB   {cold / bare:.2f} x bare"
        "   (100 ms, 25 MB)"
    )
    accelerate = shutil.which("accelerate")
    if accelerate:
        peer, peer_mib = cpu_seconds([accelerate, "estimate-memory", "gpt2"], times=3)
        print(f"accelerate estimate    {peer * 1e3:8.1f} ms CPU   {peer_mib:6.1f} MiB   {peer / cold:.1f} x weigh")
    else:
        print("accelerate estimate           not installed here")
    deep, shallow = median_cpu(lambda: step(126)), median_cpu(lambda: step(4))
    print(f"step of Llama-2-7B     {median_cpu(lambda: step(32)) * 1e3:8.1f} ms CPU   (10 ms)")
    print(f"126 layers / 4 layers  {deep / shallow:8.2f} x        (1.2 x)")
    print(f"405B on 4,096 GPUs     {median_cpu(stages) * 1e3:8.1f} ms CPU   (100 ms)")
    print(f"sweep of 1,000,000     {median_cpu(sweep, times=3) * 1e3:8.1f} ms CPU   (2000 ms)")


if __name__ == "__main__":
    main()
