"""llama.cpp's graphs: the operations of one ubatch, in the order in which llama.cpp adds them.

Read: `src/llama-graph.cpp`, `src/llama-kv-cache.cpp` and `src/models/*.cpp` of the releases in `releases.py`
(`src/llama.cpp` in the oldest). What a layer does follows mostly from the tensors that it has; what does not is in
`STYLES`. Operations that always write over their operand and change nothing else (scaling queries) are left out where
no size depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.dtypes import FLOAT16, FLOAT32, INT32, INT64
from weigh.errors import NotModelledError
from weigh.models.layout import NOTHING, RECURRENT, SLIDING
from weigh.records import dataclass
from weigh.runtimes.llama_cpp import gemma4, ggml, hybrid
from weigh.runtimes.llama_cpp.ggml import Graph, Tensor
from weigh.runtimes.llama_cpp.releases import NEWER, OLDER, OLDEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weigh.models.layout import LayerCache
    from weigh.runtimes.llama_cpp.batch import Sizes
    from weigh.runtimes.llama_cpp.placement import Placement

MASK_PADDING = 64
"""Rows of a mask are a multiple of it, until the end of 2025 (`GGML_KQ_MASK_PAD`)."""

PINNED_BELOW = 32
"""Tokens below which norms are put on their layer's device whether or not all layers are on devices."""


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
    norm_on_output: bool = False
    """No norm before attention and feed-forward, one after each."""
    gates_attention: bool = False
    """Queries come with a gate of the output."""
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
    "granite": Style(scales_embedding=True, caps_logits=1),
    "granitemoe": Style(scales_embedding=True, caps_logits=1),
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
    **dict.fromkeys(("qwen35", "qwen35moe", "qwen3next"), Style(gates_attention=True)),
    "gemma4": Style(scales_embedding=True, caps_logits=3),
    "dots1": Style(gating="sigmoid", scales_experts=True),
}
"""Architectures whose graphs are described."""


class Builder:
    """One graph of a model that is placed."""

    def __init__(self, placed: Placement, sizes: Sizes, layers: Sequence[int] | None = None) -> None:
        self.placed, self.sizes, self.release = placed, sizes, placed.how.release
        self.layers = range(len(placed.gguf.layers)) if layers is None else layers
        self.gguf, self.how = placed.gguf, placed.how
        self.architecture = self.gguf.architecture
        if self.architecture not in STYLES:
            raise NotModelledError(f"the compute graph of {self.architecture}")
        self.style = STYLES[self.architecture]
        self.graph = Graph()
        self.flash = placed.how.flash_attention
        self.tokens, self.streams = sizes.total, sizes.streams
        self._leaves: dict[str, Tensor] = {}
        self._masks: dict[bool, tuple[Tensor, Tensor]] = {}
        self._numbers: dict[tuple[bool, str], Tensor] = {}
        self._rotations: dict[tuple[bool, str], Tensor | None] = {}
        self._state_numbers: tuple[Tensor, Tensor] | None = None
        self.pins_norms = placed.gpu_layers > len(self.gguf.layers) or not sizes.reaches(sizes.total, PINNED_BELOW)
        """Norms are put on their layer's device by hand (`graph_get_cb`)."""

    # -- leaves ----------------------------------------------------------------------------------

    def weight(self, name: str) -> Tensor | None:
        """A weight, if the model has it."""
        found = self._leaves.get(name)
        if found is None and name in self.gguf.tensors:
            stored = self.gguf.tensors[name]
            found = Tensor("NONE", ggml.four(reversed(stored.shape)), dtypes.get(stored.dtype))
            found.name, found.buffer, found.is_weight = name, self.placed.buffer_of(name), True
            self._leaves[name] = found
        return found

    def output_matrix(self) -> Tensor:
        """The head, which is a copy of the embedding where it is tied."""
        own = self.weight("output.weight")
        if own is not None:
            return own
        tied = self.gguf.tensors["token_embd.weight"]
        made = Tensor("NONE", ggml.four(reversed(tied.shape)), dtypes.get(tied.dtype))
        made.buffer, made.is_weight = self.placed.output_buffer, True
        return made

    def _cells(self, kept: LayerCache) -> int:
        return self.sizes.window if kept.kind == SLIDING else self.sizes.cells

    def _cache(self, layer: int, which: str) -> Tensor:
        """Keys or values of a layer: (width, cells, streams)."""
        name = f"cache_{which}_l{layer}"
        found = self._leaves.get(name)
        if found is None:
            kept = self.gguf.layers[layer]
            width = kept.heads * (kept.key_width if which == "k" else kept.value_width)
            cells = self._cells(kept)
            dtype = dtypes.get(self.how.type_k if which == "k" else self.how.type_v)
            found = ggml.new((width, cells, self.streams), dtype)
            found.buffer = self.placed.cache_buffer(layer)
            self._leaves[name] = found
        return found

    def state(self, layer: int, which: int) -> Tensor:
        """A layer's recurrent states of all sequences: of its convolution (0), of its recurrence (1)."""
        name = f"state_{which}_l{layer}"
        found = self._leaves.get(name)
        if found is None:
            found = ggml.new((self.gguf.layers[layer].states[which].elements, self.sizes.sequences))
            found.buffer = self.placed.cache_buffer(layer)
            self._leaves[name] = found
        return found

    def state_numbers(self) -> tuple[Tensor, Tensor]:
        """Which states are read, and which are left over."""
        if self._state_numbers is None:
            self._state_numbers = hybrid.state_numbers(self.sizes.sequences)
        return self._state_numbers

    def _mask(self, kept: LayerCache) -> Tensor:
        """Which cells a token sees: as it is written, and as attention reads it."""
        sliding = kept.kind == SLIDING
        if sliding not in self._masks:
            cells, rows = self._cells(kept), self.tokens // self.streams
            if self.release <= OLDER:
                rows = -(-rows // MASK_PADDING) * MASK_PADDING
            is_half = self.flash and self.release >= NEWER
            made = ggml.given((cells, rows, 1, self.streams), FLOAT16 if is_half else FLOAT32)
            read = ggml.cast(made, FLOAT16) if self.flash and not is_half else made
            self._masks[sliding] = made, read
        return self._masks[sliding][1]

    def _indices(self, kept: LayerCache, which: str) -> Tensor:
        """Which cells the tokens are written to."""
        key = kept.kind == SLIDING, which
        if key not in self._numbers:
            widest = max(one.heads * one.value_width for one in self.gguf.layers if one.heads)
            by_number = self.tokens * (widest if which == "v" and not self.flash else 1)
            self._numbers[key] = ggml.given((by_number,), INT64)
        return self._numbers[key]

    # -- parts -----------------------------------------------------------------------------------

    def norm(self, x: Tensor, name: str, layer: int = -1, op: str | None = None) -> Tensor:
        """`build_norm`: put on its layer's device by hand where all layers are on devices."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        made = ggml.like(op or self.style.norm, x)
        if (weight is not None or bias is not None) and layer >= 0 and self.pins_norms:
            made.backend = self.placed.backend_of_layer(layer)
        if weight is not None:
            made = ggml.like("MUL", made, weight)
        return made if bias is None else ggml.like("ADD", made, bias)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A matrix and its bias."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        if weight is None:
            raise NotModelledError(f"a graph without {name}")
        made = ggml.mul_mat(weight, x)
        return made if bias is None else ggml.like("ADD", made, bias)

    def has(self, name: str) -> bool:
        """The model has a tensor of that name."""
        return name in self.gguf.tensors

    def embed(self) -> Tensor:
        """Tokens to vectors; newer releases put the other way in, vectors that are given, into the graph too."""
        embedding = self.weight("token_embd.weight")
        assert embedding is not None
        tokens = ggml.given((self.tokens,), INT32)
        x = ggml.get_rows(embedding, tokens)
        if self.release > OLDER:
            self.graph.expand(x)
            self.graph.expand(ggml.given((embedding.ne[0], self.tokens)))
        if self.style.scales_embedding:
            x = ggml.like("SCALE", x)
        if self.release > OLDER:
            self.graph.expand(x)
        return x

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None, layer: int, stem: str | None) -> Tensor:
        """`build_attn`: into the cache, attention, and the matrix after it, if one is named."""
        kept, graph = self.gguf.layers[layer], self.graph
        windows = any(one.kind == SLIDING for one in self.gguf.layers)
        rotate_keys, rotate_values = self._rotation(kept, "k"), self._rotation(kept, "v")
        q, k, v = _rotated(q, rotate_keys), k and _rotated(k, rotate_keys), v and _rotated(v, rotate_values)
        order = (q, v, k) if self.release > OLDER and not windows else (q, k, v)
        for tensor in order:
            if tensor is not None:
                graph.expand(tensor)
        if k is not None:
            graph.expand(self._write(k, "k", layer))
        if v is not None:
            graph.expand(self._write(v, "v", layer))
        x = self._attention(q, layer, self.weight(f"blk.{layer}.attn_sinks.weight"), kept)
        x = _rotated(x, rotate_values)
        return x if stem is None else self.linear(x, stem)

    def _rotation(self, kept: LayerCache, which: str) -> Tensor | None:
        """The Hadamard matrix that a quantized cache's vectors are turned by, since 2026 (`build_input_k_rot`)."""
        key = kept.kind == SLIDING and self.release >= NEWER, which
        if key not in self._rotations:
            alike = [one for one in self.gguf.layers if one.heads]
            if self.release >= NEWER:
                alike = [one for one in alike if one.kind == kept.kind]
            widths = {one.key_width if which == "k" else one.value_width for one in alike}
            dtype, width = dtypes.get(self.how.type_k if which == "k" else self.how.type_v), min(widths)
            turns = self.release > OLDER and dtype.elements_per_block > 1 and len(widths) == 1 and not width % 64
            size = width & -width if which == "k" else 64
            self._rotations[key] = ggml.given((size, size)) if turns else None
        return self._rotations[key]

    def _copy(self, x: Tensor, which: str, layer: int) -> Tensor:
        """As the cache was written before there were indices: a copy into a part of it."""
        cache, tokens = self._cache(layer, which), self.tokens
        if which == "v" and not self.flash:
            into = ggml.view(cache, (tokens, cache.ne[0]), (ggml.row(cache.dtype, cache.ne[1]),))
            x = ggml.transpose(ggml.reshape(x, x.ne[0] * x.ne[1], tokens))
        else:
            into = ggml.view(cache, (tokens * cache.ne[0],))
        return ggml.copy_into(x, into)

    def _write(self, x: Tensor, which: str, layer: int) -> Tensor:
        if self.release <= OLDEST:
            return self._copy(x, which, layer)
        kept, cache = self.gguf.layers[layer], self._cache(layer, which)
        numbers = self._indices(kept, which)
        rows = x.ne[0] * x.ne[1]
        if which == "v" and not self.flash:
            flat = (
                ggml.reshape(x, rows, x.ne[2]) if x.nb[2] == ggml.row(x.dtype, rows) else ggml.cont(x, (rows, x.ne[2]))
            )
            cells = ggml.reshape(cache, 1, cache.elements)
            return ggml.set_rows(cells, ggml.reshape(flat, 1, flat.elements), numbers)
        flat = ggml.view(x, (rows, x.ne[2]), (x.nb[2],))
        if self.streams > 1:
            cache = ggml.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
        return ggml.set_rows(cache, flat, numbers)

    def _read(self, which: str, layer: int) -> Tensor:
        kept, cache = self.gguf.layers[layer], self._cache(layer, which)
        width = kept.key_width if which == "k" else kept.value_width
        cells, row = cache.ne[1], ggml.row
        if which == "v" and not self.flash:
            nb = row(cache.dtype, cells * width), row(cache.dtype, cells), row(cache.dtype, cells * cache.ne[0])
            return ggml.view(cache, (cells, kept.heads, width, self.streams), nb)
        nb = row(cache.dtype, width), row(cache.dtype, cache.ne[0]), row(cache.dtype, cache.ne[0] * cells)
        return ggml.view(cache, (width, kept.heads, cells, self.streams), nb)

    def _attention(
        self, q: Tensor, layer: int, sinks: Tensor | None, kept: LayerCache, up: Tensor | None = None, rank: int = 0
    ) -> Tensor:
        """`build_attn_mha`; `up` makes values of latent vectors of `rank` numbers, which may be a part of the keys."""
        k, mask = self._read("k", layer), self._mask(kept)
        v = self._read("v", layer) if kept.value_width else ggml.view(k, (rank, *k.ne[1:]), k.nb[1:])
        is_turned = bool(kept.value_width) and not self.flash
        n = self.streams
        q = ggml.view(q, (q.ne[0], q.ne[1], q.ne[2] // n, n), (q.nb[1], q.nb[2], q.nb[3] // n))
        q, k, v = (ggml.permute(t, 0, 2, 1, 3) for t in (q, k, v))
        if self.flash:
            x = ggml.flash_attention(q, k, v, mask, sinks)
            if up is not None:
                x = ggml.mul_mat(up, ggml.permute(x, 0, 2, 1, 3))
                x = ggml.cont(ggml.permute(x, 0, 2, 1, 3))
            x = ggml.reshape(x, x.ne[0] * x.ne[1], x.ne[2] * x.ne[3])
        else:
            scores = ggml.mul_mat(k, q)
            for _ in range(3 if self.style.caps_scores else 0):
                scores = ggml.like("SCALE", scores)
            scores = ggml.like("SOFT_MAX", scores, mask, sinks)
            x = ggml.mul_mat(v if is_turned else ggml.cont(ggml.transpose(v)), scores)
            x = ggml.permute(x if up is None else ggml.mul_mat(up, x), 0, 2, 1, 3)
            x = ggml.cont(x, (x.ne[0] * x.ne[1], x.ne[2] * x.ne[3]))
            if not self.how.offload_kqv:
                x.backend = len(self.placed.backends) - 1
        self.graph.expand(x)
        return x

    def latent(self, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> Tensor:
        """DeepSeek's attention with one key a token: the latent vector and the rotary key (`llama_model_deepseek2`)."""
        stem, config, row = f"blk.{layer}.attn_", self.gguf.config, ggml.row
        nope, turned, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
        if self.has(f"{stem}q_a.weight"):
            q = self.linear(self.norm(self.linear(x, f"{stem}q_a"), f"{stem}q_a_norm", layer), f"{stem}q_b")
        else:
            q = self.linear(x, f"{stem}q")
        heads, head = q.ne[0] // (nope + turned), row(FLOAT32, nope + turned)
        q_nope = ggml.view(q, (nope, heads, self.tokens), (head, head * heads))
        q_turned = ggml.view(q, (turned, heads, self.tokens), (head, head * heads))
        both = self.linear(x, f"{stem}kv_a_mqa")
        wide = row(FLOAT32, rank + turned)
        latent = ggml.view(both, (rank, self.tokens), (wide,))
        k_turned = ggml.like("ROPE", ggml.view(both, (turned, 1, self.tokens), (wide, wide)), *rope)
        q_turned = ggml.like("ROPE", q_turned, *rope)
        latent = self.norm(latent, f"{stem}kv_a_norm", layer)
        up_keys, up_values = self.weight(f"{stem}k_b.weight"), self.weight(f"{stem}v_b.weight")
        if up_keys is None or up_values is None:
            return self._expanded(q_nope, q_turned, latent, k_turned, layer)
        absorbed = ggml.permute(ggml.mul_mat(up_keys, ggml.permute(q_nope, 0, 2, 1, 3)), 0, 2, 1, 3)
        q = ggml.concat(absorbed, q_turned, 0)
        v = ggml.reshape(latent, rank, 1, self.tokens)
        k = ggml.concat(v, k_turned, 0)
        keeps_values = self.gguf.layers[layer].value_width > 0
        for tensor in (q, v, k) if self.release > OLDER else (q, k, v):
            self.graph.expand(tensor)
        self.graph.expand(self._write(k, "k", layer))
        if keeps_values:
            self.graph.expand(self._write(v, "v", layer))
        return self.linear(self._attention(q, layer, None, self.gguf.layers[layer], up_values, rank), f"{stem}output")

    def _expanded(self, q_nope: Tensor, q_turned: Tensor, latent: Tensor, k_turned: Tensor, layer: int) -> Tensor:
        """The same with keys and values of every head, of files from before April 2025."""
        stem, kept, row = f"blk.{layer}.attn_", self.gguf.layers[layer], ggml.row
        nope, heads, value = q_nope.ne[0], q_nope.ne[1], kept.value_width
        both = self.linear(latent, f"{stem}kv_b")
        head = row(FLOAT32, nope + value)
        keys = ggml.view(both, (nope, heads, self.tokens), (head, head * heads))
        v = ggml.cont(ggml.view(both, (value, heads, self.tokens), (head, head * heads)))
        k = ggml.concat(keys, Tensor("REPEAT", q_turned.ne, FLOAT32, (k_turned, q_turned)), 0)
        return self.attend(ggml.concat(q_nope, q_turned, 0), k, v, layer, f"{stem}output")

    def heads_of(self, x: Tensor, width: int) -> Tensor:
        """(width, heads, tokens)."""
        return ggml.reshape(x, width, x.ne[0] // width, self.tokens)

    def queries(self, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a layer with attention, normalized and rotated."""
        kept, stem = self.gguf.layers[layer], f"blk.{layer}.attn_"
        if self.has(f"{stem}qkv.weight"):
            fused = self.linear(x, f"{stem}qkv")
            count = fused.ne[0] - kept.heads * (kept.key_width + kept.value_width)
            sizes = (count, kept.key_width), (kept.heads * kept.key_width, kept.key_width)
            sizes = (*sizes, (kept.heads * kept.value_width, kept.value_width))  # type: ignore[assignment]
            q, k, v = (
                ggml.view(fused, (width, size // width, self.tokens), (ggml.row(FLOAT32, width), fused.nb[1]))
                for size, width in sizes
            )
            if self.release <= OLDEST:
                q, k = (ggml.reshape(ggml.cont(_flat(t)), *t.ne[:3]) for t in (q, k))
            if self.release <= OLDER:
                v = ggml.reshape(ggml.cont(_flat(v)), *v.ne[:3])
        else:
            q, k, v = (self.linear(x, f"{stem}{which}") for which in "qkv")
            if self._norms_whole_rows(layer):
                q, k = self.norm(q, f"{stem}q_norm", layer), self.norm(k, f"{stem}k_norm", layer)
            q, k, v = (
                self.heads_of(q, kept.key_width),
                self.heads_of(k, kept.key_width),
                self.heads_of(v, kept.value_width),
            )
        if self.has(f"{stem}q_norm.weight") and not self._norms_whole_rows(layer):
            q, k = self.norm(q, f"{stem}q_norm", layer), self.norm(k, f"{stem}k_norm", layer)
        if self.style.rotates:
            q, k = ggml.like("ROPE", q, *rope), ggml.like("ROPE", k, *rope)
        return q, k, v

    def _norms_whole_rows(self, layer: int) -> bool:
        stored = self.gguf.tensors.get(f"blk.{layer}.attn_q_norm.weight")
        return stored is not None and stored.num_elements != self.gguf.layers[layer].key_width

    def feed_forward(self, x: Tensor, layer: int, suffix: str = "") -> Tensor:
        """`build_ffn`: gated, fused or plain."""
        stem = f"blk.{layer}.ffn_"
        up = self.linear(x, f"{stem}up{suffix}")
        if self.has(f"{stem}gate{suffix}.weight"):
            x = self._gated(self.linear(x, f"{stem}gate{suffix}"), up)
        elif self.style.fused_activation and self.release <= OLDEST:
            half = up.ne[0] // 2, up.ne[1]
            x = self._gated(*(ggml.cont(ggml.view(up, half, (up.nb[1],))) for _ in range(2)))
        elif self.style.fused_activation:
            x = Tensor("GLU", (up.ne[0] // 2, *up.ne[1:]), FLOAT32, (up,))
        else:
            x = ggml.like("UNARY", up)
            if self.style.squares:
                x = ggml.like("SQR", x)
        return self.linear(x, f"{stem}down{suffix}")

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Activation and product, one operation since July 2025."""
        if self.release <= OLDEST:
            return ggml.like("MUL", ggml.like("UNARY", gate), up)
        return ggml.like("GLU", gate, up)

    def experts(self, x: Tensor, layer: int, logits: Tensor | None = None) -> Tensor:
        """`build_moe_ffn`."""
        stem, style, graph = f"blk.{layer}.ffn_", self.style, self.graph
        logits = self.linear(x, f"{stem}gate_inp") if logits is None else logits
        tokens, count, used = x.ne[1], logits.ne[0], self.gguf.experts_used
        chances = logits
        if style.gating != "after":
            chances = ggml.like("SOFT_MAX" if self._is_softmax else "UNARY", logits)
        bias = self.weight(f"blk.{layer}.exp_probs_b.bias")
        chosen_by = chances if bias is None else ggml.like("ADD", chances, bias)
        groups, used_groups = self.gguf.expert_groups
        if groups > 1 and self.release > OLDER:
            chosen_by = self._best_groups(chosen_by, groups, used_groups)
        chosen = ggml.top_k(chosen_by, used)
        weights = ggml.get_rows(ggml.reshape(chances, 1, count, tokens), chosen)
        if style.gating == "after":
            weights = ggml.reshape(ggml.like("SOFT_MAX", ggml.reshape(weights, used, tokens)), 1, used, tokens)
        elif style.normalizes_experts and self.gguf.config.get("norm_topk_prob") is not False:
            weights = ggml.reshape(weights, used, tokens)
            total = ggml.sum_rows(weights)
            if self.release > OLDER:
                total = ggml.like("CLAMP", total)
            weights = ggml.reshape(ggml.like("DIV", weights, total), 1, used, tokens)
        if style.scales_experts:
            weights = ggml.like("SCALE", weights)
        if self.release > OLDER:
            graph.expand(weights)
        x = self._scaled(self._through_experts(ggml.reshape(x, x.ne[0], 1, tokens), stem, chosen), stem, chosen)
        x = ggml.like("MUL", x, weights)
        if self.release > OLDER:
            graph.expand(x)
        parts = [ggml.view(x, (x.ne[0], tokens), (x.nb[2],)) for _ in range(used)]
        for part in parts if self.release > OLDEST else ():
            graph.expand(part)
        out = parts[0]
        for part in parts[1:]:
            out = ggml.like("ADD", out, part)
            if self.release >= NEWER:
                graph.expand(out)
        return ggml.cont(out) if used == 1 else out

    def _scaled(self, x: Tensor, stem: str, chosen: Tensor) -> Tensor:
        """By a number of each expert, where there is one."""
        scale = self.weight(f"{stem}down_exps.scale")
        if scale is None:
            return x
        each = ggml.repeat(ggml.reshape(scale, 1, scale.ne[0], 1), 1, scale.ne[0], chosen.ne[1])
        return ggml.like("MUL", x, ggml.get_rows(each, chosen))

    @property
    def _is_softmax(self) -> bool:
        """DeepSeek-V2 gates by softmax, V3 by sigmoid: the same architecture to llama.cpp."""
        return self.style.gating == "softmax" or self.gguf.config.get("model_type") == "deepseek_v2"

    def _through_experts(self, x: Tensor, stem: str, chosen: Tensor) -> Tensor:
        def through(x: Tensor, which: str) -> Tensor:
            weight, bias = self.weight(f"{stem}{which}_exps.weight"), self.weight(f"{stem}{which}_exps.bias")
            assert weight is not None
            made = ggml.mul_mat_id(weight, x, chosen)
            return made if bias is None else ggml.like("ADD_ID", made, bias, chosen)

        if self.has(f"{stem}gate_up_exps.weight"):
            both = through(x, "gate_up")
            half = both.ne[0] // 2, both.ne[1], both.ne[2]
            gate, up = ggml.view(both, half, both.nb[1:3]), ggml.view(both, half, both.nb[1:3])
            return through(Tensor("GLU", ggml.four(half), FLOAT32, (gate, up)), "down")
        up = through(x, "up")
        if not self.has(f"{stem}gate_exps.weight"):
            active = ggml.like("UNARY", up)
            return through(ggml.like("SQR", active) if self.style.squares else active, "down")
        return through(self._gated(through(x, "gate"), up), "down")

    def _best_groups(self, chances: Tensor, groups: int, used: int) -> Tensor:
        count, tokens = chances.ne[0], chances.ne[1]
        each = ggml.reshape(chances, count // groups, groups, tokens)
        best = ggml.top_k(each, 2)
        scores = ggml.get_rows(ggml.reshape(each, 1, *each.ne[:3]), best)
        scores = ggml.sum_rows(ggml.reshape(scores, *scores.ne[1:4]))
        chosen = ggml.top_k(ggml.reshape(scores, *scores.ne[1:3]), used)
        kept = ggml.get_rows(each, chosen)
        return ggml.reshape(ggml.set_rows(ggml.like("FILL", each), kept, chosen), count, tokens)

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        """Feed-forward, experts, and experts that every token visits."""
        stem = f"blk.{layer}.ffn_"
        if not self.has(f"{stem}gate_inp.weight"):
            return self.feed_forward(x, layer)
        out = self.experts(x, layer)
        if self.has(f"{stem}up_shexp.weight"):
            shared = self._shared(x, layer)
            out = ggml.like("ADD", out, shared)
        return out

    def _shared(self, x: Tensor, layer: int) -> Tensor:
        stem = f"blk.{layer}.ffn_"
        gate = self.weight(f"{stem}gate_inp_shexp.weight")
        if gate is None:
            return self.feed_forward(x, layer, "_shexp")
        if self.architecture == "qwen2moe":
            logits = ggml.mul_mat(gate, x)
            chance = ggml.like("DIV", ggml.like("UNARY", logits), logits)
            return ggml.like("MUL", self.feed_forward(x, layer, "_shexp"), chance)
        shared = self.feed_forward(x, layer, "_shexp")
        return ggml.like("MUL", shared, ggml.like("UNARY", ggml.mul_mat(gate, x)))

    @property
    def hands_hidden_on(self) -> bool:
        """The last hidden state of every token is kept for layers that predict further ones."""
        return self.release >= NEWER and self.architecture in ("qwen35", "qwen35moe")

    # -- the whole -------------------------------------------------------------------------------

    def build(self) -> Graph:
        """From tokens to logits."""
        x = self.embed()
        positions = ggml.given((self.tokens * self.gguf.positions_per_token,), INT32)
        if self.has("position_embd.weight"):
            table = self.weight("position_embd.weight")
            assert table is not None
            x = ggml.like("ADD", x, ggml.get_rows(table, positions))
        self.graph.outputs.append(x)
        outputs = ggml.given((self.tokens,), INT32)
        factors = self.weight("rope_freqs.weight") or self.weight(self.gguf.rope_factors(self.how.context_of_each))
        for layer in self.layers:
            wanted = outputs if layer == len(self.gguf.layers) - 1 and not self.hands_hidden_on else None
            x = self.layer(x, layer, (positions, factors), wanted)
            self.graph.outputs.append(x)
        if self.hands_hidden_on:
            x.is_output = True
            x = ggml.get_rows(x, outputs)
        x = self.norm(x, "output_norm")
        x = ggml.mul_mat(self.output_matrix(), x)
        bias = self.weight("output.bias")
        if bias is not None:
            x = ggml.like("ADD", x, bias)
        caps = 0 if self.architecture == "gemma4" and not self.gguf.config.get("final_logit_softcapping") else None
        for _ in range(self.style.caps_logits if caps is None else caps):
            x = ggml.like("SCALE", x)
        self.graph.expand(x)
        return self.graph

    def layer(self, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None], wanted: Tensor | None) -> Tensor:
        """One block; the last one keeps the tokens whose logits are wanted."""
        if self.style.parallel and self.gguf.config.get("use_parallel_residual") is not False:
            return self._parallel(x, layer, rope, wanted)
        if self.architecture == "gemma4":
            return gemma4.layer(self, x, layer, rope, wanted)
        before = x
        cur = x if self.style.norm_on_output else self.norm(x, f"blk.{layer}.attn_norm", layer)
        kept = self.gguf.layers[layer]
        is_delta_net = kept.kind == RECURRENT and self.architecture.startswith("qwen3")
        if not is_delta_net and (kept.kind == RECURRENT or (kept.kind == NOTHING and not kept.heads)):
            raise NotModelledError(f"the compute graph of {self.architecture}'s layer {layer}")
        if is_delta_net:
            cur = hybrid.delta_net(self, cur, layer)
        elif self.style.gates_attention:
            self.graph.expand(cur)
            cur = hybrid.gated_attention(self, cur, layer, rope)
        elif self.has(f"blk.{layer}.attn_kv_a_mqa.weight"):
            cur = self.latent(cur, layer, rope)
        else:
            cur = self.attend(*self.queries(cur, layer, rope), layer, f"blk.{layer}.attn_output")
        if wanted is not None:
            cur, before = ggml.get_rows(cur, wanted), ggml.get_rows(before, wanted)
        post = f"blk.{layer}.post_attention_norm"
        has_ffn_norm = self.has(f"blk.{layer}.ffn_norm.weight")
        if self.has(f"{post}.weight") and (has_ffn_norm or self.style.norm_on_output):
            cur = self.norm(cur, post, layer)
        middle = ggml.like("ADD", cur, before)
        if self.style.norm_on_output:
            cur = middle
        else:
            cur = self.norm(middle, f"blk.{layer}.ffn_norm" if has_ffn_norm else post, layer)
        cur = self.mlp(cur, layer)
        if self.has(f"blk.{layer}.post_ffw_norm.weight"):
            cur = self.norm(cur, f"blk.{layer}.post_ffw_norm", -1 if self.architecture.startswith("gemma") else layer)
        return ggml.like("ADD", middle, cur) if self.style.residual_first else ggml.like("ADD", cur, middle)

    def _parallel(self, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None], wanted: Tensor | None) -> Tensor:
        stem = f"blk.{layer}."
        read = self.norm(x, f"{stem}attn_norm", layer)
        second = f"{stem}attn_norm_2"
        first = self.norm(x, second, layer) if self.has(f"{second}.weight") else read
        cur = self.attend(*self.queries(first, layer, rope), layer, f"{stem}attn_output")
        if wanted is not None:
            cur, x, read = (ggml.get_rows(t, wanted) for t in (cur, x, read))
        if self.has(f"{stem}ffn_norm.weight"):
            read = self.norm(x, f"{stem}ffn_norm", layer)
        terms = {"attention": cur, "mlp": self.feed_forward(read, layer), "input": x}
        one, two, three = (terms[name] for name in self.style.parallel.split())
        return ggml.like("ADD", ggml.like("ADD", one, two), three)


def _rotated(x: Tensor, by: Tensor | None) -> Tensor:
    """`ggml_mul_mat_aux`."""
    if by is None:
        return x
    size = by.ne[0], x.elements // by.ne[0]
    flat = ggml.reshape(x, *size) if x.is_contiguous else ggml.cont(x, size)
    return ggml.reshape(ggml.mul_mat(by, flat), *x.ne)


def _flat(x: Tensor) -> Tensor:
    """A part of fused queries, keys and values as (width x heads, tokens)."""
    return ggml.view(x, (x.ne[0] * x.ne[1], x.ne[2]), (x.nb[2],))


def build(placed: Placement, sizes: Sizes, layers: Sequence[int] | None = None) -> Graph:
    """The graph of a batch, with the layers that are named or all.

    Raises:
        NotModelledError: the architecture's graph is not described.
    """
    graph = Builder(placed, sizes, layers).build()
    graph.number_layers()
    return graph
