"""llama.cpp: buffers against what its own loader and scheduler print, and laws of its placement.

`llama_cpp_buffers.jsonl` was printed by libllama of llama-cpp-python 0.3.16, 0.3.20 and 0.3.24, built here, that loaded
files with the headers of these models onto devices that answer as CUDA's do and hold nothing. Sizes are in MiB to two
places, as it prints them.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import weigh
from weigh import api, dtypes, models
from weigh.errors import NotModelledError, UsageError
from weigh.formats.gguf import predict
from weigh.ghost.state import recording
from weigh.runtimes.llama_cpp import ggml
from weigh.runtimes.llama_cpp.allocator import Arena, BufferType, lives
from weigh.runtimes.llama_cpp.batch import Sizes
from weigh.runtimes.llama_cpp.compute import Compute, batches, compute_buffers, output_buffer, reserve
from weigh.runtimes.llama_cpp.placement import Gguf, How, Placement, gguf_of
from weigh.runtimes.llama_cpp.releases import NEWER, OLDER
from weigh.runtimes.llama_cpp.stack import whole
from weigh.runtimes.llama_cpp.styles import STYLES

PRINTED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/llama_cpp_buffers.jsonl").read_text(encoding="utf-8").splitlines()
]
MIB = 2**20


@cache
def gguf(name: str, file_type: str) -> Gguf:
    """A model of the catalogue, or of a config as JSON."""
    if name.startswith("{"):
        config = json.loads(name)
        with recording():
            model = models.build(config, dtypes.BFLOAT16, "config")
    else:
        source = api.model(name)
        config, model = source.config, api.ghost(source)
    text = models.language_config(config)
    return gguf_of(predict(text, model, file_type), model.cache_layout(), text)


def how(row: dict[str, Any]) -> How:
    words = dict(row["how"], release=tuple(int(part) for part in row["release"].split("-")))
    if "overrides" in words:
        words["overrides"] = tuple((pattern, buffer) for pattern, buffer in words["overrides"])
    if "repack" in words:
        words["repack"] = frozenset(words["repack"])
    if "tensor_split" in words:
        words["tensor_split"] = tuple(words["tensor_split"])
    return How(**words)


def placed(row: dict[str, Any]) -> Placement:
    name = row["model"] if isinstance(row["model"], str) else json.dumps(row["model"])
    return Placement(gguf(name, row["file_type"]), how(row))


def label(row: dict[str, Any]) -> str:
    name = row["model"] if isinstance(row["model"], str) else row["model"]["model_type"]
    return f"{name}-{row['file_type']}-{row['release']}-{row['words'].replace('--devs ', '').replace(' ', '')}"


def compare(mine: dict[str, int], printed: dict[str, float]) -> None:
    """To the printed digits, or the next; buffers too small to show in them may be on one side alone."""
    for name in {*mine, *printed}:
        assert mine.get(name, 0) / MIB == pytest.approx(printed.get(name, 0.0), rel=0.0, abs=0.0101), name


@pytest.mark.parametrize("row", PRINTED, ids=label)
def test_buffers_are_those_that_llama_cpp_prints(row: dict[str, Any]) -> None:
    at = placed(row)
    compare(dict(at.sizes), row["model_mib"])
    compare(dict(compute_buffers(at)), row["compute_mib"])
    assert output_buffer(at) / MIB == pytest.approx(row["output_mib"], abs=0.0051)


def every_layer(at: Placement) -> dict[str, int]:
    """Compute buffers of graphs with every layer and known sizes."""
    found: dict[str, int] = {}
    for batch in batches(at, at.how.n_ctx, at.how.n_seq_max):
        layout = reserve(at, Sizes(batch, ("tokens", "cells")), whole(len(at.gguf.layers))).layout()
        for one, size in zip(layout.buffers, layout.at(batch), strict=True):
            found[one.kind.name] = max(size, found.get(one.kind.name, 0))
    return found


MODELS = list({label(row).partition("-2")[0]: row for row in PRINTED}.values())
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"flash_attention": False},
    {"n_gpu_layers": 7},
    {"n_gpu_layers": 7, "flash_attention": False},
    {"devices": 3},
    {"n_seq_max": 4, "kv_unified": False},
    {"n_seq_max": 40, "kv_unified": False, "n_gpu_layers": 5},
    {"n_seq_max": 7, "n_gpu_layers": 0},
    {"devices": 0},
    {"overrides": (("exps|ffn_down", "CPU"),)},
    {"offload_kqv": False},
    {"type_k": "q8_0", "type_v": "q8_0"},
    {"family": "vulkan", "use_mmap": False, "n_gpu_layers": 9},
    {"split_mode": "row", "devices": 2},
    {"release": OLDER, "n_seq_max": 3},
)


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_few_layers_and_unknown_sizes_say_it_all(number: int) -> None:
    """Of every architecture, in some ways; contexts between others are on straight lines only where they are."""
    model = placed(MODELS[number]).gguf
    for way in (WAYS[(2 * number + step) % len(WAYS)] for step in range(2)):
        if "release" in way and STYLES[model.architecture].since > OLDER:
            continue
        sequences = way.get("n_seq_max", 1)
        compute = Compute(Placement(model, How(4096 * sequences, **way)))
        for context in (1024, 65536, 5 * 256):
            at = Placement(model, How(context * sequences, **way))
            assert compute.at(at.how.n_ctx, sequences) == every_layer(at), (way, context)


def test_all_tensors_are_somewhere() -> None:
    """However they are shared, buffers hold the file's tensors; only a tied head is stored twice."""
    model = gguf("qwen3-30b-a3b", "Q4_K_M")
    whole = sum(tensor.num_bytes for tensor in model.tensors.values())
    for words in (
        How(4096, devices=0),
        How(4096, use_mmap=False),
        How(4096, n_gpu_layers=20, use_mmap=False),
        How(4096, devices=4, use_mmap=False, tensor_split=(1.0, 2.0, 3.0, 4.0)),
        How(4096, n_cpu_moe=17, use_mmap=False),
        How(4096, overrides=(("exps", "CPU"),), use_mmap=False),
    ):
        assert sum(Placement(model, words).sizes.values()) == pytest.approx(whole, rel=1e-4)


def test_more_layers_on_the_device_are_more_there() -> None:
    model = gguf("llama-3.2-1b", "Q8_0")
    sizes = [Placement(model, How(4096, n_gpu_layers=n)).sizes.get("CUDA0", 0) for n in range(18)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[17] == Placement(model, How(4096)).sizes["CUDA0"]


def test_the_arena_gives_the_block_that_fits_best() -> None:
    arena = Arena()
    first, second, third = arena.take(100), arena.take(30), arena.take(60)
    last = arena.take(10)
    arena.give(first, 100)
    arena.give(third, 60)
    assert arena.take(50) == third
    assert arena.take(90) == first
    assert (second, last, arena.largest) == (100, 190, 200)
    arena.give(first, 90)
    arena.give(third, 50)
    arena.give(second, 30)
    arena.give(last, 10)
    assert arena.free == [[0, 2**62]]


def test_sums_are_written_over_what_nobody_reads_any_more() -> None:
    kind = BufferType("CPU", 32)
    x = ggml.given((1024,))
    graph = ggml.Graph()
    once, twice = ggml.like("SQR", x), ggml.like("SQR", x)
    graph.expand(ggml.like("ADD", ggml.like("ADD", once, twice), once))
    for tensor in (*graph.nodes, *graph.leaves):
        tensor.on = 0
    # The input is read twice, so the first square is elsewhere; the second may take its place, and the first sum that
    # of the second square, since the first square is read again.
    (buffer,) = lives(graph.nodes, graph.leaves, (kind,), 0)
    assert buffer.largest((1,), ())[0] == 2 * 4096


def test_a_launch_is_its_placement() -> None:
    """`weigh serve` adds nothing and leaves nothing out."""
    made = weigh.serve("llama-3.2-1b", "rtx-4090", "llama.cpp", quantization="Q4_K_M", context=4096)
    at = Placement(gguf("llama-3.2-1b", "Q4_K_M"), How(4096, release=NEWER))
    device = sum((*at.sizes.values(), *compute_buffers(at).values(), *at.cache_sizes().values())) + output_buffer(at)
    assert sum(share.num_bytes for share in made.launch.shares) == device


def test_a_draft_model_lies_beside() -> None:
    """As a launch of its own would, but for the format of its cache."""
    words = {"quantization": "Q8_0", "context": 8192}
    both = weigh.serve("llama-3.1-8b", "rtx-4090", "llama.cpp", "llama-3.2-1b", kv_dtype="q8_0", **words).launch
    one = weigh.serve("llama-3.1-8b", "rtx-4090", "llama.cpp", kv_dtype="q8_0", **words).launch
    other = weigh.serve("llama-3.2-1b", "rtx-4090", "llama.cpp", **words).launch
    assert [share.num_bytes for share in both.shares] == [
        a.num_bytes + b.num_bytes for a, b in zip(one.shares, other.shares, strict=True)
    ]
    whole = both.shares[0].num_bytes - both.shares[0].of("weights")
    assert both.demand(8192, 1) == whole


@pytest.mark.parametrize(
    ("words", "at_host"),
    [
        ({}, False),
        ({"gpu_layers": "99"}, False),
        ({"gpu_layers": "12"}, True),
        ({"override_tensor": "ffn_up=CPU"}, True),
        ({"no_kv_offload": True}, True),
        ({"draft": "llama-3.2-1b", "draft_gpu_layers": "3"}, True),
    ],
)
def test_what_is_in_host_memory_is_known(words: dict[str, Any], at_host: bool) -> None:
    """No speed is said of it, and one of "-ngl 99"."""
    made = weigh.serve("llama-3.2-1b", "rtx-4090", "llama.cpp", quantization="Q4_K_M", context=4096, **words)
    assert made.launch.at_host == at_host
    assert (made.speed.unsaid is None) == (not at_host)


@pytest.mark.parametrize(("name", "release"), [("bloom-560m", NEWER), ("mamba-130m", OLDER)])
def test_a_graph_that_is_not_described_is_refused_however_often_it_is_asked_for(
    name: str, release: tuple[int, ...]
) -> None:
    compute = Compute(Placement(gguf(name, "Q8_0"), How(4096, release=release)))
    for _ in range(2):
        with pytest.raises(NotModelledError, match="graph"):
            compute.at(4096, 1)


def test_rows_are_shared_between_devices() -> None:
    """All rows are somewhere; where they begin is a multiple of 128."""
    model = gguf("llama-3.2-1b", "Q4_K_M")
    rows = Placement(model, How(4096, devices=3, split_mode="row", use_mmap=False, tensor_split=(1.0, 2.0, 4.0)))
    layers = Placement(model, How(4096, devices=1, use_mmap=False))
    assert sum(rows.split_bytes()) == rows.sizes["CUDA_Split"]
    assert sum(rows.device_bytes()) == pytest.approx(layers.sizes["CUDA0"], rel=1e-4)
    head = rows.gguf.tensors["blk.0.ffn_up.weight"]
    assert (
        head.shape[0] // 7 // 128 * 128 * head.num_bytes // head.shape[0]
        < rows.split_bytes()[0]
        < layers.sizes["CUDA0"] / 7
    )
    # Vulkan has no such buffers
    assert "Vulkan_Split" not in Placement(model, How(4096, devices=2, split_mode="row", family="vulkan")).sizes


@pytest.mark.parametrize(("users", "unified"), [(1, False), (6, False), (6, True)])
def test_demand_is_what_a_launch_would_take(users: int, unified: bool) -> None:
    words = {"quantization": "Q4_K_M", "kv_unified": unified, "gpu_layers": "9"}
    first = weigh.serve("gemma-3-1b", "rtx-4090", "llama.cpp", context=4096, **words).launch
    again = weigh.serve("gemma-3-1b", "rtx-4090", "llama.cpp", context=2500, concurrency=users, **words).launch
    assert first.demand(2500, users) == again.shares[0].num_bytes - again.shares[0].of("weights")


def test_mapped_files_are_counted_once() -> None:
    """Metal computes on the mapped file; what fits is what is left beside it."""
    launch = weigh.serve("llama-3.2-1b", "m2-max", "llama.cpp", quantization="Q4_K_M", context=8192).launch
    assert launch.supply is not None
    device, host = launch.shares
    assert device.of("weights") + launch.supply == device.memory_bytes
    assert not any("Metal" in part.what for part in host.parts)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"quantization": "Q4_K_N"}, "Q4_K_M"),
        ({"kv_dtype": "fp8"}, "q8_0"),
        ({"kv_dtype": "q8_0", "flash_attn": "off"}, "flash attention"),
        ({"gpu_layers": "some"}, "layers"),
        ({"tensor": 2}, "split_mode"),
        ({"override_tensor": "exps"}, "exps=CPU"),
        ({"tensor_split": "a,b"}, "3,1"),
        ({"concurrency": 300}, "256"),
        ({"split_mode": "rows"}, "row"),
    ],
)
def test_what_it_refuses_is_said(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        weigh.serve("llama-3.2-1b", "rtx-4090x2", "llama.cpp", **words)
    assert said in str(caught.value)


def test_ollama_and_lm_studio_say_the_same_in_their_own_words() -> None:
    plain = weigh.serve(
        "llama-3.2-1b", "rtx-4090", "llama.cpp",
        quantization="Q4_K_M", context=8192, gpu_layers="8", kv_dtype="q8_0", batch_size=512, embeddings=True,
    )  # fmt: skip
    ollama = weigh.serve(
        "llama-3.2-1b", "rtx-4090", "ollama", quantization="Q4_K_M", num_ctx=8192, num_gpu="8", kv_cache_type="q8_0"
    )
    studio = weigh.serve(
        "llama-3.2-1b", "rtx-4090", "lm-studio", quantization="Q4_K_M", context_length=8192, gpu="0.5",
        llama_k_cache_quantization_type="q8_0", llama_v_cache_quantization_type="q8_0",
    )  # fmt: skip
    assert plain.launch.shares == ollama.launch.shares
    assert plain.launch.shares[0] == studio.launch.shares[0]
    assert weigh.serve("llama-3.2-1b", "rtx-4090", "ollama", quantization="Q4_K_M").launch.tokens == 4096
    asked = weigh.serve("llama-3.2-1b", "rtx-4090", "ollama", context=8192).launch
    assert ollama.launch.longest == 8192 < asked.longest_context(1)  # a setting holds for all requests, a question not
