"""What llama.cpp's architectures do that their tensors do not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.records import dataclass
from weigh.runtimes.llama_cpp.releases import MIDDLE, NEWER, OLDEST

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Style:
    """What an architecture does that its tensors do not show."""

    norm: str = "RMS_NORM"
    parallel: str = ""
    """Attention and feed-forward read the same input, and this is the order in which they and it are added."""
    rotates: bool = True
    scales_embedding: bool = False
    caps_logits: int = 0
    """Operations after the head that cap or scale the logits."""
    caps_scores: bool = False
    fused_activation: bool = False
    """Gate and up are one matrix."""
    squares: bool = False
    """Squared ReLU."""
    normalizes_experts: bool = True
    gating: str = "softmax"
    scales_experts: bool = False
    """By a factor of the config, which says too whether experts' weights are normalized."""
    weighs_before: bool = False
    """What goes into experts is weighed, not what comes out, and they are chosen by the router's output as it is."""
    norm_on_output: bool = False
    """No norm before attention and feed-forward, one after each."""
    gates_attention: bool = False
    """Queries come with a gate of the output."""
    is_one: bool = False
    """A layer is attention, a scan or a feed-forward, and only that."""
    scales_residual: bool = False
    """What is added to the residual stream is scaled first."""
    stream_first: bool = False
    """Attention's and the feed-forward's outputs are added to the residual stream, not the stream to them."""
    since: tuple[int, ...] = OLDEST
    """The first release whose graph is known."""
    residual_first: bool = False
    """The feed-forward's output is added to the residual stream, not the stream to it."""


STYLES: Mapping[str, Style] = {
    **dict.fromkeys(
        "llama qwen2 qwen3 olmo2 smollm3 seed_oss exaone4 arcee qwen3vl internlm2 mistral3 deci".split(), Style()
    ),
    **dict.fromkeys(("qwen3moe", "qwen3vlmoe", "olmoe"), Style()),
    "qwen2moe": Style(normalizes_experts=False),
    "olmoe": Style(normalizes_experts=False),
    "olmo": Style("NORM"),
    "olmo2": Style(norm_on_output=True),
    "exaone4": Style(norm_on_output=True),
    "arcee": Style(squares=True),
    "nemotron": Style("NORM", squares=True),
    "granite": Style(scales_embedding=True, scales_residual=True, caps_logits=1),
    "granitemoe": Style(scales_embedding=True, scales_residual=True, caps_logits=1),
    "phi3": Style(fused_activation=True, residual_first=True),
    "glm4": Style(fused_activation=True),
    "glm4moe": Style(gating="sigmoid", scales_experts=True),
    "phi2": Style("NORM", "attention mlp input"),
    "gptneox": Style("NORM", "mlp input attention"),
    "falcon": Style("NORM", "mlp attention input"),
    "command-r": Style("NORM", "mlp input attention", caps_logits=1),
    "cohere2": Style("NORM", "mlp input attention", caps_logits=1),
    "gpt2": Style("NORM", rotates=False),
    "starcoder": Style("NORM", rotates=False),
    "starcoder2": Style("NORM"),
    "stablelm": Style("NORM"),
    "phimoe": Style("NORM"),
    "gemma": Style(scales_embedding=True),
    "gemma2": Style(scales_embedding=True, caps_logits=3, caps_scores=True),
    "gemma3": Style(scales_embedding=True),
    "gpt-oss": Style(gating="after"),
    "deepseek2": Style(gating="sigmoid", scales_experts=True),
    **dict.fromkeys(("qwen35", "qwen35moe", "qwen3next"), Style(gates_attention=True, since=MIDDLE)),
    "llama4": Style(gating="sigmoid", normalizes_experts=False, weighs_before=True, since=MIDDLE),
    "gemma3n": Style(scales_embedding=True, caps_logits=3, since=NEWER),
    "gemma4": Style(scales_embedding=True, caps_logits=3, since=MIDDLE),
    **dict.fromkeys(("mamba", "mamba2"), Style(is_one=True, since=MIDDLE)),
    "nemotron_h": Style(rotates=False, squares=True, is_one=True, since=MIDDLE),
    "granitehybrid": Style(rotates=False, scales_embedding=True, scales_residual=True, caps_logits=1, since=MIDDLE),
    "lfm2": Style(stream_first=True, since=MIDDLE),
    "lfm2moe": Style(gating="sigmoid", stream_first=True, since=MIDDLE),
    "dots1": Style(gating="sigmoid", scales_experts=True),
}
"""Architectures whose graphs are described."""
