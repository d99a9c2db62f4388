"""Training steps of transformers' models for real on the CPU, every byte counted: a script over jobs given as JSON.

A job is counted in one of three ways. "real": a dispatch mode over real tensors. "fake": the same over fake ones.
"profiled": no mode at all, the allocator's own events as PyTorch's profiler records them; only this way gradients are
summed in place, and only so are buffers seen that kernels use inside.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import transformers
from support.meter import Meter
from support.profiled import Levels, profiler
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build(job: dict[str, Any]) -> torch.nn.Module:
    """The model in training mode, every parameter in the job's dtype."""
    settings = {k: v for k, v in job["config"].items() if k != "model_type"}
    kind = transformers.CONFIG_MAPPING[job["config"]["model_type"]]
    config = kind(**settings, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.set_default_dtype(DTYPES[job["dtype"]])
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=job["attention"])
    finally:
        torch.set_default_dtype(torch.float32)
    if job.get("checkpointing"):
        reentrant = job["checkpointing"] == "reentrant"
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.config.use_cache = False
    return model.train()


def forward(model: torch.nn.Module, job: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """The loss."""
    autocast = torch.autocast("cpu", DTYPES[job["autocast"]]) if job.get("autocast") else nullcontext()
    with autocast:
        loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


@contextmanager
def as_if_real() -> Iterator[None]:
    """Transformers takes fake tensors for a compilation, and then makes masks that a plain run does without."""
    with (
        patch.object(masking_utils, "find_packed_sequence_indices", lambda _: None),
        patch.object(masking_utils, "is_tracing", lambda *_: False),
    ):
        yield


def metered(job: dict[str, Any]) -> dict[str, int]:
    """Two steps of AdamW; the peaks of the second."""
    fake = job["counted"] == "fake"
    with FakeTensorMode() if fake else nullcontext(), as_if_real() if fake else nullcontext(), Meter("cpu") as meter:
        model = build(job)
        ids = torch.randint(0, 10, (job["batch"], job["sequence"]))
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            before = meter.restart()
            loss = forward(model, job, ids)
            answer = {"peak_forward": max(before, *meter.births), "after_forward": meter.restart()}
            loss.backward()
            answer |= {"peak_backward": max(answer["after_forward"], *meter.births)}
            before = meter.restart()
            del loss
            optimizer.step()
            answer["peak_step"] = max(before, *meter.births)
            optimizer.zero_grad()
    return answer | {"peak": max(answer.values())}


def profiled(job: dict[str, Any]) -> dict[str, int]:
    """One pass forward and one backward; the peaks, from the profiler's record of the allocator."""
    gc.collect()  # what an earlier job left in cycles would die inside
    with profiler() as watched:
        model = build(job)
        ids = torch.randint(0, 10, (job["batch"], job["sequence"]))
        with torch.profiler.record_function("the forward pass"):
            loss = forward(model, job, ids)
        with torch.profiler.record_function("the backward pass"):
            loss.backward()
    levels = Levels(watched)
    forward_peak, after_forward = levels.during("the forward pass")
    backward_peak, _ = levels.during("the backward pass")
    return {"peak_forward": forward_peak, "after_forward": after_forward, "peak_backward": backward_peak}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    jobs = json.loads(sys.argv[1])
    print(json.dumps([profiled(job) if job["counted"] == "profiled" else metered(job) for job in jobs]))
