"""DeepSpeed's ZeRO on the CPU, one rank of a fake process group: every storage of two steps, recorded.

`python -m support.real_deepspeed` prints a row of `tests/data/deepspeed.jsonl` for each case; it needs deepspeed 0.19.6
installed for the CPU (`DS_BUILD_OPS=0 DS_ACCELERATOR=cpu`). Host and device are one memory here. Over gloo, with
as many processes, the levels are the same but for what its threads let go of when they come to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

CONFIG = {"model_type": "gpt2", "n_layer": 5, "n_embd": 64, "n_head": 2, "vocab_size": 900, "n_positions": 64}
SEQUENCE = 16
BUCKET = {"reduce_bucket_size": 30_000}
THREE = {"stage": 3, **BUCKET, "stage3_prefetch_bucket_size": 50_000, "stage3_param_persistence_threshold": 100}
OPTIMIZER = {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
BOTH = {**OPTIMIZER, "offload_param": {"device": "cpu", "pin_memory": True}}
CASES: dict[str, dict[str, Any]] = {
    "stage 1": {"zero": {"stage": 1, **BUCKET}},
    "stage 1, overlapping, checkpoints, the last of three": {
        "zero": {"stage": 1, **BUCKET, "overlap_comm": True}, "world": 3, "rank": 2, "checkpointing": "full"},
    "stage 1, two micro-batches": {"zero": {"stage": 1, **BUCKET}, "accumulation": 2},
    "stage 1, offloaded, two micro-batches": {"zero": {"stage": 1, **BUCKET, **OPTIMIZER}, "accumulation": 2},
    "stage 2": {"zero": {"stage": 2, **BUCKET}},
    "stage 2, fp32": {"zero": {"stage": 2, **BUCKET}, "dtype": "fp32"},
    "stage 2, overlapping": {"zero": {"stage": 2, **BUCKET, "overlap_comm": True}},
    "stage 2, a large bucket, two micro-batches": {
        "zero": {"stage": 2, "reduce_bucket_size": 1_000_000}, "accumulation": 2},
    "stage 2, an embedding of more than a partition": {
        "zero": {"stage": 2, **BUCKET}, "config": {"vocab_size": 4000}, "rank": 1},
    "stage 2, offloaded": {"zero": {"stage": 2, **BUCKET, **OPTIMIZER}},
    "stage 2, offloaded, two micro-batches": {"zero": {"stage": 2, **BUCKET, **OPTIMIZER}, "accumulation": 2},
    "stage 3": {"zero": THREE},
    "stage 3, offloaded": {"zero": {**THREE, **OPTIMIZER}},
    "stage 3, all offloaded": {"zero": {**THREE, **BOTH}},
    "stage 3, all offloaded, sub-groups, two micro-batches": {
        "zero": {**THREE, **BOTH, "sub_group_size": 20_000}, "accumulation": 2},
    "stage 3, shards of two in groups": {"zero": {**THREE, "zero_hpz_partition_size": 2}, "world": 4},
    "stage 3, shards of two in groups, checkpoints, two micro-batches": {
        "zero": {**THREE, "zero_hpz_partition_size": 2}, "world": 4, "accumulation": 2, "checkpointing": "full"},
}  # fmt: skip
"""What each is besides two steps of two ranks in bf16."""


def train(case: dict[str, Any]) -> list[list[Any]]:
    """Before and at the peak of every phase of a rank."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import GPT2Config, GPT2LMHeadModel

    from weigh.measure.recorder import Recorder
    from weigh.trace.peak import phase_peaks

    torch.set_num_threads(1)
    rank, world = case.get("rank", 0), case.get("world", 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    deepspeed.init_distributed("fake", verbose=False)
    accumulation, dtype = case.get("accumulation", 1), case.get("dtype", "bf16")
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": case["zero"],
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if dtype == "bf16":
        settings["bf16"] = {"enabled": True}
    sizes = {k: v for k, v in {**CONFIG, **case.get("config", {})}.items() if k != "model_type"}
    with Recorder("cpu") as recorder:
        recorder.mark("load")
        torch.set_default_dtype(torch.bfloat16 if dtype == "bf16" else torch.float32)
        divided = deepspeed.zero.Init(config_dict_or_path=settings) if case["zero"]["stage"] == 3 else nullcontext()
        with divided:
            model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).train()
        torch.set_default_dtype(torch.float32)
        if case.get("checkpointing"):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        ids, labels = torch.randint(0, 10, (1, SEQUENCE)), torch.randint(0, 10, (1, SEQUENCE))
        for number in range(2):
            for micro_batch in range(accumulation):
                recorder.mark("forward", number)
                loss = engine(input_ids=ids, labels=labels, use_cache=False).loss
                recorder.mark("backward", number)
                engine.backward(loss)
                del loss
                if micro_batch == accumulation - 1:
                    recorder.mark("step", number)
                engine.step()
        recorder.end()
    return [[p.mark.phase, p.before, p.peak] for p in phase_peaks(recorder.trace())]


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    if len(sys.argv) == 2:
        print(json.dumps({"case": sys.argv[1], **CASES[sys.argv[1]], "peaks": train(CASES[sys.argv[1]])}), flush=True)
        os._exit(0)
    for name in CASES:  # each in a process of its own: the engine leaves hooks
        subprocess.run([sys.executable, "-W", "ignore", "-m", "support.real_deepspeed", name], check=True)


if __name__ == "__main__":
    main()
