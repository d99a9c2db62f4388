"""FSDP1 on the CPU, one rank of a fake process group: every storage of two steps, recorded.

`python -m support.real_fsdp1` prints a row of `tests/data/fsdp1.jsonl` for each case.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

CONFIG = {
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 172,
}
BATCH, SEQUENCE = 2, 48
LARGE = 30_000
"""Bytes of a storage after whose birth the level is kept: a unit's parameters, gradients, or the logits."""
HYBRID = {"gpus_per_node": 4, "replicas": 2}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "before the backward pass goes on": {"backward_prefetch": None},
    "behind each unit": {"backward_prefetch": "post"},
    "forward too": {"forward_prefetch": True},
    "forward too, kept": {"forward_prefetch": True, "reshard_after_forward": False},
    "flat parameters": {"use_orig_params": False},
    "mixed precision": {"param_dtype": "bf16", "reduce_dtype": "fp32", "checkpointing": "full"},
    "hybrid": HYBRID,
    "hybrid, kept, the last rank": {**HYBRID, "reshard_after_forward": False, "rank": 3},
    "hybrid, mixed precision": {**HYBRID, "param_dtype": "bf16", "forward_prefetch": True},
}


def train(case: dict[str, Any]) -> dict[str, Any]:
    """Before and at the peak of every phase of a rank; and the live bytes after each large birth of the second step."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import BackwardPrefetch, FullyShardedDataParallel, MixedPrecision, ShardingStrategy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from weigh.measure.recorder import Recorder
    from weigh.trace.peak import phase_peaks

    torch.set_num_threads(1)
    world = case.get("gpus_per_node", 2)
    dist.init_process_group("fake", store=FakeStore(), rank=case.get("rank", 0), world_size=world)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    replicas, kept = case.get("replicas", 1), case.get("reshard_after_forward") is False
    strategy = {
        (1, False): ShardingStrategy.FULL_SHARD,
        (1, True): ShardingStrategy.SHARD_GRAD_OP,
        (2, False): ShardingStrategy.HYBRID_SHARD,
        (2, True): ShardingStrategy._HYBRID_SHARD_ZERO2,
    }[replicas, kept]
    prefetch = {"pre": BackwardPrefetch.BACKWARD_PRE, "post": BackwardPrefetch.BACKWARD_POST, None: None}
    low = {name: dtypes[case[name]] for name in ("param_dtype", "reduce_dtype") if name in case}
    shape = (replicas, dist.get_world_size() // replicas) if replicas > 1 else (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    settings = {k: v for k, v in CONFIG.items() if k != "model_type"}
    with Recorder("cpu") as recorder:
        recorder.mark("load")
        config = LlamaConfig(**settings, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
        if case.get("checkpointing"):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        wrapped = FullyShardedDataParallel(
            model,
            auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer}),
            sharding_strategy=strategy,
            device_mesh=mesh,
            mixed_precision=MixedPrecision(**low) if low else None,
            use_orig_params=case.get("use_orig_params", True),
            forward_prefetch=case.get("forward_prefetch", False),
            backward_prefetch=prefetch[case.get("backward_prefetch", "pre")],
            device_id=torch.device("cpu"),
        )
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        ids = torch.randint(0, 131, (BATCH, SEQUENCE))
        for number in range(2):
            recorder.mark("forward", number)
            loss = wrapped(input_ids=ids, labels=ids, use_cache=False).loss
            recorder.mark("backward", number)
            loss.backward()
            del loss
            recorder.mark("step", number)
            optimizer.step()
            optimizer.zero_grad()
        recorder.end()
    dist.destroy_process_group()
    trace = recorder.trace()
    peaks = [[p.mark.phase, p.before, p.peak] for p in phase_peaks(trace)]
    start = next(m.event for m in trace.marks if (m.phase, m.round) == ("forward", 1))
    live, levels = peaks[4][1], []
    for event in trace.events[start:]:
        size = trace.allocations[abs(event) - 1].num_bytes
        live += size if event > 0 else -size
        if event > 0 and size >= LARGE:
            levels.append(live)
    return {"peaks": peaks, "levels": levels}


def main() -> None:
    for name in sys.argv[1:] or CASES:
        settings = {"gpus_per_node": 2, **CASES[name]}
        print(json.dumps({"case": name, "config": CONFIG, "settings": settings, **train(CASES[name])}), flush=True)


if __name__ == "__main__":
    main()
