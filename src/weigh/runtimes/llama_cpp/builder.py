"""What every graph is built with: weights where they are placed, leaves that are made once, norms and matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from weigh import dtypes
from weigh.dtypes import INT32
from weigh.errors import NotModelledError
from weigh.runtimes.llama_cpp import ggml
from weigh.runtimes.llama_cpp.ggml import Graph, Tensor
from weigh.runtimes.llama_cpp.releases import OLDER
from weigh.runtimes.llama_cpp.styles import STYLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.runtimes.llama_cpp.batch import Sizes
    from weigh.runtimes.llama_cpp.placement import Placement

T = TypeVar("T")

PINNED_BELOW = 32
"""Tokens below which norms are put on their layer's device whether or not all layers are on devices."""


class Builder:
    """One graph of a model that is placed."""

    def __init__(self, placed: Placement, sizes: Sizes) -> None:
        self.placed, self.sizes, self.release = placed, sizes, placed.how.release
        self.gguf, self.how = placed.gguf, placed.how
        self.architecture = self.gguf.architecture
        if self.architecture not in STYLES:
            raise NotModelledError(f"the compute graph of {self.architecture}")
        self.style = STYLES[self.architecture]
        if self.release < self.style.since:
            since = ".".join(map(str, self.style.since))
            raise NotModelledError(f"the compute graph of {self.architecture} before llama.cpp@{since}")
        self.graph = Graph()
        self.flash = placed.how.flash_attention
        self.tokens, self.streams = sizes.total, sizes.streams
        self._weights: dict[str, Tensor] = {}
        self._made: dict[object, Any] = {}
        self.pins_norms = placed.gpu_layers > len(self.gguf.layers) or not sizes.reaches(sizes.total, PINNED_BELOW)
        """Norms are put on their layer's device by hand (`graph_get_cb`)."""

    # -- leaves ----------------------------------------------------------------------------------

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What is made where it is first asked for, and the same later."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def weight(self, name: str) -> Tensor | None:
        """A weight, if the model has it."""
        found = self._weights.get(name)
        if found is None and name in self.gguf.tensors:
            stored = self.gguf.tensors[name]
            found = Tensor("NONE", ggml.four(reversed(stored.shape)), dtypes.get(stored.dtype))
            found.name, found.buffer, found.is_weight = name, self.placed.buffer_of(name), True
            self._weights[name] = found
        return found

    def rope_factors(self, layer: int) -> Tensor | None:
        """Factors of the rotary frequencies, if there are any: each device has its own."""
        names = ("rope_freqs.weight", self.gguf.rope_factors(self.how.context_of_each))
        name = next((name for name in names if name in self.gguf.tensors), None)
        if name is None:
            return None
        buffer = self.placed.factors_buffer(layer, name)

        def make() -> Tensor:
            found = ggml.new(self.gguf.tensors[name].shape)
            found.buffer, found.is_weight = buffer, True
            return found

        return self.once((name, buffer), make)

    def required(self, name: str) -> Tensor:
        """A weight that the graph cannot do without.

        Raises:
            NotModelledError: the model has none of that name.
        """
        found = self.weight(name)
        if found is None:
            raise NotModelledError(f"a graph without {name}")
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
        weight, bias = self.required(f"{name}.weight"), self.weight(f"{name}.bias")
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
        if self.release > OLDER and self.style.scales_residual:  # Granite's, which is the input's own
            self.graph.expand(x)
        return x

    def heads_of(self, x: Tensor, width: int) -> Tensor:
        """(width, heads, tokens)."""
        return ggml.reshape(x, width, x.ne[0] // width, self.tokens)
