"""How fast quantizers are: GB of input (of dequantization: of fp32 output) per CPU-second, one thread, beside peers.

128 MiB of normal fp32 numbers are handled in pieces of 4 MiB, as checkpoints are, then in one piece, whose results are
memory that nobody has touched yet; by everybody alike. The plain copy is of the whole, from memory to memory that was
touched. Rounds are interleaved, and the best of each counts. Read the last column: the share of the copy of the same
run. Peers that are not installed are named. With weigh-kernels installed, the exit code says whether the shares in
pieces are those that the project asks for.

    python benchmarks/quantizers.py [ROUNDS]
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["WEIGH_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402  after the number of threads is set

from weigh import quant  # noqa: E402
from weigh.quant import kernels  # noqa: E402

COUNT, PIECE, FEW = 1 << 25, 1 << 20, 1 << 20
PACKAGE = kernels.loaded()
WANTED = {
    "int8, blocks of 64": 0.6,
    "NF4": 0.22,
    "dynamic 8-bit": 0.15,
    "int8, blocks of 64, back": 0.6,
    "NF4, back": 0.6,
    "dynamic 8-bit, back": 0.6,
}
"""The share of the copy that weigh-kernels is to reach."""
OURS = {"int8, blocks of 64": "absmax_block", "NF4": "nf4", "dynamic 8-bit": "dynamic", "Q8_0": "q8_0", "Q4_0": "q4_0"}


@dataclass
class Row:
    """One thing that is measured."""

    method: str
    by: str
    call: Callable[[], object]
    values: int = COUNT
    seconds: float = float("inf")

    def measure(self) -> None:
        start = time.process_time()
        self.call()
        self.seconds = min(self.seconds, time.process_time() - start)

    @property
    def speed(self) -> float:
        """GB of fp32 per CPU-second."""
        return self.values * 4e-9 / self.seconds


def in_pieces(call: Callable[[Any], object], pieces: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for piece in pieces:
            call(piece)

    return run


def ours(values: list[Any]) -> list[Row]:
    rows = []
    for method, name in OURS.items():
        quantizer = quant.get(name)
        packed = [quantizer.quantize(piece) for piece in values]
        for by, loaded in (("weigh, numpy", None), ("weigh, kernels", PACKAGE)):
            if by == "weigh, kernels" and (loaded is None or method not in WANTED):
                continue

            def with_kernels(run: Callable[[], None], loaded: Any = loaded) -> Callable[[], None]:
                def patched() -> None:
                    kernels.loaded = lambda: loaded  # type: ignore[assignment]
                    run()

                return patched

            rows.append(Row(method, by, with_kernels(in_pieces(quantizer.quantize, values))))
            rows.append(Row(f"{method}, back", by, with_kernels(in_pieces(quantizer.dequantize, packed))))
    return rows


def bitsandbytes_rows(values: list[Any]) -> list[Row]:
    import torch
    from bitsandbytes import functional as F  # noqa: N812

    tensors = [torch.from_numpy(piece) for piece in values]
    nf4 = [F.quantize_4bit(t, quant_type="nf4") for t in tensors]
    dynamic = [F.quantize_blockwise(t, blocksize=256) for t in tensors]
    rows = [t.view(-1, 4096) for t in tensors]
    int8 = [F.int8_vectorwise_quant(t)[:2] for t in rows]
    by = "bitsandbytes"
    return [
        Row("NF4", by, in_pieces(lambda t: F.quantize_4bit(t, quant_type="nf4"), tensors)),
        Row("NF4, back", by, in_pieces(lambda q: F.dequantize_4bit(*q), nf4)),
        Row("dynamic 8-bit", f"{by} (a table, not the nearest)", in_pieces(_blockwise(F), tensors)),
        Row("dynamic 8-bit, back", by, in_pieces(lambda q: F.dequantize_blockwise(*q), dynamic)),
        Row("int8, blocks of 64", f"{by} (a scale a row)", in_pieces(F.int8_vectorwise_quant, rows)),
        Row(
            "int8, blocks of 64, back",
            f"{by} (a scale a row)",
            in_pieces(lambda q: F.int8_vectorwise_dequant(*q), int8),
        ),
    ]


def _blockwise(functional: Any) -> Callable[[Any], object]:
    return lambda t: functional.quantize_blockwise(t, blocksize=256)


def torchao_rows(values: list[Any]) -> list[Row]:
    import torch
    from torchao.optim.quant_utils import create_dynamic_map, quantize_8bit_with_qmap, scale_tensor
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    tensors = [torch.from_numpy(piece).view(-1, 64) for piece in values]
    table = torch.tensor(create_dynamic_map(True), dtype=torch.float32)

    def affine(t: Any) -> Any:
        scale, zero = choose_qparams_affine(t, MappingType.SYMMETRIC, (1, 64), torch.int8)
        return quantize_affine(t, (1, 64), scale, zero, torch.int8), scale, zero

    def back(q: Any) -> Any:
        return dequantize_affine(q[0], (1, 64), q[1], q[2], torch.int8)

    def dynamic(t: Any) -> Any:
        return quantize_8bit_with_qmap(scale_tensor(t, 256)[0], table)

    int8 = [affine(t) for t in tensors]
    return [
        Row("int8, blocks of 64", "torchao", in_pieces(affine, tensors)),
        Row("int8, blocks of 64, back", "torchao", in_pieces(back, int8)),
        Row("dynamic 8-bit", "torchao", in_pieces(dynamic, [tensors[0].flatten()[:FEW]]), FEW),
    ]


def gguf_rows(values: list[Any]) -> list[Row]:
    import gguf

    rows = []
    for name, kind in (("Q8_0", gguf.GGMLQuantizationType.Q8_0), ("Q4_0", gguf.GGMLQuantizationType.Q4_0)):
        packed = [gguf.quantize(piece, kind) for piece in values]
        rows.append(Row(name, "gguf", in_pieces(lambda x, k=kind: gguf.quantize(x, k), values)))
        rows.append(Row(f"{name}, back", "gguf", in_pieces(lambda x, k=kind: gguf.dequantize(x, k), packed)))
    return rows


def main() -> int:
    """Measure and print."""
    numbers = np.random.default_rng(0).standard_normal(COUNT, np.float32) * np.float32(0.02)
    print("In pieces of 4 MiB:")
    below = measure(numbers, PIECE)
    print("\nIn one piece of 128 MiB:")
    measure(numbers, COUNT)
    for line in below:
        print(line, file=sys.stderr)
    return 1 if below else 0


def measure(numbers: Any, piece: int) -> list[str]:
    values = [numbers[start : start + piece] for start in range(0, COUNT, piece)]
    out = np.empty_like(numbers)
    copy = Row("", "plain copy", lambda: np.copyto(out, numbers))
    rows = [copy, *ours(values)]
    absent = [] if PACKAGE is not None else ["weigh-kernels"]
    for name, made in (("bitsandbytes", bitsandbytes_rows), ("torchao", torchao_rows), ("gguf", gguf_rows)):
        try:
            rows += made(values)
        except ImportError:
            absent.append(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 7):
        for row in rows:
            if row.seconds == float("inf") or row.seconds < 1:
                row.measure()
    return report(rows, copy, absent)


def report(rows: list[Row], copy: Row, absent: list[str]) -> list[str]:
    print(f"plain copy of fp32: {copy.speed:.2f} GB per CPU-second\n")
    below = []
    for method in dict.fromkeys(r.method for r in rows[1:]):
        for row in sorted((r for r in rows if r.method == method), key=lambda r: r.seconds / r.values):
            share = row.speed / copy.speed
            wanted = WANTED.get(method) if row.by == "weigh, kernels" else None
            asked = "" if wanted is None else f"  (asked for: {wanted})"
            print(f"{method:26}{row.by:42}{row.speed:8.3f} GB/s{share:8.3f}{asked}")
            if wanted is not None and share < wanted:
                below.append(f"{method}: {share:.3f} of the copy, {wanted} was asked for")
    if absent:
        print(f"\nnot installed: {', '.join(absent)}")
    return below


if __name__ == "__main__":
    raise SystemExit(main())
