"""Every JSON answer is what its published schema says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"
JOBS = Path(__file__).parents[1] / "data" / "jobs"
ROW = {
    "id": "tiny",
    "family": "gpt2",
    "kind": "train",
    "batch": 1,
    "seq": 8,
    "config": {"model_type": "gpt2", "vocab_size": 10, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2},
    "settings": {"dtype": "fp32", "attn": "sdpa", "opt": "adamw"},
    "bytes": {"peak": 1, "unheard_of": 2},
}
ANSWERS = {
    "params gpt2": "params",
    "params llama-3.1-405b --dtype nf4": "params",
    "train gpt2": "train",
    "train gpt2 --device h100 --by layer --clip --accumulation 2": "train",
    "train llama-3.2-1b --lora 8 --checkpointing full --kernels cpu": "train",
    f"train --from {JOBS}/torchtitan-8b.toml --device h100": "train",
    "train gpt2 --optimizer none --freeze all-but-head": "train",
    "generate gpt2": "generate",
    "generate llama-3-8b --cache static --beams 4 --device a100-80gb": "generate",
    "train gpt2 --allocator expandable_segments:True": "train",
    "kv llama-3-8b": "kv",
    "kv llama-3-8b --context 32k --concurrency 16 --kv-dtype q8_0,f16 --tensor 16": "kv",
    "serve llama-3-8b": "serve",
    "serve llama-3-8b --device h100x2 --tensor 2 --context 8k --kv-dtype fp8": "serve",
    "serve gpt-oss-20b --runtime sglang --device h100": "serve",
    "serve qwen3-8b --runtime tensorrt-llm --device h100": "serve",
    "serve llama-3-8b --device h100,l4 --context 1k..8k --concurrency 1,64": "serve_grid",
    "compare gpt2 llama-3-8b": "compare",
    "rules": "rules",
    "rules --rule 12Ld2": "rules",
    "rules gpt2 --batch 2 --dtype bf16": "rules",
    "scaling": "scaling",
    "scaling --flops 5.76e23 --law chinchilla-1": "scaling",
    "scaling gpt2 --tokens 2T --loss-change=-10 --inference-tokens 1T --device h100 --mfu 0.4": "scaling",
    "dtypes": "dtypes",
    "dtypes bf16 q4_k --model llama-2-7b": "dtypes",
    "models": "models",
    "devices": "devices",
}


def schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{kind}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("words", ANSWERS)
def test_answers_follow_their_schema(weigh, words: str) -> None:  # type: ignore[no-untyped-def]
    result = weigh(*words.split(), "--json")
    assert result.returncode == 0, result.stderr
    jsonschema.validate(json.loads(result.stdout), schema(ANSWERS[words]))


def test_validation_follows_its_schema(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    result = weigh("validate", tmp_path / "rows.jsonl", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    jsonschema.validate(answer, schema("validate"))
    assert [row["metric"] for row in answer["rows"]] == ["peak", "unheard_of"]
    assert answer["rows"][1]["predicted"] is None


def test_snapshots_follow_their_schema(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    weigh("train", "gpt2", "--sequence", "64", "--snapshot", tmp_path / "x.pickle")
    result = weigh("snapshot", tmp_path / "x.pickle", "--json")
    assert result.returncode == 0, result.stderr
    jsonschema.validate(json.loads(result.stdout), schema("snapshot"))


def test_the_schema_would_notice() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"schema": "weigh/params/1", "version": "0", "parameters": {"total": 1.5}}, schema("params")
        )
