"""Layers that keep a state: gated delta nets (Qwen3-Next, Qwen3.5) and the attention with a gate beside them.

Read: `src/models/qwen35.cpp`, `qwen35moe.cpp`, `qwen3next.cpp`, `delta-net-base.cpp`, and `build_rs` of
`src/llama-graph.cpp`, of 2026. The delta net itself is one operation, as CUDA, Vulkan and Metal have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32
from weigh.runtimes.llama_cpp import attention, ggml, states
from weigh.runtimes.llama_cpp.ggml import Tensor

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder


def gated_attention(to: Builder, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> Tensor:
    """Queries and a gate of the output come from one matrix."""
    stem, kept = f"blk.{layer}.attn_", to.gguf.layers[layer]
    both, width = to.linear(x, f"{stem}q"), kept.key_width
    heads, pair = both.ne[0] // (2 * width), ggml.row(FLOAT32, 2 * width)
    if to.architecture == "qwen3next":
        both = ggml.reshape(both, 2 * width, heads, to.tokens)
    halves = [ggml.view(both, (width, heads, to.tokens), (pair, pair * heads)) for _ in range(2)]
    q = to.norm(halves[0], f"{stem}q_norm", layer)
    k, v = to.linear(x, f"{stem}k"), to.linear(x, f"{stem}v")
    k = to.norm(to.heads_of(k, width), f"{stem}k_norm", layer)
    gate = ggml.cont(halves[1], (width * heads, to.tokens))
    v = to.heads_of(v, kept.value_width)
    out = attention.attend(to, ggml.like("ROPE", q, *rope), ggml.like("ROPE", k, *rope), v, layer, None)
    gate = ggml.like("UNARY", gate)
    gate = ggml.reshape(gate, *gate.ne) if to.architecture == "qwen3next" else gate
    return to.linear(ggml.like("MUL", out, gate), f"{stem}output")


def delta_net(to: Builder, x: Tensor, layer: int) -> Tensor:
    """`build_layer_attn_linear`: a convolution, the delta rule over its state, a gated norm."""
    stem, sequences = f"blk.{layer}.", to.sizes.sequences
    tokens = to.tokens // sequences
    config = to.gguf.config
    keys, key = config["linear_num_key_heads"], config["linear_key_head_dim"]
    heads, width = config["linear_num_value_heads"], config["linear_value_head_dim"]
    to.graph.expand(x)
    mixed = to.linear(x, f"{stem}attn_qkv")
    mixed = ggml.reshape(mixed, mixed.ne[0], tokens, sequences)
    z = to.linear(x, f"{stem}attn_gate")
    beta, alpha = _rates(to, x, stem, (tokens, sequences, keys, heads))
    bias, decay = to.weight(f"{stem}ssm_dt.bias"), to.weight(f"{stem}ssm_a")
    gate = ggml.like("MUL", ggml.like("UNARY", ggml.like("ADD", alpha, bias)), decay)
    gate = ggml.reshape(gate, 1, heads, tokens, sequences)
    kernel = to.weight(f"{stem}ssm_conv1d.weight")
    assert kernel is not None
    kept, channels = kernel.ne[0] - 1, kernel.ne[1]
    before = ggml.reshape(states.read(to, layer, 0), kept, channels, sequences)
    read = ggml.concat(before, ggml.transpose(mixed), 0)
    last = ggml.view(read, (kept, channels, sequences), read.nb[1:3])
    states.write(to, last, layer, 0)
    state = ggml.reshape(states.read(to, layer, 1), width, width, heads, sequences)
    if to.architecture == "qwen3next":
        state = ggml.reshape(state, *state.ne)
    made = Tensor("SSM_CONV", (channels, tokens, sequences, 1), FLOAT32, (read, kernel))
    made = ggml.like("UNARY", made)
    wide = ggml.row(FLOAT32, 2 * key * keys + width * heads)

    def part(size: int, count: int) -> Tensor:
        nb = ggml.row(FLOAT32, size), wide, wide * tokens
        return ggml.view(made, (size, count, tokens, sequences), nb)

    q, k, v = part(key, keys), part(key, keys), part(width, heads)
    q, k = (_for_values(ggml.like("L2_NORM", one), to, heads) for one in (q, k))
    rows = tokens * sequences + width * sequences
    out = Tensor("GATED_DELTA_NET", (width * heads, rows, 1, 1), FLOAT32, (q, k, v, gate, beta, state))
    answer = ggml.view(out, (width, heads, tokens, sequences))
    new = ggml.view(out, (width, width, heads, sequences))
    states.write(to, new, layer, 1)
    z = ggml.reshape(z, width, heads, tokens, sequences)
    normed = to.norm(answer, f"{stem}ssm_norm", layer)
    normed = ggml.like("MUL", normed, ggml.like("UNARY", z))
    out = to.linear(ggml.reshape(normed, width * heads, tokens, sequences), f"{stem}ssm_out")
    return ggml.reshape(out, out.ne[0], to.tokens)


def _for_values(x: Tensor, to: Builder, heads: int) -> Tensor:
    """Queries or keys as often as there are heads of values; Qwen3-Next only, though the operation would do it."""
    width, own, tokens, sequences = x.ne
    if to.architecture != "qwen3next" or own == heads:
        return x
    apart = ggml.reshape(x, width, 1, own, tokens * sequences)
    often = ggml.repeat(apart, width, heads // own, own, tokens * sequences)
    return ggml.reshape(often, width, heads, tokens, sequences)


def _rates(to: Builder, x: Tensor, stem: str, sizes: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """How much is written and how much is kept."""
    tokens, sequences, keys, heads = sizes
    if to.has(f"{stem}ssm_ba.weight"):
        each = heads // keys
        both = ggml.reshape(to.linear(x, f"{stem}ssm_ba"), 2 * each, keys, tokens, sequences)
        beta, alpha = (ggml.view(both, (each, keys, tokens, sequences), both.nb[1:]) for _ in range(2))
        beta = ggml.reshape(ggml.like("UNARY", ggml.cont(beta)), 1, heads, tokens, sequences)
        return beta, ggml.cont(alpha, (heads, tokens, sequences))
    beta = ggml.reshape(to.linear(x, f"{stem}ssm_beta"), 1, heads, tokens, sequences)
    beta = ggml.like("UNARY", beta)
    return beta, ggml.reshape(to.linear(x, f"{stem}ssm_alpha"), heads, tokens, sequences)
