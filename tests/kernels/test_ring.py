"""Ring attention beside recorded runs of PyTorch's own, and sequences that devices share."""

import json
from pathlib import Path
from typing import Any

import pytest

import weigh
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError, UsageError
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import no_grad, recording
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels import kernels
from weigh.kernels.ring import shared_attention
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.peak import phase_peaks

ROWS = [
    json.loads(line) for line in (Path(__file__).parent.parent / "data/ring_attention.jsonl").read_text().splitlines()
]
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 128,
    "intermediate_size": 144,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def births(ledger: Ledger, start: int) -> list[int]:
    level, found = 0, []
    for number, event in enumerate(ledger.events):
        level += ledger.allocations[abs(event) - 1].num_bytes * (1 if event > 0 else -1)  # type: ignore[assignment,operator]
        if number >= start and event > 0:
            found.append(level)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['method']}-{r['rank']}of{r['ranks']}")
def test_every_birth_is_that_of_the_real_ring(row: dict[str, Any]) -> None:
    """The recorded levels begin at what lives before: queries, keys and values, then the results and a gradient."""
    plain = kernels("cuda", None, True)
    rows = shared_attention(row["method"], row["ranks"], row["rank"], plain)
    with recording(plain | rows, traced=True) as ledger, no_grad():

        def made(heads: int) -> Tensor:
            return empty((1, row["length"], heads, row["width"]), BFLOAT16, "input").transpose(1, 2)

        query, key, value = made(row["heads"]), made(row["kv_heads"]), made(row["kv_heads"])
        start = len(ledger.events)
        ring = rows["aten::_scaled_dot_product_flash_attention"]
        outputs = ring.forward(None, query, key, value, causal=True)
        assert births(ledger, start) == row["forward"]
        grad = made(row["heads"])
        start = len(ledger.events)
        ring.backward_row.forward(None, grad, query, key, value, causal=True)
        assert births(ledger, start) == row["backward"]
        del outputs


@pytest.mark.parametrize(
    ("method", "rank", "copies"), [("allgather", 0, 1), ("alltoall", 3, 0), ("allgather", 3, 0), ("ulysses", 0, 1)]
)
def test_shared_sequences_keep_what_pieces_of_them_keep(method: str, rank: int, copies: int) -> None:
    """And each layer's output once more, where it is put together of pieces and has to be copied into rows."""
    how: dict[str, Any] = {"batch": 2, "dtype": BFLOAT16, "gpus_per_node": 4, "shard": "fsdp2", "rank": rank}
    shared = Training(sequence=512, context=4, context_method=method, **how)
    forward, alone = (phase_peaks(run(LLAMA, r).trace)[-3] for r in (shared, Training(sequence=128, **how)))
    ids = 2 * 2 * (512 - 128) * 8  # the batch's storages stay as long as they came
    assert forward.after - alone.after == ids + copies * LLAMA["num_hidden_layers"] * 2 * 128 * 128 * 2
    assert forward.peak > alone.peak
    short, long = (phase_peaks(run(LLAMA, shared, unroll=unroll).trace) for unroll in (False, True))
    assert [p.peak for p in short] == [p.peak for p in long]


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="3 devices do not share 512 tokens"):
        weigh.train(LLAMA, sequence=512, dtype="bf16", context=3, gpus_per_node=3)
    with pytest.raises(NotModelledError, match="another kernel than FlashAttention"):
        weigh.train(LLAMA, sequence=512, dtype="fp32", context=2, gpus_per_node=2)
    with pytest.raises(UsageError, match="6 ranks do not divide 8 heads"):
        weigh.train(LLAMA, sequence=768, dtype="bf16", context=6, gpus_per_node=6, context_method="ulysses")
