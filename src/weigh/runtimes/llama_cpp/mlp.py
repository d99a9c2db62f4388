"""Feed-forward layers and experts.

Read: `src/llama-graph.cpp` (`build_ffn`, `build_moe_ffn`) of the releases in `releases.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32
from weigh.runtimes.llama_cpp import ggml
from weigh.runtimes.llama_cpp.ggml import Tensor
from weigh.runtimes.llama_cpp.releases import NEWER, OLDER, OLDEST

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder


def feed_forward(to: Builder, x: Tensor, layer: int, suffix: str = "") -> Tensor:
    """`build_ffn`: gated, fused or plain."""
    stem = f"blk.{layer}.ffn_"
    up = to.linear(x, f"{stem}up{suffix}")
    if to.has(f"{stem}gate{suffix}.weight"):
        x = _gated(to, to.linear(x, f"{stem}gate{suffix}"), up)
    elif to.style.fused_activation and to.release <= OLDEST:
        half = up.ne[0] // 2, up.ne[1]
        x = _gated(to, *(ggml.cont(ggml.view(up, half, (up.nb[1],))) for _ in range(2)))
    elif to.style.fused_activation:
        x = Tensor("GLU", (up.ne[0] // 2, *up.ne[1:]), FLOAT32, (up,))
    else:
        x = ggml.like("UNARY", up)
        if to.style.squares:
            x = ggml.like("SQR", x)
    return to.linear(x, f"{stem}down{suffix}")


def _gated(to: Builder, gate: Tensor, up: Tensor) -> Tensor:
    """Activation and product, one operation since July 2025."""
    if to.release <= OLDEST:
        return ggml.like("MUL", ggml.like("UNARY", gate), up)
    return ggml.like("GLU", gate, up)


def experts(to: Builder, x: Tensor, layer: int, logits: Tensor | None = None) -> Tensor:
    """`build_moe_ffn`."""
    stem, style, graph = f"blk.{layer}.ffn_", to.style, to.graph
    logits = to.linear(x, f"{stem}gate_inp") if logits is None else logits
    tokens, used = x.ne[1], to.gguf.experts_used
    chosen, weights = _chosen(to, logits, layer)
    if to.release > OLDER:
        graph.expand(weights)
    x = ggml.reshape(x, x.ne[0], 1, tokens)
    if style.weighs_before:
        x = ggml.like("MUL", ggml.repeat(x, x.ne[0], used, tokens), weights)
    x = _scaled(to, _through_experts(to, x, stem, chosen), stem, chosen)
    if not style.weighs_before:
        x = ggml.like("MUL", x, weights)
    if to.release > OLDER:
        graph.expand(x)
    parts = [ggml.view(x, (x.ne[0], tokens), (x.nb[2],)) for _ in range(used)]
    for part in parts if to.release > OLDEST else ():
        graph.expand(part)
    out = parts[0]
    for part in parts[1:]:
        out = ggml.like("ADD", out, part)
        if to.release >= NEWER:
            graph.expand(out)
    return ggml.cont(out) if used == 1 else out


def _chosen(to: Builder, logits: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Which experts each token visits, and how much each of them counts."""
    style, count, tokens, used = to.style, logits.ne[0], logits.ne[1], to.gguf.experts_used
    chances = logits
    if style.gating != "after":
        chances = ggml.like("SOFT_MAX" if _is_softmax(to) else "UNARY", logits)
    bias = to.weight(f"blk.{layer}.exp_probs_b.bias")
    chosen_by = chances if bias is None else ggml.like("ADD", chances, bias)
    if style.weighs_before:
        chosen_by = logits
    groups, used_groups = to.gguf.expert_groups
    if groups > 1 and to.release > OLDER:
        chosen_by = _best_groups(chosen_by, groups, used_groups)
    chosen = ggml.top_k(chosen_by, used)
    weights = ggml.get_rows(ggml.reshape(chances, 1, count, tokens), chosen)
    if style.gating == "after":
        weights = ggml.reshape(ggml.like("SOFT_MAX", ggml.reshape(weights, used, tokens)), 1, used, tokens)
    elif style.normalizes_experts and not (style.scales_experts and to.gguf.config.get("norm_topk_prob") is False):
        weights = ggml.reshape(weights, used, tokens)
        total = ggml.sum_rows(weights)
        if to.release > OLDER:
            total = ggml.like("CLAMP", total)
        weights = ggml.reshape(ggml.like("DIV", weights, total), 1, used, tokens)
    factor = to.gguf.config.get("routed_scaling_factor", 1.0)
    is_scaled = style.scales_experts and (factor != 1.0 or to.release <= OLDER)
    return chosen, ggml.like("SCALE", weights) if is_scaled else weights


def _scaled(to: Builder, x: Tensor, stem: str, chosen: Tensor) -> Tensor:
    """By a number of each expert, where there is one."""
    scale = to.weight(f"{stem}down_exps.scale")
    if scale is None:
        return x
    each = ggml.repeat(ggml.reshape(scale, 1, scale.ne[0], 1), 1, scale.ne[0], chosen.ne[1])
    return ggml.like("MUL", x, ggml.get_rows(each, chosen))


def _is_softmax(to: Builder) -> bool:
    """DeepSeek-V2 gates by softmax, V3 by sigmoid: the same architecture to llama.cpp."""
    return to.style.gating == "softmax" or to.gguf.config.get("model_type") == "deepseek_v2"


def _through_experts(to: Builder, x: Tensor, stem: str, chosen: Tensor) -> Tensor:
    def through(x: Tensor, which: str) -> Tensor:
        weight, bias = to.weight(f"{stem}{which}_exps.weight"), to.weight(f"{stem}{which}_exps.bias")
        assert weight is not None
        made = ggml.mul_mat_id(weight, x, chosen)
        return made if bias is None else ggml.like("ADD_ID", made, bias, chosen)

    if to.has(f"{stem}gate_up_exps.weight"):
        both = through(x, "gate_up")
        half = both.ne[0] // 2, both.ne[1], both.ne[2]
        gate, up = ggml.view(both, half, both.nb[1:3]), ggml.view(both, half, both.nb[1:3])
        return through(Tensor("GLU", ggml.four(half), FLOAT32, (gate, up)), "down")
    up = through(x, "up")
    if not to.has(f"{stem}gate_exps.weight"):
        active = ggml.like("UNARY", up)
        return through(ggml.like("SQR", active) if to.style.squares else active, "down")
    return through(_gated(to, through(x, "gate"), up), "down")


def _best_groups(chances: Tensor, groups: int, used: int) -> Tensor:
    count, tokens = chances.ne[0], chances.ne[1]
    each = ggml.reshape(chances, count // groups, groups, tokens)
    best = ggml.top_k(each, 2)
    scores = ggml.get_rows(ggml.reshape(each, 1, *each.ne[:3]), best)
    scores = ggml.sum_rows(ggml.reshape(scores, *scores.ne[1:4]))
    chosen = ggml.top_k(ggml.reshape(scores, *scores.ne[1:3]), used)
    kept = ggml.get_rows(each, chosen)
    return ggml.reshape(ggml.set_rows(ggml.like("FILL", each), kept, chosen), count, tokens)


def mlp(to: Builder, x: Tensor, layer: int) -> Tensor:
    """Feed-forward, experts, and experts that every token visits."""
    stem = f"blk.{layer}.ffn_"
    if not to.has(f"{stem}gate_inp.weight"):
        return feed_forward(to, x, layer)
    out = experts(to, x, layer)
    if to.has(f"{stem}up_shexp.weight"):
        shared = _shared(to, x, layer)
        out = ggml.like("ADD", out, shared)
    return out


def _shared(to: Builder, x: Tensor, layer: int) -> Tensor:
    stem = f"blk.{layer}.ffn_"
    gate = to.weight(f"{stem}gate_inp_shexp.weight")
    if gate is None:
        return feed_forward(to, x, layer, "_shexp")
    if to.architecture == "qwen2moe":
        logits = ggml.mul_mat(gate, x)
        chance = ggml.like("DIV", ggml.like("UNARY", logits), logits)
        return ggml.like("MUL", feed_forward(to, x, layer, "_shexp"), chance)
    shared = feed_forward(to, x, layer, "_shexp")
    return ggml.like("MUL", shared, ggml.like("UNARY", ggml.mul_mat(gate, x)))
