"""llama.cpp: what it puts on which device as it starts, and how large its compute buffers are.

`names.py` and `mixes.py` of `weigh.formats.gguf` say which tensors there are; here `placement.py` puts them into
buffers, `graphs.py` writes the graph of a ubatch, `scheduler.py` divides it among back ends and `allocator.py` lays it
out, each after GGML's own rules. `caches.py` has the caches, of ik_llama.cpp too. What a device's driver takes for
itself (CUDA's context and libraries) is not llama.cpp's and is left out.
"""

from __future__ import annotations

from weigh.runtimes.llama_cpp.caches import Cache, cache_bytes, layout
from weigh.runtimes.llama_cpp.compute import compute_buffers, output_buffer
from weigh.runtimes.llama_cpp.engine import ENGINE
from weigh.runtimes.llama_cpp.placement import CPU, REPACK, Gguf, How, Placement, gguf_of

__all__ = [
    "CPU",
    "ENGINE",
    "REPACK",
    "Cache",
    "Gguf",
    "How",
    "Placement",
    "cache_bytes",
    "compute_buffers",
    "gguf_of",
    "layout",
    "output_buffer",
]
