"""What real programs take around the steps of a training, measured in a process of its own; prints JSON.

Loading: anonymous memory of the process while `from_pretrained` runs. Evaluating: the CPU allocator's peak while
`Trainer.evaluate` runs. FSDP2: loading and saving under accelerate on fake CUDA tensors, the bytes on the device and on
the host at their peaks, and the device's before.
"""

import json
import logging
import os
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils.fsdp_utils import fsdp2_load_full_state_dict
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from weigh.measure import fake_cuda
from weigh.measure.counters import Profiled
from weigh.measure.recorder import Recorder

transformers_logging.disable_progress_bar()


def anonymous() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def peak_of(run: Callable[[], Any]) -> int:
    """How far anonymous memory rises while something runs."""
    before = highest = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, anonymous())
            time.sleep(0.001)

    watching = threading.Thread(target=watch)
    watching.start()
    kept = run()
    highest = max(highest, anonymous())
    done.set()
    watching.join()
    del kept
    return highest - before


def loading(config: dict[str, Any]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20MB")
        assert len([name for name in os.listdir(folder) if name.endswith(".safetensors")]) > 2  # noqa: PTH208
        peak_of(lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))  # what a first time costs
        dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
        return {
            name: peak_of(lambda dtype=dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
            for name, dtype in dtypes.items()
        }


class Same(Dataset[Any]):
    def __init__(self, count: int, length: int) -> None:
        self.count, self.ids = count, torch.arange(length)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids, "labels": self.ids}


def evaluating(config: dict[str, Any], keeps: str, bf16: bool, batch: int, batches: int, length: int) -> int:
    AcceleratorState._reset_state(True)
    more: dict[str, Any] = {}
    if keeps != "loss":
        more["compute_metrics"] = lambda prediction: {"size": float(prediction.predictions.size)}
    if keeps == "argmax":
        more["preprocess_logits_for_metrics"] = lambda logits, labels: logits.argmax(-1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, use_cpu=True, per_device_eval_batch_size=batch, report_to=[], disable_tqdm=True, bf16=bf16
        )
        model = LlamaForCausalLM(LlamaConfig(**config))
        trainer = Trainer(model, arguments, eval_dataset=Same(batch * batches, length), **more)
        profiled = Profiled()
        with profiled:
            profiled.mark("evaluate")
            trainer.evaluate()
    (found,) = (row for row in profiled.peaks() if row["phase"] == "evaluate")
    return int(found["peak"] - found["before"])


class Level(Recorder):
    highest = 0

    def _birth(self, *args: Any) -> None:
        super()._birth(*args)
        self.highest = max(self.highest, self.live)


def levels(run: Callable[[], Any], there: list[torch.Tensor]) -> dict[str, int]:
    """The peaks on both, and what lay on the device before."""
    with ExitStack() as stack:
        device, host = (stack.enter_context(Level(name)) for name in ("cuda", "cpu"))
        for tensor in there:
            device.adopt(tensor)
        before = device.live
        kept = run()
    del kept
    return {"device": device.highest - before, "host": host.highest}


def sharded(config: dict[str, Any], ranks: int) -> dict[str, dict[str, int]]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    mesh = init_device_mesh("cuda", (ranks,))
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        whole = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        first = types.SimpleNamespace(is_main_process=True)
        found["load"] = levels(lambda: fsdp2_load_full_state_dict(first, model, whole), [])
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        shards = list(model.parameters())
        shards += [t for state in optimizer.state.values() for t in (state["exp_avg"], state["exp_avg_sq"])]
        for word, full in (("full", True), ("sharded", False)):
            how = StateDictOptions(full_state_dict=full, broadcast_from_rank0=full, cpu_offload=True)
            found[f"model {word}"] = levels(lambda how=how: get_model_state_dict(model, options=how), shards)
            found[f"optimizer {word}"] = levels(
                lambda how=how: get_optimizer_state_dict(model, optimizer, options=how), shards
            )
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asked = json.loads(sys.argv[1])
    answer: dict[str, Any] = {"loading": loading(asked["large"])}
    answer["evaluating"] = [evaluating(asked["small"], **job) for job in asked["evaluations"]]
    fake_cuda.install()
    answer["sharded"] = {str(ranks): sharded(asked["small"], ranks) for ranks in asked["ranks"]}
    print(json.dumps(answer), flush=True)
    os._exit(0)
