"""Prompt tuning and p-tuning: vectors before the embedded tokens, trained as they are or made by a small network.

Read: peft (0.21), peft_model.py (`PeftModelForCausalLM.forward`, `get_prompt`), tuners/{prompt,p}_tuning/model.py. The
vectors are trained in fp32. Every sequence grows by them, and its logits too; the labels get as many more, which do not
count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, INT64
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor, empty
from weigh.models.common import CausalModel
from weigh.records import dataclass
from weigh.techniques.adapters.base import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLearning(Adapter):
    """Something before the tokens."""

    keys: ClassVar[Mapping[str, str]] = {"virtual_tokens": "num_virtual_tokens"}
    harmless: ClassVar[tuple[str, ...]] = (
        *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    )

    virtual_tokens: int = 20
    """How many vectors stand before the tokens."""

    def encoder(self, embedding: nn.Embedding) -> Module:
        """What gives the vectors."""
        raise NotImplementedError

    def check(self, checkpointed: bool, shared_sequence: bool) -> None:
        """Sequences that are shared out would have to get longer first."""
        if shared_sequence:
            raise NotModelledError(f"{self.kind} of sequences that devices share", where="context")

    def place(self, model: Module) -> None:
        """Put the vectors before the embedded tokens."""
        assert isinstance(model, CausalModel)
        if model.encoder_decoder or model.features is not None:
            raise NotModelledError(f"{self.kind} of a model with an encoder", where="adapter")
        embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
        model.prompt_encoder = self.encoder(embedding)  # type: ignore[attr-defined]
        model.wrap_in(self.around(model, embedding))

    def around(self, model: Any, embedding: nn.Embedding) -> Callable[..., Any]:
        """`PeftModelForCausalLM.forward`."""

        def forward(base: Callable[..., Any], input_ids: Tensor, labels: Tensor) -> Any:
            batch, length = input_ids.shape
            inputs_embeds = embedding(input_ids)
            prefix_labels = empty((batch, self.virtual_tokens), INT64, "aten::_to_copy")
            labels = ops.cat([prefix_labels, labels], 1)
            prompts = get_prompt(batch)
            prompts = prompts.to(inputs_embeds.dtype)
            inputs_embeds = ops.cat([prompts, inputs_embeds], 1)
            with _Given(embedding, inputs_embeds):
                return base(_no_ids(batch, length + self.virtual_tokens), labels)

        def get_prompt(batch: Any) -> Tensor:
            prompt_tokens = empty((batch, self.virtual_tokens), INT64, "aten::_to_copy")
            prompts = model.prompt_encoder(prompt_tokens.narrow(0, 1))
            prompts = ops.repeat(prompts, batch, 1, 1)
            return prompts

        return forward


class _Given:
    """In the body the embedding gives what was made before."""

    def __init__(self, embedding: Module, inputs_embeds: Tensor) -> None:
        self.embedding, self.made, self.wrap = embedding, inputs_embeds, embedding.wrap

    def __enter__(self) -> None:
        self.embedding.wrap = lambda forward, input_ids: self.made

    def __exit__(self, *error: object) -> None:
        self.embedding.wrap = self.wrap
        del self.made


def _no_ids(batch: Any, length: Any) -> Tensor:
    """Token ids that nobody has: the shape alone."""
    nothing = empty((0,), INT64, "none")
    return Tensor(nothing.storage, (batch, length), None, INT64, batch * length)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTuning(PromptLearning):
    """The vectors themselves are trained."""

    kind: ClassVar[str] = "prompt_tuning"

    def encoder(self, embedding: nn.Embedding) -> Module:
        """`PromptEmbedding`."""
        return PromptEmbedding(self.virtual_tokens, embedding.weight.shape[1])


class PromptEmbedding(Module):
    """A table of the vectors."""

    def __init__(self, tokens: int, width: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, FLOAT32)

    def forward(self, indices: Tensor) -> Tensor:
        prompt_embeddings: Tensor = self.embedding(indices)
        return prompt_embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class PTuning(PromptLearning):
    """The vectors are made of others by a network of three layers."""

    kind: ClassVar[str] = "p_tuning"
    keys: ClassVar[Mapping[str, str]] = {
        **PromptLearning.keys,
        "reparameterization": "encoder_reparameterization_type",
        "hidden": "encoder_hidden_size",
    }
    harmless: ClassVar[tuple[str, ...]] = (*PromptLearning.harmless, "encoder_dropout", "encoder_num_layers")

    hidden: int | None = None
    """Width of the network; None is the model's."""
    reparameterization: str = "mlp"
    """The kind of network."""

    def as_peft(self) -> dict[str, Any]:
        """As for every method; peft writes it in capitals."""
        return PromptLearning.as_peft(self) | {"encoder_reparameterization_type": self.reparameterization.upper()}

    def encoder(self, embedding: nn.Embedding) -> Module:
        """`PromptEncoder`."""
        if self.reparameterization != "mlp":
            raise NotModelledError(f"p-tuning by a network of {self.reparameterization}", where="adapter")
        return PromptEncoder(self.virtual_tokens, embedding.weight.shape[1], self.hidden)


class PromptEncoder(Module):
    """A table, and a network over it."""

    def __init__(self, tokens: int, width: Any, hidden: Any) -> None:
        super().__init__()
        hidden = hidden or width
        self.embedding = nn.Embedding(tokens, width, FLOAT32)
        self.first = nn.Linear(width, hidden, FLOAT32, bias=True)
        self.second = nn.Linear(hidden, hidden, FLOAT32, bias=True)
        self.third = nn.Linear(hidden, width, FLOAT32, bias=True)

    def forward(self, indices: Tensor) -> Tensor:
        input_embeds = self.embedding(indices)
        output_embeds = self._mlp_head(input_embeds)
        return output_embeds

    def _mlp_head(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = ops.relu(x)
        x = self.second(x)
        x = ops.relu(x)
        return self.third(x)  # type: ignore[no-any-return]
