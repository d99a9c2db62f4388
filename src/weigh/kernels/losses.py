"""Other ways to compute a causal language model's loss, from its logits or from what comes before them."""

from __future__ import annotations

from collections.abc import Callable

from weigh.errors import UnknownNameError
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.kernels import cut_cross_entropy, liger, liger_model


def shifted_loss(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Transformers before 4.50 (`loss/loss_utils.py`): logits in fp32, and a copy of them without the last position."""
    return native_loss(logits.float(), labels, vocab_size)


def rebound_loss(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Before 4.46 (`modeling_*.py`): the model said `logits = logits.float()`, which let go of its own ones."""
    upcast = logits.float()
    for slot in Tensor.__slots__:
        if slot != "__weakref__":
            setattr(logits, slot, getattr(upcast, slot))
    del upcast
    return native_loss(logits, labels, vocab_size)


def native_loss(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """The same in the logits' own dtype, as the older GPT-like families had it (`modeling_gpt_bigcode.py`, 4.48)."""
    kept = logits.shape[1] - 1
    shift_logits = logits.narrow(1, kept).contiguous()
    shift_labels = labels.narrow(1, kept).contiguous()
    return ops.cross_entropy(shift_logits.view(-1, vocab_size), shift_labels.view(-1))


LOSSES: dict[str, dict[str, Callable[..., Tensor]]] = {
    "upcast": {},
    "shifted": {"causal_lm_loss": shifted_loss},
    "rebound": {"causal_lm_loss": rebound_loss},
    "native": {"causal_lm_loss": native_loss},
    "cut": {"linear_causal_lm_loss": cut_cross_entropy.linear_causal_lm_loss},
    "liger_fused_linear": {"linear_causal_lm_loss": liger_model.linear_causal_lm_loss},
    "liger_fused_linear_early": {"linear_causal_lm_loss": liger.linear_causal_lm_loss},
}
"""The kernel sets by name; an empty one is the model's own loss."""


def loss_kernel(name: str) -> dict[str, Callable[..., Tensor]]:
    """The kernel set of a loss.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES)
    return LOSSES[name]
