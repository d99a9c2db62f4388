"""Layers with a convolution and a scan (Mamba, Mamba 2), and those with a short convolution alone (LFM2).

Read: `src/models/mamba-base.cpp`, `lfm2.cpp` of llama.cpp af6528e6d (2026), `ggml_ssm_scan` of `ggml/src/ggml.c`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32
from weigh.runtimes.llama_cpp import ggml, states
from weigh.runtimes.llama_cpp.ggml import Tensor, row

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder


def mamba(to: Builder, x: Tensor, layer: int) -> Tensor:
    """`build_mamba_layer`: step, input and output of the scan come from what was convolved."""
    stem, tokens, sequences = f"blk.{layer}.", to.sizes.tokens, to.sizes.sequences
    before = _before(to, layer)
    x = ggml.reshape(x, x.ne[0], tokens, sequences)
    both = to.linear(x, f"{stem}ssm_in")
    half = both.ne[0] // 2, tokens, sequences
    x, z = (ggml.view(both, half, both.nb[1:3]) for _ in range(2))
    x = _convolved(to, before, x, layer)
    mixed = to.linear(x, f"{stem}ssm_x")
    rank, inner = to.required(f"{stem}ssm_dt.weight").ne[:2]
    state = (mixed.ne[0] - rank) // 2
    step = ggml.view(mixed, (rank, tokens, sequences), mixed.nb[1:3])
    sides = [ggml.view(mixed, (state, 1, tokens, sequences), (row(FLOAT32, state), *mixed.nb[1:3])) for _ in "BC"]
    if to.has(f"{stem}ssm_dt_norm.weight") or to.gguf.config.get("model_type") == "falcon_mamba":
        step = to.norm(step, f"{stem}ssm_dt_norm", layer)
        sides = [to.norm(side, f"{stem}ssm_{which}_norm", layer) for side, which in zip(sides, "bc", strict=True)]
    step = to.linear(step, f"{stem}ssm_dt")
    heads = ggml.reshape(x, 1, inner, tokens, sequences)
    out = _scanned(to, (heads, step, *sides), layer, (state, 1, inner))
    y = ggml.view(out, (inner, tokens, sequences), heads.nb[2:4])
    y = ggml.like("ADD", y, ggml.like("MUL", x, to.weight(f"{stem}ssm_d")))
    y = ggml.like("GLU", ggml.cont(z), y)
    return _tokens_of(to, to.linear(y, f"{stem}ssm_out"))


def mamba2(to: Builder, x: Tensor, layer: int) -> Tensor:
    """`build_mamba2_layer`: gate, input of the convolution and step come from one matrix."""
    stem, tokens, sequences = f"blk.{layer}.", to.sizes.tokens, to.sizes.sequences
    before = _before(to, layer)
    x = ggml.reshape(x, x.ne[0], tokens, sequences)
    mixed = to.linear(x, f"{stem}ssm_in")
    inner, channels = to.required(f"{stem}ssm_out.weight").ne[0], to.required(f"{stem}ssm_conv1d.weight").ne[1]
    heads = to.required(f"{stem}ssm_a").elements
    width, state = inner // heads, to.gguf.layers[layer].states[1].elements // inner
    groups = (channels - inner) // (2 * state)
    z = ggml.view(mixed, (width, heads, tokens, sequences), (row(FLOAT32, width), *mixed.nb[1:3]))
    x = ggml.view(mixed, (channels, tokens, sequences), mixed.nb[1:3])
    step = ggml.view(mixed, (heads, tokens, sequences), mixed.nb[1:3])
    made = _convolved(to, before, x, layer)
    x = ggml.view(made, (width, heads, tokens, sequences), (row(FLOAT32, width), *made.nb[1:3]))
    sides = [ggml.view(made, (state, groups, tokens, sequences), (row(FLOAT32, state), *made.nb[1:3])) for _ in "BC"]
    step = ggml.like("ADD", ggml.cont(step), to.weight(f"{stem}ssm_dt.bias"))
    out = _scanned(to, (x, step, *sides), layer, (state, width, heads))
    y = ggml.view(out, (width, heads, tokens, sequences))
    y = ggml.like("ADD", y, Tensor("MUL", x.ne, FLOAT32, (x, to.required(f"{stem}ssm_d"))))
    y = ggml.like("GLU", ggml.cont(z), y)
    if to.has(f"{stem}ssm_norm.weight"):
        y = to.norm(ggml.reshape(y, inner // groups, groups, tokens, sequences), f"{stem}ssm_norm", layer)
    y = ggml.reshape(y, inner, tokens, sequences)
    return _tokens_of(to, to.linear(y, f"{stem}ssm_out"))


def short_convolution(to: Builder, x: Tensor, layer: int) -> Tensor:
    """`build_shortconv_block`: a convolution between two gates."""
    stem, tokens, sequences = f"blk.{layer}.shortconv.", to.sizes.tokens, to.sizes.sequences
    x = ggml.reshape(x, x.ne[0], tokens, sequences)
    mixed = to.linear(x, f"{stem}in_proj")
    third = mixed.ne[0] // 3, tokens, sequences
    b, c, x = (ggml.view(mixed, third, mixed.nb[1:3]) for _ in range(3))
    new = ggml.transpose(Tensor("MUL", b.ne, FLOAT32, (b, x)))
    kernel = to.required(f"{stem}conv.weight")
    before = ggml.reshape(states.read(to, layer, 0), kernel.ne[0] - 1, kernel.ne[1], sequences)
    read = ggml.concat(before, new, 0)
    states.write(to, ggml.view(read, before.ne, read.nb[1:3]), layer, 0)
    out = Tensor("SSM_CONV", (*third, 1), FLOAT32, (read, kernel))
    y = Tensor("MUL", c.ne, FLOAT32, (c, out))
    return _tokens_of(to, to.linear(y, f"{stem}out_proj"))


def _before(to: Builder, layer: int) -> Tensor:
    kernel = to.required(f"blk.{layer}.ssm_conv1d.weight")
    return ggml.reshape(states.read(to, layer, 0), kernel.ne[0] - 1, kernel.ne[1], to.sizes.sequences)


def _convolved(to: Builder, before: Tensor, x: Tensor, layer: int) -> Tensor:
    """The convolution over what was before and what is new; its end is kept for the next tokens."""
    kernel = to.required(f"blk.{layer}.ssm_conv1d.weight")
    read = ggml.concat(before, ggml.transpose(x), 0)
    states.write(to, ggml.view(read, before.ne, read.nb[1:3]), layer, 0)
    out = Tensor("SSM_CONV", (kernel.ne[1], to.sizes.tokens, to.sizes.sequences, 1), FLOAT32, (read, kernel))
    return ggml.like("UNARY", ggml.like("ADD", out, to.weight(f"blk.{layer}.ssm_conv1d.bias")))


def _scanned(to: Builder, what: tuple[Tensor, ...], layer: int, sizes: tuple[int, int, int]) -> Tensor:
    """The scan's output and, behind it, the new states, which go back into their place."""
    x, step, b, c = what
    decay, sequences = to.required(f"blk.{layer}.ssm_a"), to.sizes.sequences

    def scan(all_states: Tensor, numbers: Tensor) -> Tensor:
        state = ggml.reshape(all_states, *sizes, sequences)
        many = x.elements + sizes[0] * sizes[1] * sizes[2] * sequences
        return Tensor("SSM_SCAN", (many, 1, 1, 1), FLOAT32, (state, x, step, decay, b, c, numbers))

    out = states.read(to, layer, 1, scan)
    states.write(to, ggml.view(out, (sizes[0] * sizes[1] * sizes[2] * sequences,)), layer, 1)
    return out


def _tokens_of(to: Builder, x: Tensor) -> Tensor:
    return ggml.reshape(x, x.ne[0], to.tokens)
