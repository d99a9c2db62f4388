"""Command lines of serving programs: what their parsers would read, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from weigh.errors import NotModelledError, UsageError
from weigh.jobs import commands


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vllm serve m -tp 2 --pipeline_parallel_size=2", {"tensor": 2, "pipeline": 2}),
        ("vllm serve m --max-model-len 16k", {"context": 16000}),
        ("vllm serve m --max-model-len 16K", {"context": 16384}),
        ("vllm serve m --max-model-len auto", {}),
        ("vllm serve m --no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("vllm serve m --gpu-memory-util 0.95", {"gpu_memory_utilization": 0.95}),
        ("vllm serve m --limit-mm-per-prompt '{\"image\": 0}'", {"language_model_only": True}),
        ("vllm serve m -cc '{\"cudagraph_capture_sizes\": [1, 2, 64]}'", {"max_cudagraph_capture_size": 64}),
        (
            'vllm serve m -sc \'{"method": "deepseek_mtp", "num_speculative_tokens": 3}\'',
            {"speculative_method": "mtp", "num_speculative_tokens": 3},
        ),
        ("vllm serve m --speculative-config.num_speculative_tokens 4", {"num_speculative_tokens": 4}),
        (
            "CUDA_VISIBLE_DEVICES=0 python3 -m vllm.entrypoints.openai.api_server --model m --enforce-eager",
            {"enforce_eager": True},
        ),
        ("vllm serve m --served-model-name a b --dtype half", {"dtype": "half"}),
        ("vllm serve m --no-enable-chunked-prefill", {"enable_chunked_prefill": "off"}),
        ("vllm serve m --enable-chunked-prefill --port 1", {"enable_chunked_prefill": "on"}),
        ("vllm serve m --cudagraph-capture-sizes 1 8 32 --port 1", {"max_cudagraph_capture_size": 32}),
        (
            "vllm serve m -ep --enable-eplb --eplb-config.num_redundant_experts 32",
            {"expert": True, "enable_eplb": True, "num_redundant_experts": 32},
        ),
        (
            "sglang serve --model-path m --lora-paths a=x b --lora-target-modules q_proj k_proj --max-lora-rank 8",
            {"lora_paths": "a=x b", "lora_target_modules": "q_proj k_proj", "max_lora_rank": 8},
        ),
        (
            "python -m sglang.launch_server --model-path m --tp 8 --ep 8 --chunked-prefill-size -1",
            {"tensor": 8, "expert": True},
        ),
        (
            "trtllm-serve m --tp_size 2 --ep_size 2 --max_seq_len 8192 --kv_cache_free_gpu_memory_fraction 0.8",
            {"tensor": 2, "expert": True, "context": 8192, "free_gpu_memory_fraction": 0.8},
        ),
        ("trtllm-serve serve m --max_batch_size=8", {"max_batch_size": 8}),
    ],
)
def test_lines_are_read_as_their_parsers_do(line: str, words: dict[str, object]) -> None:
    found = commands.read([line])
    assert found.model == "m"
    assert found.words == words


def test_variables_of_the_allocator() -> None:
    line = "PYTORCH_ALLOC_CONF=expandable_segments:True vllm serve m"
    found = commands.read([line])
    assert found.words == {"alloc_conf": "expandable_segments:True"}
    written, left = commands.write("sglang", "m", found.words, "vllm")
    assert not left
    assert written.startswith("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True python -m sglang.launch_server")


def test_models_that_draft() -> None:
    line = 'vllm serve m --speculative-config \'{"model": "d", "num_speculative_tokens": 2}\''
    assert commands.read([line]).draft == "d"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vllm serve m --max-modle-len 4", "Did you mean --max-model-len"),
        ("vllm serve m --tensor-parallel-size", "has no value"),
        ("vllm serve m --tensor-parallel-size two", "no number"),
        ("vllm serve m --speculative-config {", "no JSON"),
        ("vllm serve m 'unclosed", "does not parse"),
        ("python -m sglang.launch_server --model-path m --tp-sise 2", "--tp-size"),
        ("text-generation-launcher --model-id m", "starts no program"),
        ("llama-server -m m.gguf --gpu-layer 40 --n-gpu-layrs 40", "--n-gpu-layers"),
        ("python -m sglang.launch_server m", "does not know what 'm' is for"),
    ],
)
def test_what_is_wrong_is_named(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        commands.read([line])
    assert said in str(caught.value)


def test_what_matters_and_is_not_modelled_is_refused() -> None:
    with pytest.raises(NotModelledError, match="prefill context parallelism"):
        commands.read(["vllm serve m --prefill-context-parallel-size 2"])


FLAGS = json.loads((Path(__file__).parents[1] / "data" / "engine_flags.json").read_text(encoding="utf-8"))
"""The flags of the engines' own parsers, by release, and whether a value stands behind them."""
EITHER = {"--enable-chunked-prefill", "--enable-prefix-caching", "--hf-token", "--disable-cuda-graph"} | {
    "--enable-dp-attention"
}
"""Those whose value may be left out."""


@pytest.mark.parametrize("release", FLAGS)
def test_every_flag_of_the_engines_is_named(release: str) -> None:
    one = commands.program(release.split()[0])
    known = set(one.flags) | one.harmless | set(one.refused)
    for kind, flags in FLAGS[release].items():
        for spelled in flags.split():
            name = spelled.replace("_", "-") if one.underscores else spelled
            assert name in known, name
            flag = one.flags.get(name)
            if name in EITHER or name in one.refused or (flag is not None and flag.kind == commands.MAYBE):
                continue
            stands_alone = flag.kind in (commands.TRUE, commands.FALSE) if flag is not None else name in one.alone
            assert stands_alone == (kind == "alone"), name


LLAMA_WORDS = {"ctx_size": 8192, "concurrency": 4, "gpu_layers": "40", "cache_type_k": "q8_0", "no_mmap": True}


@pytest.mark.parametrize("engine", commands.PROGRAMS)
def test_what_is_written_is_read_back(engine: str) -> None:
    words = {"tensor": 4, "context": 8192, "kv_dtype": "auto"} if engine != "llama.cpp" else LLAMA_WORDS
    line, left = commands.write(engine, "m", words, engine)
    assert not left
    found = commands.read([line])
    assert (found.engine, found.model, found.words) == (engine, "m", words)


@pytest.mark.parametrize("engine", commands.PROGRAMS)
def test_tables_of_flags_do_not_overlap(engine: str) -> None:
    one = commands.program(engine)
    assert not set(one.flags) & (one.harmless | set(one.refused))
    assert not one.harmless & set(one.refused)
    assert one.alone <= one.harmless


EXTRA = """
max_batch_size: 16
pipeline_parallel_size: 2
cuda_graph_config: {enable_padding: true}
moe_config: {backend: CUTLASS}
kv_cache_config: {dtype: fp8, free_gpu_memory_fraction: 0.7, max_tokens: 4096, enable_block_reuse: false}
"""


def test_files_of_trtllm_serve_count_more_than_its_flags(tmp_path: Path) -> None:
    file = tmp_path / "extra.yaml"
    file.write_text(EXTRA, encoding="utf-8")
    found = commands.read(["trtllm-serve", "m", "--extra_llm_api_options", str(file), "--max_batch_size", "8"])
    assert found.words == {
        "max_batch_size": 16,
        "pipeline": 2,
        "kv_dtype": "fp8",
        "free_gpu_memory_fraction": 0.7,
        "max_tokens": 4096,
    }


@pytest.mark.parametrize(
    "text", ["enable_attention_dp: true", "kv_cache_config: {max_attention_window: [1024]}", "speculative_config: {}"]
)
def test_keys_of_such_files_that_are_not_modelled_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "extra.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(NotModelledError, match=text.partition(":")[0]):
        commands.read(["trtllm-serve", "m", "--config", str(file)])


TREE = "--speculative-num-steps 2 --speculative-eagle-topk 1"
SGLANG_DRAFTS = {"speculative_algorithm": "EAGLE", "num_draft_tokens": 4}


@pytest.mark.parametrize(
    ("of", "words", "engine", "said"),
    [
        (
            "sglang",
            {"tensor": 8, "data": 8, "enable_dp_attention": True},
            "vllm",
            "--tensor-parallel-size 1 --data-parallel-size 8",
        ),
        ("sglang", SGLANG_DRAFTS, "vllm", "--spec-method mtp --spec-tokens 3"),
        ("vllm", {"data": 8, "expert": True}, "sglang", "--dp-size 8 --ep-size 8 --tp-size 8 --enable-dp-attention"),
        (
            "vllm",
            {"num_speculative_tokens": 2, "speculative_method": "mtp"},
            "sglang",
            f"--speculative-num-draft-tokens 3 {TREE} --speculative-algorithm NEXTN",
        ),
        ("vllm", {"max_num_seqs": 8, "kv_dtype": "fp8"}, "tensorrt-llm", "--max_batch_size 8 --kv_cache_dtype fp8"),
    ],
)
def test_what_engines_count_otherwise_is_written_as_they_count_it(
    of: str, words: dict[str, object], engine: str, said: str
) -> None:
    line, left = commands.write(engine, "m", words, of, shares_experts=True)
    assert not left
    assert line.endswith(f" m {said}")


def test_models_that_draft_are_written() -> None:
    line, _ = commands.write("vllm", "m", SGLANG_DRAFTS, "sglang", draft="d")
    assert line == "vllm serve m --spec-model d --spec-method eagle --spec-tokens 3"


def test_the_door() -> None:
    words = (
        "serve --device h100x2 --concurrency 8 -- vllm serve llama-3-8b -tp 2 --max-model-len 8192 --port 80".split()
    )
    run = subprocess.run([sys.executable, "-m", "weigh", *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Flags that do not matter to memory: --port." in run.stdout
    assert "python -m sglang.launch_server --model-path llama-3-8b" in run.stdout


def test_llama_cpp_is_read_as_its_own_parser_reads_it() -> None:
    line = "LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_N_PARALLEL=2 CUDA_VISIBLE_DEVICES=0 ./llama-server -m m.gguf -ngl 40"
    found = commands.read([f"{line} -c 16384 -fa -ctk q8_0 -ot exps=CPU --no-mmap --port 80 --jinja -t 8"])
    assert (found.engine, found.model) == ("llama.cpp", "m.gguf")
    assert found.words == {
        "ctx_size": 16384,
        "concurrency": 2,
        "gpu_layers": "40",
        "flash_attn": "on",
        "cache_type_k": "q8_0",
        "override_tensor": "exps=CPU",
        "no_mmap": True,
    }
    assert found.harmless == ("--port", "--jinja", "-t")
