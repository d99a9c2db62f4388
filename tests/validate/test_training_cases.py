"""What others measured on GPUs, each case within the tolerance that stands beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh.validate.cases import predict_case

LINES = (Path(__file__).parents[1] / "data" / "measured" / "training.jsonl").read_text(encoding="utf-8").splitlines()
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in map(json.loads, LINES)}
WITHIN = {
    "rasbt-gpt124m-0-baseline": 0.001,
    "rasbt-gpt124m-1-maskonfly": 0.001,
    "rasbt-gpt124m-3-fusedadamw": 0.001,
    "rasbt-gpt124m-5-bf16": 0.003,
    "rasbt-gpt124m-6-nativeclasses": 0.002,
    "rasbt-gpt124m-7-flashattn": 0.002,
    "litgpt-res-LoRA-Llama-2-7b-hf-bnb.nf4-mb1-1gpu": 0.005,
    "litgpt-res-LoRA-Llama-2-13b-hf-bnb.nf4-dq-mb1-1gpu": 0.001,
    "litgpt-res-Adapter-stablelm-base-alpha-3b-None-mb1-1gpu": 0.003,
    "litgpt-res-AdapterV2-Llama-2-7b-hf-bnb.nf4-mb1-1gpu": 0.004,
    "litgpt-hub-falcon-7b-qlora-1xA10G": 0.002,
    "litgpt-hub-gemma2-9b-qlora-1xA10G": 0.001,
    "litgpt-hub-llama-3-8b-lora-1xA10G": 0.002,
    "litgpt-hub-phi-2-lora-1xA10G": 0.003,
    "torchtitan-8b-128gpu-t3-fsdp": 0.01,
    "torchtitan-8b-128gpu-t3-compile": 0.015,
    "torchtitan-8b-128gpu-t3-compile-fp8": 0.02,
    "torchtitan-8b-h200-8nodes": 0.02,
    "fsdpqlora-3090-7b-lora-c512": 0.01,
    "fsdpqlora-3090-7b-lora-c2048": 0.005,
    "fsdpqlora-3090-7b-qlora-c512": 0.025,
    "fsdpqlora-3090-7b-QLoRA-bs4": 0.01,
    "fsdpqlora-4090-7b-lora-offload-bs10": 0.015,
    "torchtune-3.2-3B-seq-LoRA": 0.045,
    "mlmlog-gpt124m-fp16-1gpu": 0.06,
    "mlm-golden-gpt3_mcore_te_tp1_pp1_te_4experts_groupedGEMM_op_fuser-dev_dgx_h100": 0.007,
    "mlm-golden-gpt3_mcore_te_tp1_pp4_vp1_resume_torch_dist_dist_optimizer_overlap_grad_reduce-dev_dgx_h100": 0.006,
    "mlm-golden-gpt3_mcore_te_tp2_pp2_resume_torch_dist_defer_embedding_wgrad_compute-dev_dgx_h100": 0.006,
    "mlm-golden-gpt3_mcore_te_tp2_zp_z3_resume_fsdp_dtensor-dev_dgx_h100": 0.004,
    "mlm-golden-gpt3_mcore_tp2_pp2_ep2_te_4experts2parallel-dev_dgx_h100": 0.02,
    "mlm-golden-gpt3_weekly_mcore_tp2_pp2_current_scaling_native_fp8_tp_pp_sp_tp_overlap-dev_dgx_h100": 0.003,
    "swift1-qwen-1_8b-chat-full-len2048-bs1": 0.002,
    "swift1-qwen-7b-chat-lora8-len2048-bs4": 0.005,
    "swift1-qwen-7b-chat-lora8-len2048-bs1-nogc": 0.012,
    "swift1-qwen-7b-chat-lora8-len2048-bs1-int4gptq": 0.01,
    "swift1-qwen-72b-chat-lora8-len2048-bs1-int4gptq": 0.01,
    "fms-base-Llama-2-70B-GPTQ-accelerated-peft-autogptq-2gpu-bs2-lora": 0.07,
}


@pytest.mark.parametrize(("name", "within"), WITHIN.items())
def test_a_measured_training_is_met(name: str, within: float) -> None:
    measured = CASES[name]["measured"]
    asked = {**CASES[name], "measured": dict.fromkeys(measured, 0)}  # an answer is no input
    predicted = predict_case(asked, name)
    assert predicted.keys() == measured.keys()
    for metric, value in measured.items():
        assert predicted[metric] == pytest.approx(value, rel=within)
