"""Megatron-LM: formulas and counts that others have published, laws of its buffers and schedules, refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import pytest

import weigh
from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32
from weigh.errors import NotModelledError, UnknownNameError, UsageError, WeighError
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.runtimes import get
from weigh.runtimes.mcore.buffers import Sharing, layout
from weigh.runtimes.mcore.fsdp import bucket_layout
from weigh.runtimes.mcore.ranks import stage_peaks
from weigh.runtimes.mcore.schedules import in_flight, stages_of
from weigh.trace.events import FORWARD, LOAD, UNSHARDED
from weigh.trace.expand import expand
from weigh.trace.peak import phase_peaks

LOOP = get("megatron").loop
GPT: dict[str, Any] = {
    "model_type": "megatron_gpt",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 768,
    "vocab_size": 1000,
}
MOE = {
    **LLAMA,
    "model_type": "deepseek_v2",
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
FURTHER = {**MOE, "num_nextn_predict_layers": 1}
RECIPE = Training(
    batch=2,
    sequence=256,
    dtype=BFLOAT16,
    loss="vocab_parallel",
    accumulation=4,
    steps=2,
    compute_capability="9.0",
)


def kept_per_layer(recipe: Training) -> int:
    """Bytes that one layer more keeps from its forward pass to its backward pass."""

    def kept(layers: int) -> int:
        found = run({**GPT, "num_hidden_layers": layers}, recipe, loop=LOOP, unroll=True)
        after = {p.mark.phase: int(p.after) for p in phase_peaks(found.trace) if p.mark.round == 0}  # type: ignore[arg-type]
        return after[FORWARD] - after[LOAD]

    return kept(3) - kept(2)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("checkpointing", [None, "selective"])
def test_korthikanti_per_layer(tensor: int, sequence_parallel: bool, checkpointing: str | None) -> None:
    """arXiv 2205.05198: sbh(34 + 5as/h), over t ranks sbh(10 + 24/t + 5as/(ht)), with sequence parallelism all over t;
    selective recomputation drops 5as/h. The paper neglects the statistics of two norms: 16 bytes a token.
    """
    recipe = replace(
        RECIPE,
        dtype=FLOAT16,
        accumulation=1,
        gpus_per_node=tensor,
        tensor=tensor,
        sequence_parallel=sequence_parallel,
        checkpointing=checkpointing,
        local_layers=True,
    )
    s, b, h, a = 256, 2, 256, 8
    scores = 0 if checkpointing else 5 * a * s * s * b // tensor
    if sequence_parallel:
        expected = 34 * s * b * h // tensor + scores
        statistics = 16 * s * b // tensor
    else:
        expected = 10 * s * b * h + 24 * s * b * h // tensor + scores
        statistics = 16 * s * b
    assert kept_per_layer(recipe) == expected + statistics


def test_softmax_without_its_kernel_saves_itself_in_fp32() -> None:
    """Korthikanti's 5as/h a token of two bytes is 7as/h: four bytes of softmax instead of two."""
    recipe = replace(RECIPE, dtype=FLOAT16, accumulation=1, local_layers=True)
    plain, wide = (
        kept_per_layer(replace(recipe, masked_softmax_fusion=f, softmax_in_fp32=True)) for f in (True, False)
    )
    assert wide - plain == 2 * 8 * 256 * 256 * 2
    narrow = kept_per_layer(replace(recipe, masked_softmax_fusion=False))
    assert narrow == plain


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_micro_batches_in_flight_are_the_published_counts(stages: int) -> None:
    """arXiv 2104.04473: 1F1B keeps p - r micro-batches; interleaved, the first stage 1 + (p - 1)/(pv) times as much."""
    assert [in_flight(stages, rank, 3 * stages) for rank in range(stages)] == [stages - r for r in range(stages)]
    for chunks in (2, 3):
        assert in_flight(stages, 0, 3 * stages, chunks) == stages * chunks + stages - 1
        assert in_flight(stages, 0, 3 * stages, chunks, more=1) == stages * chunks + stages


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("bucket_size", [None, 1000])
def test_shares_over_all_ranks_are_the_parameters(ranks: int, bucket_size: int | None) -> None:
    sizes = [700, 1, 65, 4096, 33, 129] * 5
    alone = [False] * (len(sizes) - 1) + [True]
    found = [layout(sizes, alone, Sharing(ranks, rank, True, bucket_size)) for rank in range(ranks)]
    assert sum(sum(each.shares) for each in found) == sum(sizes)
    assert len({each.numel for each in found}) == 1
    assert found[0].numel % ranks == 0
    assert found[0].numel >= sum(sizes)


def test_static_bytes_a_parameter() -> None:
    """18 bytes with plain data parallelism, 6 + 12/n with the distributed optimizer over n ranks."""

    def state(shard: str | None) -> float:
        recipe = replace(RECIPE, gpus_per_node=4, shard=shard, gradient_accumulation_fusion=False)
        found = run({**GPT, "num_hidden_layers": 16}, recipe, loop=LOOP)
        workspaces = 3 * (32 << 20) + 1024
        held = int(phase_peaks(found.trace)[-1].after) - workspaces  # type: ignore[arg-type]
        parameters = sum(int(p.numel) * p.count for p in found.parameters)  # type: ignore[arg-type, call-overload]
        return held / parameters

    assert state(None) == pytest.approx(18, rel=0.005)
    assert state("distributed_optimizer") == pytest.approx(9, rel=0.005)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"shard": "distributed_optimizer", "gpus_per_node": 4, "overlap_grad_reduce": True},
    {"tensor": 2, "sequence_parallel": True, "gpus_per_node": 4},
    {"pipeline": 2, "virtual_pipeline": 2, "gpus_per_node": 2, "rank": 1},
    {"context": 2, "gpus_per_node": 2, "checkpointing": "full"},
    {"context": 4, "gpus_per_node": 4, "context_exchange": "a2a+p2p", "context_heads": 2},
    {"fp8": "tensorwise", "fp8_params": True, "shard": "distributed_optimizer", "gpus_per_node": 2},
    {"fp8": "mxfp8", "tensor": 2, "sequence_parallel": True, "gpus_per_node": 2, "compute_capability": "10.0"},
    {"checkpointing": "selective", "recompute_modules": ("layernorm", "mla_up_proj", "moe_act", "shared_experts")},
    {"checkpointing": "selective", "compute_capability": "8.0", "gradient_accumulation_fusion": False},
]


@pytest.mark.parametrize("config", [GPT, LLAMA, FURTHER], ids=["gpt", "llama", "moe"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_compressed_equals_unrolled(config: dict[str, Any], settings: dict[str, Any]) -> None:
    recipe, bigger = replace(RECIPE, **settings), {**config, "num_hidden_layers": 16}
    short, long = run(bigger, recipe, loop=LOOP), run(bigger, recipe, loop=LOOP, unroll=True)
    assert [(p.peak, p.after) for p in phase_peaks(expand(short.trace))] == [
        (p.peak, p.after) for p in phase_peaks(long.trace)
    ]


def test_everything_dies() -> None:
    found = run(LLAMA, RECIPE, loop=LOOP)
    after = [int(p.after) for p in phase_peaks(found.trace) if p.mark.phase == "step"]  # type: ignore[arg-type]
    assert after[0] == after[1]


def test_experts_are_shared_over_their_own_ranks() -> None:
    """Expert parallelism takes ranks from those that share the data: experts' states are shared over fewer."""
    recipe = replace(RECIPE, gpus_per_node=8, expert=4, shard="distributed_optimizer")
    states = []
    for rank in range(8):
        found = run(MOE, replace(recipe, rank=rank), loop=LOOP)
        main = [a for a in found.trace.allocations if a.path == "main_params"]
        states.append(sum(int(a.num_bytes) for a in main))  # type: ignore[call-overload]
    one = run(MOE, replace(RECIPE, shard="distributed_optimizer"), loop=LOOP)
    total = sum(int(a.num_bytes) for a in one.trace.allocations if a.path == "main_params")  # type: ignore[call-overload]
    assert sum(states) == total


@pytest.mark.parametrize(
    ("layout", "stages"),
    [("Et*2|(tt|)*2tL", ["Ett", "tt", "tt", "tL"]), ("E|t*8,|L", ["E", "tttttttt", "L"]), ("(Et|)*1mL", ["Et", "mL"])],
)
def test_layouts_say_the_layers_of_each_stage(layout: str, stages: list[str]) -> None:
    assert stages_of(layout) == stages


def test_uneven_stages_hold_what_even_ones_do_in_all() -> None:
    """Layers move between stages, and no parameter is lost; the loss alone can be a stage."""

    def parameters(layout: str | None, rank: int) -> int:
        recipe = replace(RECIPE, pipeline=4, gpus_per_node=4, rank=rank, pipeline_layout=layout)
        return sum(int(p.numel) * p.count for p in run(LLAMA, recipe, loop=LOOP).parameters)  # type: ignore[arg-type, call-overload]

    even = [parameters(None, rank) for rank in range(4)]
    uneven = [parameters("Et|t*4|t*3|L", rank) for rank in range(4)]
    layer = even[1] // 2
    assert uneven == [even[0] - layer, even[1] + 2 * layer, even[2] + layer, even[3] - 2 * layer]


def test_a_layout_says_how_many_virtual_stages_there_are() -> None:
    """As many as it has for each rank, as if they had been stated."""
    recipe = replace(RECIPE, pipeline=2, gpus_per_node=2, pipeline_layout="Et|t*2|t*2|t*3L")
    said = replace(recipe, virtual_pipeline=2)
    traces = [run(LLAMA, r, loop=LOOP).trace for r in (recipe, said)]
    assert phase_peaks(traces[0]) == phase_peaks(traces[1])
    assert stage_peaks(LLAMA, recipe) == stage_peaks(LLAMA, said)


def test_deferred_gradients_of_the_output_layer_wait() -> None:
    """Each waiting micro-batch keeps the gradient of its logits, in 16 bits."""

    def peak(deferred: int | None) -> int:
        settings: dict[str, Any] = {"pipeline": 2, "gpus_per_node": 2, "rank": 1, "defer_embedding_wgrad": deferred}
        found = run({**LLAMA, "vocab_size": 64_000}, replace(RECIPE, **settings), loop=LOOP)
        return max(int(p.peak) for p in phase_peaks(found.trace) if p.mark.round == 0)  # type: ignore[arg-type]

    logits = 2 * 256 * 64_000 * 2
    assert peak(2) - peak(1) == pytest.approx(logits, rel=0.02)
    assert peak(0) == peak(4) > peak(2) > peak(None)  # the last one's is there anyway


def test_replicas_share_states_among_fewer_ranks() -> None:
    recipe = replace(RECIPE, gpus_per_node=8, shard="distributed_optimizer")
    states = []
    for replicas in (1, 2):
        found = run(GPT, replace(recipe, replicas=replicas), loop=LOOP)
        main = [a for a in found.trace.allocations if a.path == "main_params"]
        states.append(sum(int(a.num_bytes) for a in main))  # type: ignore[call-overload]
    assert states[1] == pytest.approx(2 * states[0], rel=0.01)


def test_gradients_in_bf16_are_copied_to_fp32_for_the_step() -> None:
    recipe = replace(RECIPE, gpus_per_node=4, shard="distributed_optimizer")
    plain, halved = (run(GPT, replace(recipe, grad_reduce_in_bf16=b), loop=LOOP).trace for b in (False, True))
    buffers = [sum(int(a.num_bytes) for a in t.allocations if a.path == "grad_data") for t in (plain, halved)]  # type: ignore[call-overload]
    assert buffers[0] == 2 * buffers[1]
    assert {a.path for a in halved.allocations} - {a.path for a in plain.allocations} == {"main_grads"}


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_buckets_of_megatron_fsdp_hold_each_parameter_once(ranks: int) -> None:
    """Tensors lie apart, shares add up, and every rank's share begins at a row."""
    shapes = [(64,), (192, 64), (64, 256), (256, 64), (256,), (16,), (16,)]
    starts, numel = bucket_layout(shapes, ranks)
    covered = sorted((start, start + prod(shape)) for start, shape in zip(starts, shapes, strict=True))
    assert all(stop <= start for (_, stop), (start, _) in pairwise(covered))
    assert covered[-1][1] <= numel
    assert numel % (ranks * 256) == 0


def test_megatron_fsdp_shares_what_its_strategy_says() -> None:
    """Between steps: 2 + 4 + 12/n bytes a parameter, 2 + 16/n, 18/n; the gathered layers come and go."""
    ranks, layers = 4, 16
    recipe = replace(RECIPE, gpus_per_node=ranks, shard="megatron_fsdp", warm=True, gradient_accumulation_fusion=False)
    workspaces = 3 * (32 << 20) + 1024
    for strategy, bytes_each in (
        ("optim", 6 + 12 / ranks),
        ("optim_grads", 2 + 16 / ranks),
        ("optim_grads_params", 18 / ranks),
    ):
        found = run({**GPT, "num_hidden_layers": layers}, replace(recipe, sharding_strategy=strategy), loop=LOOP)
        parameters = sum(int(p.numel) * p.count for p in found.parameters)  # type: ignore[arg-type, call-overload]
        after = [int(p.after) for p in phase_peaks(found.trace) if p.mark.phase == "step"]  # type: ignore[arg-type]
        assert after[0] == after[1]
        assert (after[0] - workspaces) / parameters == pytest.approx(bytes_each, rel=0.005)
        gathered = [a for a in found.trace.allocations if a.purpose == UNSHARDED]
        assert bool(gathered) == (strategy == "optim_grads_params")


def test_megatron_fsdp_gathers_a_layer_for_each_pass() -> None:
    """Once for a forward pass and once for its backward pass; what is outside of layers once a step."""
    recipe = replace(RECIPE, gpus_per_node=4, shard="megatron_fsdp", warm=True, gradient_accumulation_fusion=False)
    found = run({**GPT, "num_hidden_layers": 4}, replace(recipe, steps=1), loop=LOOP)
    sizes = Counter(int(a.num_bytes) for a in found.trace.allocations if a.purpose == UNSHARDED)  # type: ignore[call-overload]
    assert sorted(sizes.values()) == [1, 4 * 2 * recipe.accumulation]


def test_fp8_keeps_inputs_in_one_byte_and_weights_in_two_directions() -> None:
    """Of a layer's 34 sbh, the inputs of its four products: 2 + 0 + 2 + 8 become 1 + 1 + 1 + 4, for what attention
    keeps is its output, not the product's input. Weights, 12hh, have a workspace of two bytes, and four scales.
    """
    s, b, h = 256, 2, 256
    recipe = replace(RECIPE, accumulation=1)
    less = kept_per_layer(recipe) - kept_per_layer(replace(recipe, fp8="tensorwise"))
    assert less == 5 * s * b * h - (2 * 12 * h * h + 4 * 4)
    blackwell = replace(recipe, compute_capability="10.0")
    rows_only = kept_per_layer(blackwell) - kept_per_layer(replace(blackwell, fp8="tensorwise"))
    assert rows_only == 5 * s * b * h - (12 * h * h + 4 * 4) - 4 * 4  # the rows are what is kept, with their scales


def test_mxfp8_adds_a_scale_for_32_elements() -> None:
    recipe = replace(RECIPE, accumulation=1, compute_capability="10.0")
    more = kept_per_layer(replace(recipe, fp8="mxfp8")) - kept_per_layer(replace(recipe, fp8="tensorwise"))
    s, b, h = 256, 2, 256
    assert more == 12 * h * h + (7 * s * b * h + 2 * 12 * h * h) // 32 - 8 * 4


@pytest.mark.parametrize("shard", [None, "distributed_optimizer"])
def test_fp8_weights_are_one_byte_and_get_their_columns_in_the_first_step(shard: str | None) -> None:
    def after(config: dict[str, Any], fp8_params: bool) -> tuple[int, int]:
        settings: dict[str, Any] = {"fp8": "tensorwise", "fp8_params": fp8_params, "shard": shard, "gpus_per_node": 2}
        found = run(config, replace(RECIPE, **settings), loop=LOOP, unroll=True)
        phases = [p for p in phase_peaks(found.trace) if p.mark.phase in (LOAD, "step")]
        return int(phases[0].after), int(phases[-1].after)  # type: ignore[arg-type]

    products = 12 * 256 * 256 * 8
    plain, primary = after(GPT, False), after(GPT, True)
    assert plain[0] - primary[0] == pytest.approx(products, rel=0.001)
    # between steps: rows and columns beside 16 bits, or columns beside 8
    assert plain[1] - primary[1] == pytest.approx(2 * products, rel=0.001)


def test_user_buffers_hold_what_tensor_ranks_exchange() -> None:
    """Whole sequences are outside of PyTorch's allocator; three streams' workspaces are in it."""
    recipe = replace(RECIPE, gpus_per_node=2, tensor=2, sequence_parallel=True, accumulation=1)
    gathered = []
    for overlapped in (False, True):
        found = run(LLAMA, replace(recipe, overlap_tensor_communication=overlapped), loop=LOOP)
        ops = Counter(a.op for a in found.trace.allocations)
        gathered.append(
            (ops["nccl::all_gather"], sum(a.num_bytes for a in found.trace.allocations if "cublas_w" in a.op))
        )  # type: ignore[misc]
    assert gathered[0][0] > 0 == gathered[1][0]
    assert gathered[1][1] - gathered[0][1] == 3 * ((32 << 20) + 1024)


@pytest.mark.parametrize("chunks", [1, 2])
def test_what_came_last_from_the_stage_before_stays_with_its_gradient(chunks: int) -> None:
    """`set_input_tensor` keeps it on each chunk until the next one comes."""
    settings: dict[str, Any] = {"pipeline": 2, "virtual_pipeline": chunks, "gpus_per_node": 2, "rank": 1}
    trace = expand(run(GPT, replace(RECIPE, **settings), loop=LOOP).trace)
    live = set(trace.events) - {-event for event in trace.events if event < 0}
    kept = [trace.allocations[event - 1] for event in live if event > 0]
    received = [a for a in kept if a.shape == (256, 2, 256) and a.dtype == "bf16"]
    assert sorted(a.op == "nccl::recv" for a in received) == [False] * chunks + [True] * chunks


def test_layers_that_predict_further_tokens() -> None:
    """On the last stage: one more layer, a product of 2h by h, three norms, and a copy of the embedding; the logits of
    either kind are saved in fp32.
    """
    recipe = replace(RECIPE, pipeline=2, gpus_per_node=2, rank=1, accumulation=1)
    further = {**LLAMA, "num_nextn_predict_layers": 1}
    h, vocabulary, layers = 256, 1024, 4
    runs = [run(config, recipe, loop=LOOP, unroll=True) for config in (LLAMA, further)]
    plain, more = (sum(int(p.numel) * p.count for p in r.parameters) for r in runs)  # type: ignore[arg-type, call-overload]
    layer = (plain - vocabulary * h - h) // layers
    assert more - plain == layer + 2 * h * h + 3 * h + vocabulary * h
    saved = [[a for a in r.trace.allocations if a.dtype == "fp32" and a.shape == (256, 2, vocabulary)] for r in runs]
    assert len(saved[1]) == 2 * len(saved[0]) > 0
    first = [run(config, replace(recipe, rank=0), loop=LOOP).parameters for config in (LLAMA, further)]
    assert len(first[0]) == len(first[1])


@pytest.mark.parametrize("config", [GPT, LLAMA, {**FURTHER, "first_k_dense_replace": 2}], ids=["gpt", "llama", "moe"])
@pytest.mark.parametrize("settings", [{}, {"checkpointing": "selective", "fp8": "tensorwise"}, {"accumulation": 3}])
def test_peaks_of_all_stages_are_those_of_running_each(config: dict[str, Any], settings: dict[str, Any]) -> None:
    recipe = replace(
        RECIPE, **{"pipeline": 4, "gpus_per_node": 8, "accumulation": 6, "attention_dropout": 0.0} | settings
    )
    found = stage_peaks(config, recipe)
    for each in found:
        phases = phase_peaks(run(config, replace(recipe, rank=each.rank), loop=LOOP).trace, rounded=True)
        assert each.peak == max(int(p.peak) for p in phases if p.mark.round == 1 and p.mark.phase != "step")  # type: ignore[arg-type]
    assert [each.in_flight for each in found] == [min(recipe.accumulation, 4 - stage) for stage in range(4)]


def test_peaks_of_virtual_stages_come_from_four_groups_of_micro_batches() -> None:
    recipe = replace(RECIPE, pipeline=2, virtual_pipeline=2, gpus_per_node=2, accumulation=12)
    for each in stage_peaks(LLAMA, recipe):
        phases = phase_peaks(run(LLAMA, replace(recipe, rank=each.rank), loop=LOOP).trace, rounded=True)
        assert each.peak == max(int(p.peak) for p in phases if p.mark.round == 1)  # type: ignore[arg-type]


def test_the_report_names_the_worst_stage() -> None:
    settings: dict[str, Any] = {"pipeline": 4, "gpus_per_node": 4, "accumulation": 8, "batch": 1, "sequence": 512}
    report = weigh.train(LLAMA, runtime="megatron", **settings)
    peaks = [stage["peak_bytes"] for stage in report.as_dict()["stages"]]
    assert len(peaks) == 4
    assert peaks[0] == report.steady_state
    assert f"stage {peaks.index(max(peaks))} (rank" in report.text()
    assert "forward x" in report.text()
    assert weigh.train(LLAMA, runtime="megatron", batch=1, sequence=512).as_dict()["stages"] == []


def test_recomputed_modules_drop_what_they_make() -> None:
    """Bytes that a layer of latent attention and experts keeps less, from shapes: outputs of norms that projections
    saved; queries, keys, values and the normed latents; the experts' activation; the dense MLP; the layer of experts.
    """
    s, b, h, topk, width = 256, 2, 256, 2, 128
    tokens, heads = s * b, 8
    recipe = replace(RECIPE, accumulation=1, checkpointing="selective", token_dispatcher="alltoall")

    def kept(*modules: str, dense: int = 0) -> int:
        config = {**MOE, "num_hidden_layers": 4, "first_k_dense_replace": dense}
        settings: dict[str, Any] = {"recompute_modules": modules} if modules else {"checkpointing": None}
        found = run(config, replace(recipe, **settings), loop=LOOP, unroll=True)
        after = {p.mark.phase: int(p.after) for p in phase_peaks(found.trace) if p.mark.round == 0}  # type: ignore[arg-type]
        return (after[FORWARD] - after[LOAD]) // 4

    plain = kept()
    statistics = 4 * tokens
    assert plain - kept("layernorm") == 2 * (2 * tokens * h + statistics)
    queries_keys_values = 2 * tokens * heads * (48 + 48 + 32)
    normed = 2 * tokens * (64 + 32) + 2 * statistics
    rotated = 2 * tokens * 16  # the latents are inputs now: whole, with the rotated part, instead of a copy without
    assert plain - kept("mla_up_proj") == queries_keys_values + normed - rotated
    assert plain - kept("moe_act") == 2 * tokens * topk * width
    assert plain - kept("shared_experts") == 2 * tokens * 3 * width
    dense = kept(dense=4)
    assert dense - kept("mlp", dense=4) == 2 * tokens * (h + 3 * 768) + statistics
    assert kept("moe") < kept("moe_act", "shared_experts") < plain
    assert kept("core_attn") < plain


@pytest.mark.parametrize(
    "modules", [("layernorm", "mla_up_proj", "moe_act"), ("mlp", "moe"), ("core_attn", "mla_up_proj")]
)
def test_recomputing_is_over_when_the_step_is(modules: tuple[str, ...]) -> None:
    """Nothing more is left between steps, and gradients of all parameters come."""
    plain = run(MOE, RECIPE, loop=LOOP).trace
    again = run(MOE, replace(RECIPE, checkpointing="selective", recompute_modules=modules), loop=LOOP).trace
    ends = [[int(p.after) for p in phase_peaks(t) if p.mark.phase == "step"] for t in (plain, again)]  # type: ignore[arg-type]
    assert ends[0] == ends[1]


def test_precision_aware_states_are_two_bytes_and_the_moments() -> None:
    """16 bits of each parameter's fp32 copy stand in itself; moments have dtypes of their own; gradients none."""
    recipe = replace(RECIPE, gpus_per_node=4, shard="distributed_optimizer", grad_reduce_in_bf16=True)
    held = []
    for settings in ({}, {"precision_aware_optimizer": True, "exp_avg_dtype": BFLOAT16}):
        found = run(GPT, replace(recipe, **settings), loop=LOOP)  # type: ignore[arg-type]
        after = {p.mark.phase: int(p.after) for p in phase_peaks(found.trace)}  # type: ignore[arg-type]
        held.append((after[LOAD], after["step"]))
    shares = sum(int(p.numel) * p.count for p in found.parameters) / 4  # type: ignore[arg-type, call-overload]
    assert held[0][0] - held[1][0] == pytest.approx(4 * shares, rel=0.001)
    # between steps: 4 + 4 + 4, and 4 for gradients that were copied, against 2 + 2 + 4
    assert held[0][1] - held[1][1] == pytest.approx((16 - 8) * shares, rel=0.001)


ROUTED: dict[str, Any] = {**GPT, "mlp_bias": False, "attention_bias": False, "n_routed_experts": 8} | {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
}


def test_muon_keeps_one_momentum_for_matrices() -> None:
    """4 bytes less for each matrix, learned positions too; words, output, norms and biases keep Adam's moments."""
    adam, muon = (run(ROUTED, replace(RECIPE, optimizer=name), loop=LOOP) for name in ("adamw", "muon"))
    after = [int(phase_peaks(r.trace)[-1].after) for r in (adam, muon)]  # type: ignore[arg-type]
    matrices = sum(
        int(p.numel) * p.count  # type: ignore[call-overload]
        for p in adam.parameters
        if p.tensor.ndim > 1 and not {"word_embeddings", "output_layer"} & set(p.place)
    )
    assert after[0] - after[1] == 4 * matrices > 0


def kept(recipe: Training) -> tuple[int, int]:
    """Bytes after loading, and what the first forward pass adds."""
    found = run(ROUTED, replace(recipe, accumulation=1), loop=LOOP, unroll=True)
    after = {p.mark.phase: int(p.after) for p in phase_peaks(found.trace) if p.mark.round == 0}  # type: ignore[arg-type]
    return after[LOAD], after[FORWARD] - after[LOAD]


@pytest.mark.parametrize("settings", [{}, {"tensor": 2, "sequence_parallel": True, "expert_tensor": 1, "expert": 4}])
@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather"])
def test_experts_one_by_one_keep_what_a_grouped_product_keeps(settings: dict[str, Any], dispatcher: str) -> None:
    """The same inputs, and four workspaces less."""
    recipe = replace(RECIPE, gpus_per_node=4, token_dispatcher=dispatcher, **settings)
    grouped, alone = kept(recipe), kept(replace(recipe, grouped_experts=False))
    assert grouped[0] == alone[0]
    assert grouped[1] - alone[1] == 4 * ((32 << 20) + 1024)


def test_weights_of_tokens_are_in_the_dtype_of_the_router() -> None:
    """fp32 where it says so: probabilities of each layer, and weights of the chosen tokens, 2 bytes more each."""
    tokens, chosen, layers = 2 * 256, 2, 8
    more = kept(replace(RECIPE, router_dtype=FLOAT32))[1] - kept(RECIPE)[1]
    assert more == layers * tokens * chosen * 2


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"tensor": 3, "gpus_per_node": 3}, UsageError),
        ({"pipeline": 3, "gpus_per_node": 3}, UsageError),
        ({"expert": 2, "gpus_per_node": 2}, UsageError),
        ({"virtual_pipeline": 2}, UsageError),
        ({"rank": 1}, UsageError),
        ({"pipeline": 2, "gpus_per_node": 2, "pipeline_layout": "Et*9|L"}, UsageError),
        ({"pipeline": 2, "gpus_per_node": 2, "pipeline_layout": "Et*4|xt*4L"}, UsageError),
        ({"defer_embedding_wgrad": 0}, UsageError),
        ({"context": 4, "gpus_per_node": 4, "context_exchange": "a2a+p2p"}, UsageError),
        ({"fp8_params": True}, UsageError),
        ({"precision_aware_optimizer": True}, UsageError),
        ({"optimizer": "muon", "shard": "distributed_optimizer"}, NotModelledError),
        ({"recompute_modules": ("mlps",)}, UnknownNameError),
        ({"fp8": "mxfp8", "fp8_params": True}, NotModelledError),
        ({"fp8": "delayed", "local_layers": True}, NotModelledError),
        ({"shard": "megatron_fsdp", "pipeline": 2, "gpus_per_node": 4}, NotModelledError),
        ({"shard": "fsdp2", "gpus_per_node": 2}, NotModelledError),
        ({"loss": "upcast"}, NotModelledError),
        ({"optimizer": "sgd"}, NotModelledError),
        ({"autocast": BFLOAT16}, NotModelledError),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], error: type[WeighError]) -> None:
    with pytest.raises(error):
        run(LLAMA, replace(RECIPE, **settings), loop=LOOP)


@pytest.mark.parametrize("settings", [{"sequence_parallel": True}, {"shard": "distributed_optimizer"}], ids=str)
def test_its_settings_are_refused_elsewhere(settings: dict[str, Any]) -> None:
    with pytest.raises(NotModelledError):
        weigh.train(LLAMA, **settings)


def test_the_door() -> None:
    report = weigh.train(
        "llama-2-7b", runtime="megatron", tensor=4, pipeline=2, gpus_per_node=8, sequence_parallel=True
    )
    assert "megatron" in report.text()
    components = report.memory.by_component()
    assert components["attention"] > 0 < components["mlp"]
