"""Writes the points of GGML's grids (ggml-common.h, as gguf-py has them) into the package: needs gguf and numpy."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

PATH = Path(__file__).parents[1] / "src" / "weigh" / "quant" / "ggml" / "grids.npz"
NAMES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")


def main() -> None:
    """Write them."""
    grids = {}
    for name in NAMES:
        kind = getattr(gguf.quants, name)
        kind.init_grid()
        grids[name.lower()] = kind.grid.reshape(kind.grid_shape).astype(np.int8)
    np.savez_compressed(PATH, **grids)
    print(f"{PATH.name}: {PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
