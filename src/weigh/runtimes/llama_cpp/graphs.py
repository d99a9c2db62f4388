"""llama.cpp's graphs: the operations of one ubatch, in the order in which llama.cpp adds them.

Read: `src/llama-graph.cpp`, `src/llama-kv-cache.cpp` and `src/models/*.cpp` of the releases in `releases.py`
(`src/llama.cpp` in the oldest). What a layer does follows mostly from the tensors that it has; what does not is in
`STYLES`. Operations that always write over their operand and change nothing else (scaling queries) are left out where
no size depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import INT32
from weigh.errors import NotModelledError
from weigh.models.layout import NOTHING, RECURRENT
from weigh.runtimes.llama_cpp import attention, gemma3n, gemma4, ggml, hybrid, mamba, mlp, per_layer
from weigh.runtimes.llama_cpp.builder import Builder
from weigh.runtimes.llama_cpp.ggml import Graph, Tensor
from weigh.runtimes.llama_cpp.releases import NEWER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.runtimes.llama_cpp.batch import Sizes
    from weigh.runtimes.llama_cpp.placement import Placement


def build(placed: Placement, sizes: Sizes, layers: Sequence[int]) -> Graph:
    """The graph of a batch, from tokens to logits, with the layers that are named.

    Raises:
        NotModelledError: the architecture's graph is not described.
    """
    to = Builder(placed, sizes)
    x = to.embed()
    positions = ggml.given((to.tokens * to.gguf.positions_per_token,), INT32)
    if to.has("position_embd.weight"):
        table = to.weight("position_embd.weight")
        assert table is not None
        x = ggml.like("ADD", x, ggml.get_rows(table, positions))
    if to.architecture == "gemma3n":
        to.once("inputs of layers", lambda: per_layer.inputs(to, x))
        x = gemma3n.streams(to, x)
    to.graph.outputs.append(x)
    outputs = ggml.given((to.tokens,), INT32)
    for layer in layers:
        wanted = outputs if layer == len(to.gguf.layers) - 1 and not _hands_hidden_on(to) else None
        x = _layer(to, x, layer, (positions, to.rope_factors(layer)), wanted)
        to.graph.outputs.append(x)
    if to.architecture == "gemma3n":
        x = ggml.get_rows(gemma3n.merged(to, x), outputs)
    if _hands_hidden_on(to):
        x.is_output = True
        x = ggml.get_rows(x, outputs)
    x = to.norm(x, "output_norm")
    x = ggml.mul_mat(to.output_matrix(), x)
    bias = to.weight("output.bias")
    if bias is not None:
        x = ggml.like("ADD", x, bias)
    caps = 0 if to.architecture == "gemma4" and not to.gguf.config.get("final_logit_softcapping") else None
    for _ in range(to.style.caps_logits if caps is None else caps):
        x = ggml.like("SCALE", x)
    to.graph.expand(x)
    to.graph.number_layers()
    return to.graph


def _hands_hidden_on(to: Builder) -> bool:
    """The last hidden state of every token is kept for layers that predict further ones."""
    return to.release >= NEWER and to.architecture in ("qwen35", "qwen35moe")


def _layer(to: Builder, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None], wanted: Tensor | None) -> Tensor:
    """One block; the last one keeps the tokens whose logits are wanted."""
    style = to.style
    if style.parallel and to.gguf.config.get("use_parallel_residual") is not False:
        return _parallel(to, x, layer, rope, wanted)
    if to.architecture == "gemma4":
        return gemma4.layer(to, x, layer, rope, wanted)
    if to.architecture == "gemma3n":
        return gemma3n.layer(to, x, layer, rope)
    before = x
    cur = _mixed(to, x if style.norm_on_output else to.norm(x, f"blk.{layer}.attn_norm", layer), layer, rope)
    if wanted is not None:
        cur, before = ggml.get_rows(cur, wanted), ggml.get_rows(before, wanted)
    if style.is_one:
        return ggml.like("ADD", cur, before)
    post = f"blk.{layer}.post_attention_norm"
    has_ffn_norm = to.has(f"blk.{layer}.ffn_norm.weight")
    if to.has(f"{post}.weight") and (has_ffn_norm or style.norm_on_output):
        cur = to.norm(cur, post, layer)
    cur = ggml.like("SCALE", cur) if style.scales_residual else cur
    middle = ggml.like("ADD", *((before, cur) if style.stream_first else (cur, before)))
    cur = middle
    if not style.norm_on_output:
        cur = to.norm(middle, f"blk.{layer}.ffn_norm" if has_ffn_norm else post, layer)
    cur = mlp.mlp(to, cur, layer)
    if to.has(f"blk.{layer}.post_ffw_norm.weight"):
        cur = to.norm(cur, f"blk.{layer}.post_ffw_norm", -1 if to.architecture.startswith("gemma") else layer)
    cur = ggml.like("SCALE", cur) if style.scales_residual else cur
    is_first = style.residual_first or style.stream_first
    return ggml.like("ADD", middle, cur) if is_first else ggml.like("ADD", cur, middle)


def _mixed(to: Builder, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> Tensor:
    """A layer's attention, or what it has in its place."""
    kept = to.gguf.layers[layer]
    if kept.kind == RECURRENT:
        return _recurrent(to, x, layer)
    if kept.kind == NOTHING and to.style.is_one:
        return mlp.mlp(to, x, layer)
    if kept.kind == NOTHING:
        raise NotModelledError(f"the compute graph of {to.architecture}'s layer {layer}")
    if to.style.gates_attention:
        to.graph.expand(x)
        return hybrid.gated_attention(to, x, layer, rope)
    if to.has(f"blk.{layer}.attn_kv_a_mqa.weight"):
        return attention.latent(to, x, layer, rope)
    return attention.attend(to, *attention.queries(to, x, layer, rope), layer, f"blk.{layer}.attn_output")


def _recurrent(to: Builder, x: Tensor, layer: int) -> Tensor:
    stem = f"blk.{layer}."
    if to.architecture.startswith("qwen3"):
        return hybrid.delta_net(to, x, layer)
    if to.has(f"{stem}shortconv.conv.weight"):
        return mamba.short_convolution(to, x, layer)
    return (mamba.mamba if to.has(f"{stem}ssm_x.weight") else mamba.mamba2)(to, x, layer)


def _parallel(to: Builder, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None], wanted: Tensor | None) -> Tensor:
    stem = f"blk.{layer}."
    read = to.norm(x, f"{stem}attn_norm", layer)
    second = f"{stem}attn_norm_2"
    first = to.norm(x, second, layer) if to.has(f"{second}.weight") else read
    cur = attention.attend(to, *attention.queries(to, first, layer, rope), layer, f"{stem}attn_output")
    if wanted is not None:
        cur, x, read = (ggml.get_rows(t, wanted) for t in (cur, x, read))
    if to.has(f"{stem}ffn_norm.weight"):
        read = to.norm(x, f"{stem}ffn_norm", layer)
    terms = {"attention": cur, "mlp": mlp.feed_forward(to, read, layer), "input": x}
    one, two, three = (terms[name] for name in to.style.parallel.split())
    return ggml.like("ADD", ggml.like("ADD", one, two), three)
