"""Releases of llama.cpp whose source was read, by year and month; its builds have numbers and no versions.

Between them changed: which layers count first where not all are offloaded, the sizes of masks, fused activations, how
the cache is written, and what is put into the graph first.
"""

OLDEST, OLDER, MIDDLE, NEWER = (2025, 1), (2025, 8), (2026, 4), (2026, 6)
"""January 2025; 4227c9be, August 2025; April 2026, when Gemma 4 came; af6528e6d, later in 2026."""
