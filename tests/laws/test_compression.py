"""A compressed stack weighs what all its blocks weigh: in levels and peaks, and written out event by event."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32
from weigh.ghost import nn, ops
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import recording
from weigh.ghost.tensor import Tensor
from weigh.kernels import kernels
from weigh.optimizers import OPTIMIZERS, kind_of
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import BACKWARD, FORWARD, Call, Trace
from weigh.trace.expand import expand
from weigh.trace.peak import breakdown, phase_peaks

ANY_TENSOR = [name for name in OPTIMIZERS if name != "muon"]
"""Optimizers that take parameters of any shape."""


def implementations(optimizer: str | None) -> tuple[str, ...]:
    return () if optimizer is None else kind_of(optimizer).implementations


quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def gpt2(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4]))
    dropout = draw(st.sampled_from([0.0, 0.1]))
    return {
        "model_type": "gpt2",
        "n_layer": draw(st.integers(1, 9)),
        "n_head": heads,
        "n_embd": heads * draw(st.sampled_from([8, 24])),
        "vocab_size": draw(st.integers(50, 300)),
        "n_positions": 64,
        "tie_word_embeddings": draw(st.booleans()),
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
    }


@st.composite
def llama(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.sampled_from([1, 2]))
    return {
        "model_type": "llama",
        "num_hidden_layers": draw(st.integers(1, 9)),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.sampled_from([1, 3])),
        "hidden_size": kv_heads * 24,
        "intermediate_size": draw(st.integers(16, 90)),
        "vocab_size": draw(st.integers(50, 300)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }


@st.composite
def deepseek_v3(draw: st.DrawFn) -> dict[str, Any]:
    """Some dense layers, then layers with experts."""
    return {
        "model_type": "deepseek_v3",
        "num_hidden_layers": draw(st.integers(1, 9)),
        "first_k_dense_replace": draw(st.integers(0, 4)),
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 8,
        "q_lora_rank": draw(st.sampled_from([None, 8])),
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "vocab_size": 90,
    }


@st.composite
def seeing(draw: st.DrawFn) -> dict[str, Any]:
    """A tower beside the language model: two stacks, of which one is not run."""
    text = draw(llama())
    width = text["hidden_size"]
    sections = {"mrope_section": [width // text["num_attention_heads"] // 2 - 1, 1]}
    tower = {"depth": draw(st.integers(1, 7)), "embed_dim": 16, "num_heads": 2, "hidden_size": width}
    clip = {"num_hidden_layers": draw(st.integers(1, 7)), "hidden_size": 16, "num_attention_heads": 2}
    cross = {"cross_attention_layers": [2, 5]}
    seen: dict[str, dict[str, Any]] = {
        "llava": {"vision_config": clip, "text_config": text},
        "mllama": {"vision_config": clip | {"image_size": 28}, "text_config": text | cross},
        "qwen2_vl": {"vision_config": tower, "text_config": text | {"rope_scaling": sections}},
    }
    family = draw(st.sampled_from(sorted(seen)))
    return {"model_type": family} | seen[family]


@st.composite
def recipes(draw: st.DrawFn) -> Training:
    mixed = draw(st.sampled_from([None, BFLOAT16, FLOAT16]))
    optimizer = draw(st.sampled_from([*ANY_TENSOR, None]))
    checkpointing = draw(st.sampled_from([None, "full", "reentrant"]))
    parts = [None, "all_but_head"]
    if checkpointing != "reentrant":  # which needs an input that wants a gradient
        parts += ["embeddings", "all_but_last_layer", "layers_first_half"]
    own_hooks = optimizer is not None and kind_of(optimizer).hooks
    in_backward = optimizer is not None and not own_hooks and draw(st.integers(0, 3)) == 0
    return Training(
        batch=draw(st.integers(1, 4)),
        sequence=draw(st.integers(2, 60)),
        dtype=FLOAT32 if mixed is not None else draw(st.sampled_from([FLOAT32, BFLOAT16])),
        autocast=mixed,
        attention=draw(st.sampled_from(["sdpa", "eager"])),
        checkpointing=checkpointing,
        optimizer=optimizer,
        implementation=draw(st.sampled_from([None, *implementations(optimizer)])),
        momentum=draw(st.sampled_from([0.0, 0.9])) if optimizer in ("sgd", "rmsprop") else 0.0,
        weight_decay=draw(st.sampled_from([None, 0.1])),
        clip=not in_backward and draw(st.booleans()),
        accumulation=1 if in_backward or own_hooks else draw(st.integers(1, 3)),
        optimizer_in_backward=in_backward,
        set_to_none=draw(st.booleans()),
        freeze=draw(st.sampled_from(parts)),
        device=draw(st.sampled_from(["cuda", "cpu"])),
        steps=draw(st.integers(1, 3)),
        labels_are_inputs=draw(st.booleans()),
        traced=draw(st.booleans()),
    )


def happenings(trace: Trace) -> list[tuple[Any, ...]]:
    """Every event; deaths that follow each other are sorted, as CPython drops a deep graph in its own order."""
    result: list[tuple[Any, ...]] = []
    deaths: list[tuple[Any, ...]] = []
    for event in trace.events:
        a = trace.allocations[abs(event) - 1]
        fact = (a.num_bytes if event > 0 else -a.num_bytes, a.op, a.path, a.purpose, a.phase, a.shape, a.dtype)
        if event < 0:
            deaths.append(fact)
            continue
        result += [*sorted(deaths), fact]
        deaths.clear()
    return result + sorted(deaths)


def facts(call: Call) -> tuple[Any, ...]:
    return call.event, call.op, call.path, call.flops, call.bytes_read, call.bytes_written


@quick
@given(config=gpt2() | llama() | deepseek_v3() | seeing(), recipe=recipes())
def test_a_compressed_run_is_the_unrolled_run(config: dict[str, Any], recipe: Training) -> None:
    short, long = run(config, recipe).trace, run(config, recipe, unroll=True).trace
    for rounded in (False, True):
        ours, theirs = phase_peaks(short, rounded), phase_peaks(long, rounded)
        assert [(p.before, p.peak, p.after) for p in ours] == [(p.before, p.peak, p.after) for p in theirs]
    for ours, theirs in zip(phase_peaks(short), phase_peaks(long), strict=True):
        by_purpose = [breakdown(t, p.moment, lambda a: a.purpose) for t, p in ((short, ours), (long, theirs))]
        assert by_purpose[0] == by_purpose[1]
        assert sum(by_purpose[0].values()) == ours.peak
    whole = expand(short)
    assert happenings(whole) == happenings(long)
    assert [e for e in whole.events if e > 0] == [e for e in long.events if e > 0]
    assert (whole.marks, whole.spans) == (long.marks, long.spans)
    assert [facts(c) for c in whole.calls] == [facts(c) for c in long.calls]


WAYS = [(name, way, False) for name in ANY_TENSOR for way in implementations(name)]
WAYS += [(name, way, True) for name, way, _ in WAYS if not kind_of(name).hooks]


@pytest.mark.parametrize(("optimizer", "implementation", "in_backward"), WAYS)
@pytest.mark.parametrize("checkpointing", [None, "full", "reentrant"])
def test_no_setting_has_to_be_unrolled(
    implementation: str, optimizer: str, in_backward: bool, checkpointing: str | None
) -> None:
    config = {"model_type": "gpt2", "n_layer": 40, "n_embd": 32, "n_head": 2, "vocab_size": 90}
    recipe = Training(
        sequence=16,
        implementation=implementation,
        optimizer=optimizer,
        optimizer_in_backward=in_backward,
        checkpointing=checkpointing,
        clip=not in_backward,
    )
    trace = run(config, recipe).trace
    assert [r.extra for r in trace.repeats] == [37]
    assert trace.num_events > 4 * len(trace.events)


def test_a_trace_without_repeats_is_its_own_expansion() -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 90}
    trace = run(config, Training(sequence=16)).trace
    assert expand(trace) is trace


def test_copies_carry_the_paths_of_their_blocks() -> None:
    config = {"model_type": "gpt2", "n_layer": 6, "n_embd": 32, "n_head": 2, "vocab_size": 90}
    trace = expand(run(config, Training(sequence=16, steps=1)).trace)
    weights = [a.path for a in trace.allocations if a.path.endswith("c_fc.weight") and a.phase == "load"]
    assert weights == [f"transformer.h.{n}.mlp.c_fc.weight" for n in range(6)]
    assert {c.path.split(".")[2] for c in trace.calls if c.path.startswith("transformer.h.")} == set("012345")


class Wide(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(8, width, FLOAT32, bias=True)
        self.down = nn.Linear(width, 8, FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(ops.gelu(self.up(x)))


class Striped(nn.Module):
    def __init__(self, length: int, period: int) -> None:
        super().__init__()
        self.first = nn.Stack("first", length, lambda n: Wide(16 + 8 * (n % period)), period)
        self.second = nn.Stack("second", length + 1, lambda n: Wide(32 + 8 * (n % period)), period)
        self.norm = nn.LayerNorm(8, FLOAT32)  # a gradient that is a tensor, not the view that a sum's is

    def forward(self, x: Tensor) -> Tensor:
        for stack in (self.first, self.second):
            for block in stack:
                x = block(x)
        return self.norm(x)


def striped(length: int, period: int) -> Trace:
    with recording(kernels("cuda")) as ledger:
        model = Striped(length, period)
        nn.name_modules(model)
        ledger.mark(FORWARD, 0)
        out = ops.sum(model(ops.zeros((3, 8), FLOAT32)), (0, 1))
        ledger.mark(BACKWARD, 0)
        out.backward()
        del out
        return ledger.trace()


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("length", [7, 8, 12, 15])
def test_stacks_whose_pattern_repeats_every_few_blocks(length: int, period: int) -> None:
    short = striped(length, period)
    with unrolled():
        long = striped(length, period)
    assert len(short.repeats) == 2 - (length // period <= 3) - ((length + 1) // period <= 3)
    assert [(p.before, p.peak, p.after) for p in phase_peaks(short)] == [
        (p.before, p.peak, p.after) for p in phase_peaks(long)
    ]
    assert happenings(expand(short)) == happenings(long)
    assert [facts(c) for c in expand(short).calls] == [facts(c) for c in long.calls]
