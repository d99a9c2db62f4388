"""How transformers' Trainer loads, evaluates and saves: over accelerate, under FSDP, DeepSpeed and bitsandbytes.

Read: transformers 5.23 (`core_model_loading.py`, `modeling_utils.py`, `trainer.py`, `integrations/deepspeed.py`),
accelerate 1.15 (`accelerator.py`, `utils/fsdp_utils.py`, `utils/dataclasses.py`), torch 2.13 (`serialization.py`,
`distributed/_state_dict_utils.py`, `distributed/fsdp/_state_dict_utils.py`, `distributed/tensor/placement_types.py`),
safetensors 0.8 (`torch.py`), bitsandbytes 0.50 (`functional.py`), DeepSpeed 0.19.6 (`runtime/engine.py`,
`checkpoint/utils.py`), peft 0.21 (`utils/other.py`, `utils/save_and_load.py`).

- A safetensors file is mapped, and a tensor that keeps its dtype is a view of the file: nothing is asked for on the
  host. One that changes it is a copy.
- The model is built without memory and its tensors are put in, one by one. The Trainer then moves it to the device.
- What bitsandbytes quantizes is moved first, one weight at a time, and quantized there.
- Under FSDP the first process of each node loads, under ZeRO stage 3 the first of all; the others get theirs sent.
- `save_file` copies all tensors of a file to the host before it writes the first (files end at 50 GB), `torch.save` one
  storage after the other.
- Under ZeRO stages 1 and 2 every process copies the whole model to the host, and one of them writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weigh.dtypes import FLOAT16, FLOAT32, UINT8
from weigh.runtimes.evaluation import BATCH, on_host
from weigh.runtimes.phases import (
    EVALUATING,
    LOADING,
    PHASES,
    SAVING,
    SAVING_STATES,
    JobPhase,
    Level,
    Surroundings,
    Whole,
    in_order,
    unknown,
)
from weigh.techniques.quantization import BLOCK, FOUR_BITS, NESTED_BLOCK

FILE = 50 * 10**9
"""Bytes of a file that `save_pretrained` writes at most (`max_shard_size`, "50GB")."""

LOADERS = "transformers 5.23, accelerate 1.15, safetensors 0.8"
WRITERS = "transformers 5.23, accelerate 1.15, torch 2.13, safetensors 0.8"


def phases(s: Surroundings) -> Iterator[JobPhase]:
    """Loading, an evaluation, a checkpoint."""
    offloaded = s.recipe.offload_parameters or s.recipe.offload_optimizer
    around = {phase.name: phase for phase in around_steps(s)} if not offloaded else {}
    for name in PHASES:
        if name == EVALUATING:
            yield evaluating(s)
        else:
            yield around.get(name) or unknown(name, "how what lies on the host is loaded and saved was not read")


def around_steps(s: Surroundings) -> Iterator[JobPhase]:
    """The same without the evaluation."""
    yield loading(s)
    yield saving(s)
    yield saving_states(s)


# -- loading ---------------------------------------------------------------------------------------
def loading(s: Surroundings) -> JobPhase:
    """`from_pretrained`, and the way to the device."""
    r = s.recipe
    if r.quantization == "gptq":
        return unknown(LOADING, "how GPTQ's weights are put into a model was not read")
    if r.quantization is not None:
        return _quantizing(s)
    if s.stored is None:
        return JobPhase(LOADING, s.loaded, what="the host is not weighed: nobody says in which dtype the checkpoint is")
    if s.stacked:
        what = "the host is not weighed: experts are stacked while threads read ahead, so that time decides"
        return JobPhase(LOADING, s.loaded, what=what, source=LOADERS)
    copied = sum(tensor.num_bytes for tensor in s.tensors if tensor.dtype is not s.stored)
    mapped = sum(tensor.numel * s.stored.itemsize for tensor in s.tensors)
    how = f"copied from {s.stored.name} to {r.dtype.name}" if copied else "mapped"
    if r.shard == "zero3":
        return JobPhase(LOADING, _gathering(s), 0, 0, mapped, "the first process maps the files", LOADERS)
    if r.shard in ("fsdp1", "fsdp2"):
        unit, device = ("tensor", _distributing(s)) if r.shard == "fsdp2" else ("unit", s.loaded)
        what = f"the first process of a node has the model, {how}, and sends it {unit} by {unit}"
        return JobPhase(LOADING, device, copied, copied, mapped, what, LOADERS)
    what = f"every process has the model on the host, {how}, before it moves to the device"
    return JobPhase(LOADING, s.loaded, copied, copied * s.processes, mapped, what, LOADERS)


def _quantizing(s: Surroundings) -> JobPhase:
    """`Bnb4bitQuantize`, `Bnb8bitQuantize`: a weight whole on the device, beside what is made of it."""
    device, host, r = Level(), Level(), s.recipe
    for tensor in in_order(s.tensors):
        device.take(tensor.num_bytes)
        if tensor.linear:
            if r.quantization in FOUR_BITS:
                stays, beside = _four_bits(tensor, r.double_quantization)
            else:
                stays, beside = _eight_bits(tensor)
                host.take(tensor.num_bytes + beside)  # the weight goes there and comes back in fp16
                host.drop(tensor.num_bytes + beside)
            device.take(stays + beside)
            device.drop(beside + tensor.num_bytes)
    for tensor in s.tensors:
        if not tensor.linear and (r.upcast == "all" or (r.upcast == "norms" and "norm" in tensor.name)):
            device.take(tensor.numel * FLOAT32.itemsize)
            device.drop(tensor.num_bytes)
    mapped = 0 if s.stored is None else sum(t.numel * s.stored.itemsize for t in s.tensors)
    what = "each weight moves whole to the device and is quantized there"
    peak = max(device.peak, s.loaded)
    return JobPhase(LOADING, peak, host.peak, host.peak * s.processes, mapped, what, f"{LOADERS}, bitsandbytes 0.50")


def _four_bits(tensor: Whole, nested: bool) -> tuple[int, int]:
    """Bytes that stay of a weight, and those that are there besides while it is quantized (`quantize_4bit`)."""
    blocks = -(-tensor.numel // BLOCK)
    packed = -(-tensor.numel // 2)
    if not nested:
        return packed + blocks * FLOAT32.itemsize, 0
    scales = blocks * UINT8.itemsize + -(-blocks // NESTED_BLOCK) * FLOAT32.itemsize
    return packed + scales, 2 * blocks * FLOAT32.itemsize  # the scales, and their differences from the mean


def _eight_bits(tensor: Whole) -> tuple[int, int]:
    """The same of `Int8Params._quantize`: a copy in fp16."""
    beside = 0 if tensor.dtype is FLOAT16 else tensor.numel * FLOAT16.itemsize
    return tensor.numel + tensor.shape[0] * FLOAT32.itemsize, beside


def _distributing(s: Surroundings) -> int:
    """`fsdp2_load_full_state_dict`: a tensor whole on the device, its chunks, and the shard that stays."""
    level, ranks = Level(), s.recipe.mesh.shard
    for tensor in s.tensors:
        shard = s.gathered(tensor) // ranks
        padded = shard if tensor.shape[0] % ranks else 0  # the last chunk is copied to be padded
        level.take(tensor.num_bytes + padded + shard)
        level.drop(tensor.num_bytes + padded)
    return max(level.peak, s.loaded)


def _gathering(s: Surroundings) -> int:
    """`GatheredParameters`: a module's parameters whole, beside the shards of all."""
    return max(s.loaded, s.held + _largest_module(s))


# -- evaluation ------------------------------------------------------------------------------------
def evaluating(s: Surroundings) -> JobPhase:
    """`evaluation_loop`."""
    r = s.recipe
    batch = r.eval_batch or BATCH
    kept = {"loss": "the losses", "logits": "the logits", "argmax": "the most likely tokens"}[r.eval_keeps]
    what = f"batches of {batch} on each device, of which {kept} are kept"
    host = on_host(r, s.vocabulary, FLOAT32 if r.autocast is not None else r.dtype)
    return JobPhase(EVALUATING, s.evaluated(), host, host * s.processes, 0, what, LOADERS)


# -- saving ----------------------------------------------------------------------------------------
def saving(s: Surroundings) -> JobPhase:
    """`save_model`."""
    r = s.recipe
    if r.tuned is not None:
        if r.shard is not None or r.lora is None:
            return unknown(SAVING, "how such adapters are gathered was not read")
        what = "the first process copies the adapters to the host and writes them"
        return JobPhase(SAVING, s.resident, s.trained, s.trained, 0, what, f"{WRITERS}, peft 0.21")
    if s.stacked:
        return unknown(SAVING, "stacked experts are taken apart, and what that copies was not read")
    if r.shard in ("zero1", "zero2"):
        what = "every process copies the whole model to the host, and one writes it"
        return _on_host(SAVING, s, s.resident, s.num_bytes, s.num_bytes * s.processes, what)
    if r.shard == "zero3" and _sharded(s):
        what = "every process writes its shards with the optimizer's states, one storage on the host at a time"
        host = max(s.states, default=0)
        return _on_host(SAVING, s, s.resident, host, host * s.processes, what)
    if _sharded(s):
        what = "every process copies its shards to the host and writes them"
        return _on_host(SAVING, s, s.resident, s.held, s.held * s.processes, what)
    if r.shard == "zero3":
        what = "modules are gathered one by one and copied to the first process's host, which writes them"
        return _on_host(SAVING, s, s.resident + _largest_module(s), s.num_bytes, s.num_bytes, what)
    if r.shard == "fsdp2":
        what = "tensors are gathered one by one and copied to the first process's host, which writes them"
        gathered = max(s.gathered(tensor) for tensor in s.tensors)
        return _on_host(SAVING, s, s.resident + gathered, s.num_bytes, s.num_bytes, what)
    if r.shard == "fsdp1":
        unit = max(s.units)
        what = "units are gathered one by one and copied to the first process's host, which writes them"
        return _on_host(SAVING, s, s.resident + unit, sum(s.units) + unit, sum(s.units) + unit, what)
    host = max(_files(in_order(s.tensors)))
    what = "the first process copies the tensors of a file (50 GB at most) to the host and writes them"
    return _on_host(SAVING, s, s.resident, host, host, what)


def saving_states(s: Surroundings) -> JobPhase:
    """`_save_optimizer_and_scheduler`."""
    r = s.recipe
    if not s.states:
        return JobPhase(SAVING_STATES, s.resident, 0, 0, 0, "the optimizer has no states", WRITERS)
    if r.shard is None or str(r.shard).startswith("zero"):
        who = "every process writes its own" if r.shard else "the first process writes them"
        host, what = max(s.states), f"{who}, one storage on the host at a time"
        return _on_host(SAVING_STATES, s, s.resident, host, host * (s.processes if r.shard else 1), what)
    if _sharded(s):
        what = "every process copies its states to the host and writes them"
        return _on_host(SAVING_STATES, s, s.resident, s.state_bytes, s.state_bytes * s.processes, what)
    states, left = divmod(s.state_bytes, s.trained)
    if r.shard == "fsdp2" and not left and s.trained == s.held:
        host = states * s.num_bytes
        what = "states are gathered one by one and copied to the first process's host, which writes them"
        return _on_host(SAVING_STATES, s, s.resident + max(map(s.gathered, s.tensors)), host, host, what)
    return unknown(SAVING_STATES, f"how {r.shard} gathers such states was not read")


def _sharded(s: Surroundings) -> bool:
    """Of FSDP1 accelerate saves `FULL_STATE_DICT` where nobody says, of others shards."""
    r = s.recipe
    if r.shard not in ("fsdp1", "fsdp2", "zero3"):
        return False
    return (r.state_dict or ("full" if r.shard == "fsdp1" else "sharded")) == "sharded"


def _on_host(name: str, s: Surroundings, device: int, host: int, node: int, what: str) -> JobPhase:
    deepspeed = ", DeepSpeed 0.19.6" if str(s.recipe.shard).startswith("zero") else ""
    unverified = "; read, not run" if deepspeed or s.recipe.shard == "fsdp1" else ""
    return JobPhase(name, device, host, node, 0, what + unverified, WRITERS + deepspeed)


def _files(tensors: Iterable[Whole]) -> Iterator[int]:
    """The bytes of each file that `split_torch_state_dict_into_shards` makes."""
    size = 0
    for tensor in tensors:
        if size and size + tensor.num_bytes > FILE:
            yield size
            size = 0
        size += tensor.num_bytes
    yield size


def _largest_module(s: Surroundings) -> int:
    """Bytes of a module's own parameters at most."""
    modules: dict[str, int] = {}
    for tensor in s.tensors:
        module = tensor.name.rpartition(".")[0]
        modules[module] = modules.get(module, 0) + tensor.num_bytes
    return max(modules.values(), default=0)
