"""How many kernels a step of an engine starts: what its time besides bytes and arithmetic grows with.

Counted block by block from the parameters, as vLLM's models run them (`model_executor/models/llama.py`, `qwen3_moe.py`,
`deepseek_v2.py`, `layers/fused_moe/fused_moe.py`; SGLang took them over): products that read the same input are one, a
residual is added in its norm. Engines that fuse more or less of this do so for all models alike, which their time a
kernel takes up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weigh.ghost.nn import Parameter

TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
)
"""Products of one input, which engines make one of."""

MIXING = 3
"""Of a block's mixer beside its products: rotation, writing keys and values, attention (or convolution and scan)."""
ABSORBED = "kv_b_proj"
"""Of latent attention: a product with queries and one with what they find, in place of one with all that is kept."""
ROUTING = 7
"""Of experts beside the router: the choice of experts, sorting tokens by them in two, two products, the activation
between them, the sum over a token's experts."""
SHARED = "shared"
"""In the names of experts that every token goes through: their sum with the others is one more."""
ENDS = 3
"""Of a step outside of its blocks: the embedding, the last norm, the head."""


def launches(parameters: Iterable[Parameter]) -> int:
    """Kernels of a step.

    >>> from weigh import api
    >>> [launches(api.ghost(api.model(name)).parameters()) for name in ("llama-3-8b", "mixtral-8x7b")]
    [323, 483]
    """
    blocks: dict[tuple[object, range], set[str]] = {}
    for parameter in parameters:
        is_matrix, is_routed = len(parameter.tensor.shape) >= 2, parameter.active_share < 1
        if parameter.blocks is not None:
            stack, alike, way = parameter.blocks
            kernels = blocks.setdefault((stack, alike), set())
            kernels.update(_of_module(".".join(map(str, way[:-1])), is_matrix, is_routed))
    return ENDS + sum(len(alike) * _of_block(kernels) for (_, alike), kernels in blocks.items())


def _of_module(module: str, is_matrix: bool, is_routed: bool) -> Iterable[str]:
    """The kernels that a module of a block runs, by names of their own."""
    parent, _, leaf = module.rpartition(".")
    if is_routed:
        yield "routing"
    elif is_matrix:
        yield f"{parent}.{next((group[0] for group in TOGETHER if leaf in group), leaf)}"
        if leaf == ABSORBED:
            yield f"{parent}.{leaf}, with what queries find"
    elif "norm" in leaf or "ln" in leaf:
        yield module


def _of_block(kernels: set[str]) -> int:
    routed, shared = "routing" in kernels, any(SHARED in name for name in kernels)
    activations = shared or not routed
    return len(kernels) + MIXING + activations + (ROUTING - 1 if routed else 0) + shared
