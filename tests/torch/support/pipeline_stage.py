"""A stage of a small Llama under torch's own schedules, on fake CUDA tensors over a fake process group.

python -m support.pipeline_stage    reads rows from standard input, prints them with `peak` and `after`: live bytes
above those before the second step
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from support.meter import Meter
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from weigh.measure import fake_cuda
from weigh.measure.attention import Attention
from weigh.measure.faithful import as_real

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Stage(torch.nn.Module):
    """The rank's layers, behind the embedding on the first stage, before norm and head on the last."""

    def __init__(self, model: Any, first: bool, last: bool) -> None:
        super().__init__()
        self.model, self.first, self.last = model, first, last
        if not first:
            model.model.embed_tokens = None
        if not last:
            model.model.norm, model.lm_head = torch.nn.Identity(), None

    def forward(self, x: Any) -> Any:
        given = {"input_ids": x} if self.first else {"inputs_embeds": x}
        hidden = self.model.model(**given, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden) if self.last else hidden


def levels(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what its second step holds."""
    ranks, rank, micro_batches = row["ranks"], row["rank"], row["micro_batches"]
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    config = {k: v for k, v in row["config"].items() if k != "model_type"}
    config["num_hidden_layers"] //= ranks
    first, last = rank == 0, rank == ranks - 1
    batch, sequence, width, vocabulary = row["batch"], row["sequence"], config["hidden_size"], config["vocab_size"]
    with as_real(Attention()), Meter("cuda") as meter:
        with torch.device("cuda"):
            model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
            ids, targets = (torch.empty(batch * micro_batches, sequence, dtype=torch.int64) for _ in range(2))
            hidden, logits = (
                torch.empty(batch, sequence, size, dtype=torch.bfloat16, requires_grad=True)
                for size in (width, vocabulary)
            )
        sample = ids[:batch] if first else hidden
        stage = PipelineStage(
            Stage(model, first, last),
            rank,
            ranks,
            torch.device("cuda"),
            input_args=(sample,),
            output_args=(logits if last else hidden,),
            group=dist.group.WORLD,
        )
        schedule = SCHEDULES[row["schedule"]](
            stage, micro_batches, loss_fn=lambda out, target: ForCausalLMLoss(out, target, vocabulary)
        )
        for _ in range(2):
            meter.restart()
            given = (ids,) if first else ()
            told: dict[str, Any] = {"target": targets, "losses": []} if last else {}
            schedule.step(*given, **told, return_outputs=False)
            row["peak"], row["after"] = max(meter.births) - meter.base, meter.live - meter.base
            model.zero_grad()
            told.clear()
    dist.destroy_process_group()
    return row


if __name__ == "__main__":
    fake_cuda.install()
    torch.random.fork_rng = lambda *_, **__: nullcontext()  # it asks CUDA for its generators
    for line in sys.stdin:
        print(json.dumps(levels(json.loads(line))), flush=True)
    os._exit(0)  # the patched objects of `fake_cuda` are not to be destroyed by the usual exit
