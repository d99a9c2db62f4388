"""A large checkpoint quantized in little memory, killed and resumed: what `docs/checkpoints.md` reports.

    python tools/large_checkpoint.py --folder /roomy/new   12 GB, a tensor of 3 GiB, --memory 1GiB, 20 kills
    python tools/large_checkpoint.py --folder /tmp/new --size 50MB --largest 8MiB --kills 3

Makes a sharded checkpoint of bf16 numbers, quantizes it, and prints the peak of resident memory of all processes
together (the peak of each, summed) beside the budget. Then it starts again and again, kills the process group with
SIGKILL at random moments, lets the last run finish, and compares every byte. What was made is removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from weigh.units import format_bytes, parse_bytes

WIDTH = 4096


def make(folder: Path, size: int, largest: int, shard: int) -> None:
    """A checkpoint of about `size` bytes in files of at most `shard` bytes, one of its tensors of `largest` bytes."""
    folder.mkdir(parents=True)
    rows = largest // (2 * WIDTH)
    shapes = {"model.big.weight": (rows, WIDTH), "model.embed_tokens.weight": (rows // 16, WIDTH)}
    layer, left = 0, size - largest - largest // 16
    while left > 0:
        for name, height in (("up_proj", rows // 24), ("down_proj", rows // 48 + 1), ("input_layernorm", 0)):
            shape = (height, WIDTH) if height else (WIDTH,)
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            left -= 2 * WIDTH * max(height, 1)
        layer += 1
    values = np.random.default_rng(0).normal(0, 0.02, 8 << 20).astype(ml_dtypes.bfloat16).tobytes()
    files: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard
    for name, shape in shapes.items():
        needed = 2 * int(np.prod(shape))
        if files[-1] and needed > room:
            files.append({})
            room = shard
        files[-1][name] = shape
        room -= needed
    placed = {}
    for number, tensors in enumerate(files, 1):
        name, header, at = f"model-{number:05}-of-{len(files):05}.safetensors", {}, 0
        for tensor, shape in tensors.items():
            end = at + 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            placed[tensor] = name
            at = end
        raw = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            while at > 0:  # another piece of the same numbers every time
                start = 2 * random.randrange(1 << 20)
                file.write(values[start : start + min(at, len(values) // 2)])
                at -= min(at, len(values) // 2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text('{"model_type": "of nobody", "dtype": "bfloat16"}')


def command(source: Path, out: Path, memory: str, to: str, workers: int) -> list[str]:
    """What is run."""
    given = [str(source), "--to", *to.split(), "--out", str(out), "--memory", memory, "--workers", str(workers)]
    return [sys.executable, "-m", "weigh", "quantize", *given]


def peaks(group: int) -> dict[int, int]:
    """The peak of resident memory of every process of a group, by its id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    lines = (entry / "status").read_text().splitlines()
                    found[int(entry.name)] = next(int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM"))
            except (OSError, StopIteration):
                continue
    return found


def run(words: list[str]) -> tuple[float, int]:
    """Run it to its end; seconds, and the peaks of all its processes, summed."""
    started, seen = time.monotonic(), {}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        seen.update(peaks(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} exits with {process.returncode}")
    return time.monotonic() - started, sum(seen.values())


def killed(words: list[str], seconds: float) -> bool:
    """Start it, and kill it after so long; whether it was still at work."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def main() -> None:
    """Make, measure, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", default="12GB")
    parser.add_argument("--largest", default="3GiB")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--to", default="nf4 --double-quantization")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    found = parser.parse_args()
    random.seed(0)
    source, whole, resumed = (found.folder / name for name in ("source", "whole", "resumed"))
    try:
        size, largest = parse_bytes(found.size), parse_bytes(found.largest)
        make(source, size, largest, max(size // 5, 1))
        total = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        count = len(list(source.glob("*.safetensors")))
        print(f"made       {total:,} bytes in {count} files, the largest tensor of {format_bytes(largest)}", flush=True)
        seconds, peak = run(command(source, whole, found.memory, found.to, found.workers))
        budget = parse_bytes(found.memory)
        print(f"took       {seconds:.0f} s, {total / 1e9 / seconds:.2f} GB/s, {found.workers} processes")
        print(f"resident   {format_bytes(peak)} at most, of {format_bytes(budget)}", flush=True)
        expected = digest(whole)
        shutil.rmtree(whole)
        words = command(source, resumed, found.memory, found.to, found.workers)
        kills, tries = 0, 0
        while kills < found.kills and not resumed.exists():
            tries += 1
            kills += killed(words, random.uniform(0.3, 2 + seconds / 4))
        if not resumed.exists():
            run(words)
        print(f"killed     {kills} times in {tries} runs; then finished", flush=True)
        same = digest(resumed) == expected
        print(f"identical  {same}: {len(expected)} files, {sum(p.stat().st_size for p in resumed.iterdir()):,} bytes")
        if not same or peak > budget + 100 * 10**6:
            raise SystemExit(1)
    finally:
        shutil.rmtree(found.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
