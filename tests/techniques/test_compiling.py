"""What compiled code keeps, beside the real partitioner's choice; and when its buffers live."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh import runtimes
from weigh.dtypes import INT64, get
from weigh.errors import NotModelledError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import recording
from weigh.kernels import kernels
from weigh.models import build
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.techniques.compiling import Region
from weigh.techniques.compiling.lowering import Kernel
from weigh.techniques.compiling.min_cut import Network
from weigh.techniques.compiling.partition import Joint
from weigh.techniques.compiling.tracing import trace
from weigh.trace.peak import phase_peaks

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data/compiled.jsonl").read_text().splitlines()]
LLAMA, GPT2 = ROWS[3]["config"], ROWS[0]["config"]


def region(row: dict[str, Any]) -> Region:
    with unrolled(), recording(kernels("cuda")):
        model = build(row["config"], get(row["dtype"]), "row", to_run=True)
        ids = [ops.input_tensor((row["batch"], row["sequence"]), INT64) for _ in range(2)]

        def step(*given: Any) -> list[Any]:
            with autocast(get(row["autocast"]) if "autocast" in row else None):
                out = model(*given)
            return [out.loss, out.logits]

        joint: Joint = trace(step, ids)[0]
        return Region(joint)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['config']['model_type']}-{r['dtype']}-{r['sequence']}")
def test_what_is_kept_is_what_the_real_partitioner_keeps(row: dict[str, Any]) -> None:
    found = region(row)
    mine = Counter(str([n.dtype.name, list(n.shape)]) for n in found.saved if n.op != "input" and n.dtype)
    assert mine == Counter(str(storage) for storage in row["kept"])
    check_lives(found.forward, set(found.inputs))
    check_lives(found.backward, {*found.saved, *found.inputs, *found.tangents})


def check_lives(launched: list[Kernel], alive: set[Any]) -> None:
    """Every kernel reads what is there, and nothing dies twice."""
    for kernel in launched:
        assert alive.issuperset(kernel.reads), kernel.name
        alive.update(kernel.writes)
        for over in kernel.over.values():
            alive.remove(over)
        for dead in kernel.frees:
            alive.remove(dead)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.data())
def test_the_cut_is_a_cheapest_one_and_the_nearest_to_the_sink(inner: int, data: st.DataObject) -> None:
    size = inner + 2
    pairs = [(a, b) for a in range(size) for b in range(size) if a != b and b != 0 and a != 1]
    edges = {pair: data.draw(st.integers(0, 4)) for pair in pairs}
    network = Network(size)
    for (tail, head), capacity in edges.items():
        network.add(tail, head, capacity)

    def price(before: set[int]) -> int:
        return sum(c for (a, b), c in edges.items() if a in before and b not in before)

    others = range(2, size)
    sides = [{0, *chosen} for count in range(inner + 1) for chosen in combinations(others, count)]
    cheapest = min(map(price, sides))
    found = network.before_the_cut(0, 1)
    assert price(found) == cheapest
    assert all(side <= found for side in sides if price(side) == cheapest)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_compiled_code_keeps_less_and_leaves_what_eager_code_leaves(config: dict[str, Any]) -> None:
    recipe = Training(batch=4, sequence=64, dtype=get("bf16"), steps=2)
    eager = phase_peaks(run(config, recipe, unroll=True).trace)
    compiled = phase_peaks(run(config, replace(recipe, compile=True), unroll=True).trace)
    for plain, fused in zip(eager, compiled, strict=True):
        assert fused.mark.phase == plain.mark.phase
        if plain.mark.phase == "forward":
            assert fused.after < plain.after
        if plain.mark.phase == "step":
            assert fused.after == plain.after


@pytest.mark.parametrize("program", ["torchtune", "torchtitan"])
def test_blocks_compiled_one_by_one_are_alike(program: str) -> None:
    config = {**LLAMA, "num_hidden_layers": 6, "max_position_embeddings": 64}
    recipe = Training(batch=2, sequence=64, dtype=get("bf16"), compile=True)
    loop = runtimes.get(program).loop
    short, long = (run(config, recipe, unroll=whole, loop=loop) for whole in (False, True))
    assert len(short.trace.events) < len(long.trace.events)
    assert [p.peak for p in phase_peaks(short.trace)] == [p.peak for p in phase_peaks(long.trace)]


def test_compiled_code_that_evaluates_keeps_nothing() -> None:
    """Sums along the residual stream wait for a few of their parts, and no longer: four layers need what eight do."""
    recipe = Training(batch=4, sequence=64, dtype=get("bf16"), compile=True)
    above = []
    for layers in (4, 8):
        phases = phase_peaks(run({**LLAMA, "num_hidden_layers": layers}, recipe, unroll=True, evaluate=True).trace)
        above.append(phases[-1].peak - phases[-3].after)
        assert phases[-1].after == phases[-3].after
    assert above[0] == above[1] > 0


def test_what_is_not_described_is_refused_by_name() -> None:
    with pytest.raises(NotModelledError, match="topk in compiled code"):
        weigh.train("mixtral-8x7b", compile=True, sequence=16)
    with pytest.raises(NotModelledError, match="compiled code around checkpoints"):
        weigh.train("gpt2", compile=True, checkpointing="full")
    with pytest.raises(NotModelledError, match="one compiled function on several devices"):
        weigh.train("gpt2", compile=True, gpus_per_node=2)
