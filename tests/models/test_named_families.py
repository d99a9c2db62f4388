"""The families that weigh promises: each is counted tensor by tensor beside upstream, and nearly all run.

Most stand among the recorded classes of transformers; the others are compared where `ELSEWHERE` says.
"""

import pytest
from architectures import ARCHITECTURES, tensors

from weigh import models
from weigh.dtypes import BFLOAT16
from weigh.ghost.state import recording

DECODERS = """
    gpt2 gpt_neo gptj gpt_neox gpt_bigcode bloom opt falcon mpt llama mistral ministral3 mixtral qwen2 qwen2_moe qwen3
    qwen3_moe qwen3_next qwen3_5_text qwen3_5_moe_text gemma gemma2 gemma3_text gemma3n_text gemma4_text phi phi3 phimoe
    deepseek_v2 deepseek_v3 deepseek_v32 kimi_linear glm glm4 glm4_moe gpt_oss llama4_text minimax minimax_m2 cohere
    cohere2 mamba mamba2 falcon_mamba jamba bamba zamba2 falcon_h1 granite granitemoe granitemoehybrid olmo olmo2 olmo3
    olmoe nemotron_h stablelm starcoder2 ernie4_5 ernie4_5_moe seed_oss smollm3 exaone4 lfm2 bitnet recurrent_gemma
    arcee apertus longcat_flash mimo_v2_flash
""".split()
OTHERS = """
    t5 umt5 bart whisper bert roberta distilbert modernbert deberta-v2 llava qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe
    qwen3_5 qwen3_5_moe llama4 mllama mistral3 internvl gemma3 gemma4 kimi_k25
""".split()
ELSEWHERE = {
    "tests/models/test_remote_code.py": ("qwen", "chatglm", "baichuan"),
    "tests/torch/test_families.py": ("dbrx", "hunyuan_v1_dense", "hunyuan_v1_moe", "internlm3", "nemotron"),
    "tests/torch/test_hybrid_families.py": ("lfm2_moe",),
}
COUNTED = {
    "their code stands in their own repositories": ("qwen", "chatglm", "baichuan"),
    "experts run one by one, by the values of the router": ("dbrx", "longcat_flash"),
    "not modelled yet": ("deepseek_v32", "gemma3n_text", "kimi_linear"),
}
"""Those that do not run, and why."""
ALIASES = {"kimi_k2": "deepseek_v3"}
"""Names of one family."""
NAMED = (*DECODERS, *OTHERS, *(family for families in ELSEWHERE.values() for family in families))
RECORDED = {a.model_type: a for a in ARCHITECTURES}


@pytest.mark.parametrize("family", [*DECODERS, *OTHERS])
def test_it_has_every_tensor_of_upstreams(family: str) -> None:
    architecture = RECORDED[family]
    assert architecture.weigh() == tensors(architecture.name)


@pytest.mark.parametrize("family", NAMED)
def test_it_is_described(family: str) -> None:
    assert family in models.FAMILIES


@pytest.mark.parametrize(("name", "family"), ALIASES.items())
def test_it_is_the_same_by_another_name(name: str, family: str) -> None:
    with recording():
        one, other = (models.build(RECORDED[family].config | {"model_type": kind}, BFLOAT16) for kind in (name, family))
        assert [p.names for p in one.parameters()] == [p.names for p in other.parameters()]


@pytest.mark.parametrize("family", [*DECODERS, *OTHERS])
def test_it_runs_unless_it_is_known_not_to(family: str) -> None:
    with recording():
        model = models.build(RUNNING.get(family, RECORDED[family].config), BFLOAT16)
    counted = {name for families in COUNTED.values() for name in families}
    assert bool(model.unmodelled) == (family in counted), model.unmodelled


RUNNING = {"deepseek_v2": RECORDED["deepseek_v2"].config | {"num_experts_per_tok": 2}}
"""Where the default config is none that upstream runs."""
