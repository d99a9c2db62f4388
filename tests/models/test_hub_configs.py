"""28 config.json files as people upload them: each is read, or its family is refused by name.

Counts that a model card, an index's `total_size` or a built model of transformers states stand beside; the others are
those of the model that the upload was made from.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import weigh
from weigh.errors import UnknownNameError

LINES = (Path(__file__).parents[1] / "data" / "hub_configs.jsonl").read_text(encoding="utf-8").splitlines()
CONFIGS: dict[str, dict[str, Any]] = {row["name"]: row["config"] for row in map(json.loads, LINES)}
COUNTED = {
    "2PRYMMAL-Yi1.5-6B-SLERP": 6_061_035_520,  # Yi-1.5-6B
    "3PRYMMAL-PHI3-3B-SLERP": 3_821_079_552,  # its index: 7,642,159,104 bytes
    "Backup_hf_sakura-14b-qwen2.5-v1.0-q6k": 14_770_033_664,  # Qwen2.5-14B
    "Llama-2-13B-Computer-Engineering-": 13_015_864_320,  # Llama 2 13B
    "Llama-3.1-8B-Computer-Networks-LLM": 8_030_261_248,  # Llama 3.1 8B
    "Pygmalion-7b-Merged-Safetensors": 6_738_415_616,  # LLaMA 7B
    "Qwen-7B-Chat-Cantonese": 7_721_324_544,  # Qwen-7B
    "Reflection-Llama-3.1-70B": 70_553_804_800,  # Llama 3.1 70B and twelve tokens of 8,192 in and out
    "Triangulum": 10_305_653_760,  # its index: 20,611,307,520 bytes
    "WizardLM-2-8x22B": 140_620_634_112,  # Mixtral 8x22B
    "bloom": 176_247_271_424,  # the paper
    "deepcogito-cogito-v1-preview-qwen-14B": 14_765_947_904,
    "dolphin3-mistral": 23_572_423_680,
    "falcon-180B-chat": 178_557_088_768,  # tied, as transformers reads it; the files hold the output layer again
    "gemma": 2_506_172_416,  # its index: 5,012,344,832 bytes
    "granite-3b-code-instruct-128k": 3_482_503_680,  # its index: 6,965,007,360 bytes
    "graniteModelWithoutGGUF": 6_738_481_152,
    "llama_3.2-3B-huggingface-shard0": 3_212_749_824,  # its index: 6,425,499,648 bytes
    "medgemma-27b-it": 27_432_406_640,  # its index: 54,864,813,280 bytes
    "mistralai-Devstral-Small-2507": 23_572_403_200,  # Mistral Small 24B
    "oasstpythia1.5brm": 1_311_594_497,  # its index: 5,246,377,988 bytes
    "olmOCR": 8_291_375_616,  # its index: 16,582,751,232 bytes
    "qianwen-72B": 72_287_920_128,  # its index: 144,575,840,256 bytes
    "fast_qwen": 27_356_728_560,
    "Qwen3.5-18B-REAP-A3B-Coding": 18_543_997_568,
    "Qwen3.5-25B-REAP-A3B-Coding": 25_091_371_648,
}
REFUSED = {
    "Logics-Thinking": "logics",
    "Molmo7B_D_NF4Quant": "molmo",
}


@pytest.mark.parametrize("name", COUNTED)
def test_it_is_counted(name: str) -> None:
    assert weigh.params(CONFIGS[name]).total == COUNTED[name]


@pytest.mark.parametrize("name", REFUSED)
def test_its_family_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model_type '{REFUSED[name]}'"):
        weigh.params(CONFIGS[name])


def test_every_config_is_one_or_the_other() -> None:
    assert len(LINES) == len(CONFIGS) == 28
    assert set(CONFIGS) == {*COUNTED, *REFUSED}


@pytest.mark.parametrize(
    ("name", "total_size"),
    [
        ("Llama-3.1-8B-Computer-Networks-LLM", 11_188_584_672),  # LLM.int8(), the rest in fp32
        ("fast_qwen", 20_444_027_360),  # MLX, 4 and 8 bits by the config's own list, the tower as it was
    ],
)
def test_quantized_uploads_weigh_what_their_indexes_say(name: str, total_size: int) -> None:
    stored = weigh.params(CONFIGS[name]).stored
    assert stored is not None
    assert stored.num_bytes == total_size
