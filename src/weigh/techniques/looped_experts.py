"""Experts as modules of their own, one by one, as transformers 4 had them (`MixtralBlockSparseTop2MLP`).

What changes linear layers, as quantization does, finds theirs only so.
"""

from __future__ import annotations

from collections.abc import Iterator

from weigh.errors import NotModelledError, WeighError
from weigh.ghost import nn
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.models.experts import Experts, one_by_one
from weigh.records import dataclass
from weigh.techniques import Technique


@dataclass(frozen=True, slots=True)
class LoopedExperts(Technique):
    """Put a list of experts in the place of all experts in two tensors."""

    def apply(self, model: Module) -> None:
        """Raises `WeighError` where there are none, `NotModelledError` where they have biases."""
        found = 0
        for parent in list(model.modules()):
            for name, child in list(parent.children()):
                if not isinstance(child, Experts):
                    continue
                if child.has_bias or child.is_transposed:
                    raise NotModelledError("experts with biases, one by one", where="looped_experts")
                with inside_unit(child.down_proj.storage.unit):
                    setattr(parent, name, ExpertList(child))
                found += 1
        if not found:
            raise WeighError("there are no experts to run one by one", where="looped_experts", hint="Leave it out.")
        name_modules(model)


class Expert(Module):
    """`MixtralBlockSparseTop2MLP`."""

    role = nn.MLP

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        _, width, inner = experts.down_proj.shape
        self.active_share = experts.active_share
        self.w1 = nn.Linear(width, inner, experts.down_proj.dtype)
        self.w2 = nn.Linear(inner, width, experts.down_proj.dtype)
        self.w3 = nn.Linear(width, inner, experts.down_proj.dtype)
        self.act_fn = experts.act_fn

    def forward(self, hidden_states: Tensor) -> Tensor:
        current_hidden_states = self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states)
        current_hidden_states = self.w2(current_hidden_states)
        return current_hidden_states  # type: ignore[no-any-return]


class ExpertList(Module):
    """`MixtralSparseMoeBlock.experts`, and the loop over them."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = tuple(Expert(experts) for _ in range(experts.num_experts))

    def children(self) -> Iterator[tuple[str, Module]]:
        """The experts, by number."""
        for number, expert in enumerate(self.experts):
            yield str(number), expert

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        def expert(number: int, current_state: Tensor) -> Tensor:
            return self.experts[number](current_state)  # type: ignore[no-any-return]

        return one_by_one(expert, len(self.experts), hidden_states, top_k_index, top_k_weights)
