"""What encoder-decoders share: the encoder runs once, the decoder reads its output through cross-attention.

Labels are the target; the decoder reads them shifted by one.
"""

from __future__ import annotations

from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, CausalOutput, token_loss
from weigh.models.config import COUNTED


class SharedEmbedding(nn.Embedding):
    """An embedding whose weight is another's."""

    def __init__(self, shared: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.weight = shared.weight


def shift_tokens_right(input_ids: Tensor) -> Tensor:
    """`shift_tokens_right`: zeros, the copied slice of the labels, and the places to be filled."""
    shifted_input_ids = ops.new_zeros(input_ids)
    ops.clone(input_ids.narrow(-1, input_ids.shape[-1] - 1))
    ops.equal_to(shifted_input_ids)
    return shifted_input_ids


class EncoderDecoderModel(CausalModel):
    """A model with an encoder and a decoder, and a head over the decoder's vocabulary."""

    encoder_decoder = True
    shifts_first = True
    """The labels are shifted before the encoder runs, not after."""
    takes_positions = False

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Source ids (batch, source) to the encoder's output (batch, source, width); the mask is one of ones."""
        raise NotImplementedError

    def decode(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, cache: Cache | None) -> Tensor:
        """Target ids (batch, target) to the decoder's output (batch, target, width)."""
        raise NotImplementedError

    def scale(self, decoder_output: Tensor) -> Tensor:
        """The decoder's output as the head reads it."""
        return decoder_output

    def logits(self, sequence_output: Tensor) -> Tensor:
        """What the head reads to logits (batch, target, vocabulary)."""
        raise NotImplementedError

    def shift(self, labels: Tensor) -> Tensor:
        """What the decoder reads for these labels."""
        return shift_tokens_right(labels)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        """With labels a training step; else `input_ids` are the decoder's, and the cache has the encoder's output."""
        if attention_mask is not None or positions is not None:
            raise NotModelledError(f"padding and positions of {self.name}", hint=COUNTED)
        if labels is not None and self.shifts_first:
            decoder_input_ids = self.shift(labels)
            encoder_hidden_states = self.encode(input_ids)
        elif labels is not None:
            encoder_hidden_states = self.encode(input_ids)
            decoder_input_ids = self.shift(labels)
        elif cache is None or cache.encoder_output is None:
            raise NotModelledError(f"{self.name} without a target", hint="Generate with it, which encodes first.")
        else:
            decoder_input_ids, encoder_hidden_states = input_ids, cache.encoder_output
        decoder_output = self.decode(decoder_input_ids, encoder_hidden_states, cache)
        sequence_output = self.scale(decoder_output)
        lm_logits = self.logits(sequence_output)
        loss = None if labels is None else token_loss(lm_logits, labels)
        return CausalOutput(lm_logits, loss, cache)
