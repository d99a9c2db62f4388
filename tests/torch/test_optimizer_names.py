"""Every name of transformers' `optim` is run, or refused by its name with a reason."""

from __future__ import annotations

import pytest

from weigh.errors import NotModelledError
from weigh.jobs import hugging
from weigh.jobs.documents import Document
from weigh.jobs.job import Book
from weigh.optimizers import kind_of
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training

pytestmark = pytest.mark.torch
CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 90, "n_positions": 16}
ELSEWHERE = {"adamw_torch_xla": "TPUs", "adamw_torch_npu_fused": "Ascend"}


def names() -> list[str]:
    from transformers.training_args import OptimizerNames

    return [name.value for name in OptimizerNames]


def test_every_name() -> None:
    for name in names():
        book = Book(Document("here", {"optim": name, "max_grad_norm": 1.0}), "trainer", frozenset(), "")
        hugging.optimizer(book)
        assert not book.refused
        if name in ELSEWHERE:
            with pytest.raises(NotModelledError, match=ELSEWHERE[name]):
                kind_of(book.words["optimizer"])
            continue
        trace = run(CONFIG, make(Training, {"sequence": 8, **book.words})).trace
        assert trace.events, name
