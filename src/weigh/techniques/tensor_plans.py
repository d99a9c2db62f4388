"""How transformers cuts its families' layers over tensor ranks: `base_model_tp_plan` of each config class (5.23).

By model type, the layers of a block and how each is cut. A test compares the table with transformers. A family that is
not here is cut in a way that is not described, or not at all (GPT-2, BLOOM, OPT, Falcon and StableLM have no plan).
"""

from __future__ import annotations

from collections.abc import Mapping

COLUMN, ROW = "colwise", "rowwise"
"""A share of the outputs of a whole input; a share of the inputs, after which the outputs are summed."""
COLUMN_WHOLE, ROW_WHOLE = "colwise_gather_output", "rowwise_split_input"
"""The same, with the outputs gathered from all ranks; and with a whole input, of which each rank takes its share."""

_QKV = {f"self_attn.{name}_proj": COLUMN for name in "qkv"}
_ATTENTION = {**_QKV, "self_attn.o_proj": ROW}
_WHOLE_ATTENTION = {**dict.fromkeys(_QKV, COLUMN_WHOLE), "self_attn.o_proj": ROW_WHOLE}
_UP_DOWN = {"mlp.up_proj": COLUMN, "mlp.down_proj": ROW}
_GATED = {"mlp.gate_proj": COLUMN, **_UP_DOWN}
_LLAMA = {**_ATTENTION, **_GATED}
_FUSED_GATED = {"mlp.gate_up_proj": COLUMN_WHOLE, "mlp.down_proj": ROW_WHOLE}
_ALIKE: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("cohere cohere2 cwm ernie4_5 exaone4 gemma gemma2 gemma3_text gemma4_unified_text granite helium", _LLAMA),
    ("hyperclovax internlm3 llama ministral3 mistral olmo qwen2 qwen3 seed_oss smollm3 vaultgemma", _LLAMA),
    ("apertus arcee jais2 nemotron", {**_ATTENTION, **_UP_DOWN}),
    ("olmo2 olmo3", {**_WHOLE_ATTENTION, **_GATED}),
    ("glm glm4", {**_ATTENTION, **_FUSED_GATED}),
    ("phi3", {"self_attn.qkv_proj": COLUMN_WHOLE, "self_attn.o_proj": ROW_WHOLE, **_FUSED_GATED}),
    ("phi", {**_QKV, "self_attn.dense": ROW, "mlp.fc1": COLUMN, "mlp.fc2": ROW}),
    ("starcoder2", {**_ATTENTION, "mlp.c_fc": COLUMN, "mlp.c_proj": ROW}),
    (
        "gpt_neox",
        {
            "attention.query_key_value": COLUMN,
            "attention.dense": ROW,
            "mlp.dense_h_to_4h": COLUMN,
            "mlp.dense_4h_to_h": ROW,
        },
    ),
)
PLANS: dict[str, Mapping[str, str]] = {name: plan for names, plan in _ALIKE for name in names.split()}
"""What plans say of norms between cut layers (their gradients are summed in place) costs nothing, and is left out."""
