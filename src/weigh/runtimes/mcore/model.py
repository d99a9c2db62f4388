"""Megatron Core's GPT model, as far as one pipeline stage of one rank has it.

Mirrors `models/gpt/gpt_model.py` and `transformer/transformer_layer.py` (Megatron Core 0.17). Tensors are (S sequence,
B batch, H hidden). Weights are named as Megatron names them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.nn import Parameter
from weigh.ghost.ops.table import apply
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.runtimes.mcore import rows
from weigh.runtimes.mcore.attention import MLASelfAttention, SelfAttention
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.runtimes.mcore.experts import MoELayer
from weigh.runtimes.mcore.layers import MLP, Norm, ParallelLinear, Setup
from weigh.techniques.checkpointing import reentrant_checkpoint


class TransformerLayer(nn.Module):
    """Attention and MLP, each added to what came in, with bias and dropout in the same kernel."""

    role = nn.BLOCK

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, number: int) -> None:
        super().__init__()
        self.dropout = setup.hidden_dropout
        self.recompute_mlp = "mlp" in setup.recompute
        latent = bool(config.kv_lora_rank)
        self.self_attention = (MLASelfAttention if latent else SelfAttention)(config, setup, dtype)
        self.mlp: nn.Module = (
            MoELayer(config, setup, dtype)
            if config.is_expert_layer(number)
            else MLP(config, setup, dtype, config.ffn_hidden_size)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        out = self.self_attention(hidden_states)
        bias = self.self_attention.linear_proj.bias
        hidden_states = apply(rows.BiasDropoutAdd, out, bias, residual, dropout=self.dropout)
        del out
        residual = hidden_states
        again = self.recompute_mlp and isinstance(self.mlp, MLP)
        out = reentrant_checkpoint(self.mlp, hidden_states) if again else self.mlp(hidden_states)
        bias = self.mlp.linear_fc2.bias if isinstance(self.mlp, MLP) else None
        return apply(rows.BiasDropoutAdd, out, bias, residual, dropout=self.dropout)  # type: ignore[no-any-return]


class LanguageModelEmbedding(nn.Module):
    """Words, cut over the tensor ranks by rows, and learned positions."""

    role = nn.EMBEDDING

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.setup = setup
        self.word_embeddings = nn.Embedding(
            config.padded_vocab_size(setup.tensor) // setup.tensor, config.hidden_size, dtype
        )
        learned = config.position_embedding_type == "learned_absolute"
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size, dtype) if learned else None
        )

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(b, s) -> (s, b, H), under sequence parallelism this rank's share of the sequence."""
        setup = self.setup
        embeddings = self.word_embeddings(input_ids)
        if self.position_embeddings is not None:
            embeddings = embeddings + self.position_embeddings(position_ids)
        batch, length, width = embeddings.shape
        if batch == 1:  # the transposed tensor is contiguous
            embeddings = embeddings.view(length, batch, width)
        else:
            embeddings = rows.exchanged(embeddings, "aten::contiguous", (length, batch, width))
        if setup.sequence_ranks > 1:
            shape = (length // setup.sequence_ranks, batch, width)
            embeddings = rows.exchanged(embeddings, "nccl::reduce_scatter", shape)
        return ops.dropout(embeddings, setup.hidden_dropout, True)


class MultiTokenPredictionLayer(nn.Module):
    """The hidden states of tokens, joined with the embeddings of the next ones, through one more layer."""

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.setup = setup
        self.enorm = Norm(config, config.hidden_size, dtype)
        self.hnorm = Norm(config, config.hidden_size, dtype)
        self.eh_proj = ParallelLinear(setup, 2 * config.hidden_size, config.hidden_size, dtype, "column")
        self.mtp_model_layer = TransformerLayer(config, setup, dtype, config.num_layers)
        self.final_layernorm = Norm(config, config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor, input_ids: Tensor, embedding: LanguageModelEmbedding) -> Tensor:
        decoder_input = self.enorm(embedding(input_ids, input_ids))
        hidden_states = ops.cat([decoder_input, self.hnorm(hidden_states)], -1)
        del decoder_input
        hidden_states = self.eh_proj(hidden_states)
        if self.setup.tensor > 1:
            *rest, width = hidden_states.shape
            hidden_states = rows.exchanged(hidden_states, "nccl::all_gather", (*rest, width * self.setup.tensor))
        if self.setup.sequence_ranks > 1:
            length = hidden_states.shape[0] // self.setup.sequence_ranks
            hidden_states = rows.exchanged(hidden_states, "aten::split", (length, *hidden_states.shape[1:]))
        return self.final_layernorm(self.mtp_model_layer(hidden_states))  # type: ignore[no-any-return]


class Stage(NamedTuple):
    """What a pipeline stage has of a model."""

    layers: range
    first: bool
    """The embedding."""
    last: bool
    """The output layer and the loss."""
    mtp: int = 0
    """Layers that predict further tokens."""


class GPTStage(nn.Module):
    """`GPTModel` of one pipeline stage: some layers, the embedding on the first, norm and output layer on the last.

    Layers that predict further tokens come with a copy of the embedding, and their logits before the model's own.
    """

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, stage: Stage, name: str) -> None:
        super().__init__()
        layers, first, last, mtp = stage
        self.config, self.setup, self.layers = config, setup, layers
        self.first, self.last, self.mtp_num_layers = first, last, mtp
        self.input_tensor: Tensor | None = None
        """What came last from the stage before, and its gradient; the next one takes its place (`set_input_tensor`)."""
        if first or mtp:
            self.embedding = LanguageModelEmbedding(config, setup, dtype)
        dense = config.num_moe_experts and min(max(config.first_dense - layers.start, 0), len(layers))
        self.decoder = nn.Stack(
            f"{name}decoder",
            len(layers),
            lambda number: TransformerLayer(config, setup, dtype, layers.start + number),
            lead=dense,
        )
        self.final_layernorm = None
        if last if not config.mtp_num_layers else layers and layers.stop == config.num_layers:
            self.final_layernorm = Norm(config, config.hidden_size, dtype)
        for number in range(mtp):
            setattr(self, f"mtp{number}", MultiTokenPredictionLayer(config, setup, dtype))
        if last:
            self.output_layer = ParallelLinear(
                setup, config.hidden_size, config.padded_vocab_size(setup.tensor), dtype, "column", own=True
            )
            if setup.defer_wgrad is not None:
                self.output_layer.deferred = rows.Deferred(setup.defer_wgrad)
            if (first or mtp) and config.share_embeddings:
                self.output_layer.weight = self.embedding.word_embeddings.weight

    def forward(self, hidden_states: Tensor | None, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Token ids (b, s) or a stage's output to this stage's output, or on the last stage the losses (s, b)."""
        if self.first:
            hidden_states = self.embedding(input_ids, input_ids)
        for layer in self.decoder:
            hidden_states = layer(hidden_states)
        assert hidden_states is not None
        if self.final_layernorm is not None:
            hidden_states = self.final_layernorm(hidden_states)
        if not self.last:
            return hidden_states
        if self.mtp_num_layers:
            hidden_states = self._with_losses_of_further_tokens(hidden_states, input_ids, labels)
        logits = self.output_layer(hidden_states)
        return apply(rows.VocabParallelLoss, logits, labels, form=self.setup.loss)  # type: ignore[no-any-return]

    def _with_losses_of_further_tokens(self, hidden_states: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
        """`process_mtp_loss`: the hidden states, whose gradient sets off those of the further tokens' losses."""
        found = [hidden_states]
        for number in range(self.mtp_num_layers):
            found.append(getattr(self, f"mtp{number}")(found[-1], input_ids, self.embedding))
        length = hidden_states.shape[0]
        hidden_states = ops.cat(found, 0)
        del found
        hidden_states, *further = hidden_states.split([length] * (1 + self.mtp_num_layers), 0)
        for each in further:
            mtp_logits = self.output_layer(each)
            mtp_loss = apply(rows.VocabParallelLoss, mtp_logits, labels, form=self.setup.loss)
            hidden_states = apply(rows.LossAutoScaler, hidden_states, mtp_loss / 1.0)
        return hidden_states


class GPTModel(CausalModel):
    """The stages that one pipeline rank has: one, or one for each virtual stage."""

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType, stages: list[Stage]):
        super().__init__()
        self.config, self.setup, self.dtype = config, setup, dtype
        self.fsdp: Any = None
        """What shares its parameters, with Megatron-FSDP."""
        for number, stage in enumerate(stages):
            name = f"chunk{number}" if len(stages) > 1 else "model"
            setattr(self, name, GPTStage(config, setup, dtype, stage, f"{name}."))

    def parameters(self) -> list[Parameter]:
        """Every parameter once; a storage that waits to be gathered has no purpose by which to find it."""
        return super().parameters() if self.fsdp is None else self.fsdp.held

    @property
    def chunks(self) -> list[GPTStage]:
        """The stages, in the order of their layers."""
        return [module for _, module in self.children() if isinstance(module, GPTStage)]
