"""Measured cases: what a GPU used, as somebody published it.

A case's keys become the words of a recipe (`weigh.recipes.training`), and its runtime says how they are run. A key that
decides memory and that nothing here understands is an error, so that no case is predicted as another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from weigh import runtimes
from weigh.errors import NotModelledError, UnknownNameError, WeighError
from weigh.hardware.devices import all_devices, get_device
from weigh.recipes import trained
from weigh.recipes.settings import make
from weigh.recipes.training import Training
from weigh.runtimes.litgpt import ADAPTERS, DROPOUT
from weigh.techniques.adapters import of_peft
from weigh.techniques.adapters.base import ALL_LINEAR
from weigh.techniques.lora import Lora
from weigh.validate.counts import counting_case
from weigh.validate.measured import training_metrics
from weigh.validate.megatron import megatron_version, megatron_words
from weigh.validate.serving import serving_case

AXES = {"tensor": "tensor", "pipeline": "pipeline", "context": "context", "expert": "expert"}
"""A case's names for the axes of the mesh, and the recipe's."""


REENTRANT = re.compile(r"(?<!non-)(?<!non_)reentrant(?!.*False)")
"""In the words that a case has for its checkpoints."""


def predict_case(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """A prediction for every metric of a case that weigh can predict.

    Raises:
        WeighError: it cannot predict this case; it says why.
    """
    if row.get("task") == "serve":
        return serving_case(row, where)
    config = (row.get("model") or {}).get("config")
    if not isinstance(config, dict):
        raise WeighError("the case has no config")
    if row.get("task") == "parameters":
        return counting_case(row, config, where)
    return _training_case(row, config, where)


def _training_case(row: Mapping[str, Any], config: Mapping[str, Any], where: str) -> dict[str, int]:
    if str(row["model"].get("name")).startswith("rasbt/"):
        row, config = _of_the_book(row, config)
    if row.get("runtime") == "torchtitan":
        row = _of_torchtitan(row)
    if row.get("runtime") == "litgpt":
        row, config = _of_litgpt(row, config)
    if "MetaMathQA" in str((row.get("extra") or {}).get("framework")):
        row = {**row, "runtime": "metamathqa"}
    runtime = runtimes.get(str(row.get("runtime")))
    said = megatron_words(row) if runtime.name == "megatron" else training_words(row)
    words = runtime.settings({**said, **_device(row)}, config, _version(row))
    outside = sum(overhead.num_bytes for overhead in runtime.outside)
    device_bytes = _device_bytes(row.get("device") or {})
    found: dict[str, int] = {}
    for rank, wanted in _ranks(row).items():
        recipe: Training = make(Training, {**words, "rank": rank})
        run = trained.run(config, recipe, where, loop=runtime.loop)
        if runtime.name == "metamathqa":  # means over batches whose lengths are not printed
            wanted = tuple(name for name in wanted if not name.endswith("after_step"))
        for name, value in training_metrics(run, wanted, outside, device_bytes, runtime.allocator(recipe)).items():
            found[name] = max(value, found.get(name, 0))
    return found


def _ranks(row: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """The ranks whose figures a case has, each with its metrics; a plain name is the highest over pipeline stages."""
    found: dict[int, list[str]] = {}
    parallel = row.get("parallel") or {}
    stages, world = parallel.get("pipeline") or 1, parallel.get("world") or 1
    for name in row["measured"]:
        plain = range(0, world, max(1, world // stages)) if "_rank" not in name else [int(name.rpartition("_rank")[2])]
        for rank in plain:
            found.setdefault(rank, []).append(name)
    return {rank: tuple(names) for rank, names in found.items()}


def _of_the_book(row: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Plain PyTorch, but with the modules of a book: which of them, a case says in words."""
    extra = row.get("extra") or {}
    found = {
        "mask_buffers": "registered per layer" in str(extra.get("attention_detail")),
        "native_classes": not str(extra.get("norm_impl")).startswith("from-scratch"),
    }
    return {**row, "runtime": "llms_from_scratch"}, {**config, **found}


def _of_litgpt(row: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Its adapters are parts of its model, its loss is its only one, and LoRA has the script's dropout."""
    adapter = row.get("adapter")
    found: dict[str, Any] = {"litgpt_2023": "2023" in str(row.get("runtime_version"))}
    if adapter and adapter.get("kind") in ADAPTERS:
        found["litgpt_adapter"], adapter = adapter["kind"], None
    elif adapter and adapter.get("dropout") is None:
        adapter = {**adapter, "dropout": DROPOUT}
    if adapter and adapter.get("targets") == "all_linear":
        adapter = {**adapter, "targets": LITGPT_LAYERS}
    return {**row, "adapter": adapter, "loss": None}, {**config, **found}


LOSS_COMPILED = (2025, 3)
"""Year and month since which torchtitan compiles its loss beside its blocks (`components/loss.py`)."""


def _of_torchtitan(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its only loss; what is not modelled is said by name.

    Compiled, a float8 linear layer saves what another one does: casts are made again, or fused into what is before.
    """
    compute = (row.get("precision") or {}).get("compute")
    if compute not in (None, "bf16") and not (compute == "fp8" and row.get("compile")):
        raise NotModelledError(f"{compute} linear layers", where="precision.compute")
    if row.get("loss") not in (None, "eager"):
        raise NotModelledError(f"the loss {row['loss']!r}", where="loss")
    dated = re.search(r"\((20\d\d)/(\d\d)/", str(row.get("runtime_version")))
    compiled = row.get("compile") and dated and (int(dated[1]), int(dated[2])) >= LOSS_COMPILED
    return {**row, "loss": "compiled" if compiled else None, "precision": {}}


def _version(row: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The release of the case's runtime, where it is printed ("torch 2.4.1, transformers 4.48.1")."""
    if row.get("runtime") == "megatron":
        return megatron_version(str(row.get("runtime_version")))
    name = re.escape(str(row.get("runtime")))
    printed = re.search(name + r"\s+v?(\d+(?:\.\d+)*)", str(row.get("runtime_version")))
    return tuple(map(int, printed[1].split("."))) if printed else None


def _device(row: Mapping[str, Any]) -> dict[str, Any]:
    """The CPU's kernels, or the compute capability, where the catalogue has a device of that name.

    "H100 96GB HBM2e" is an H100.
    """
    if (row.get("device") or {}).get("name") == "cpu":
        return {"kernels": "cpu"}
    name = str((row.get("device") or {}).get("name")).lower().replace("-", " ")
    words = re.sub(r"\bgb200\b", "b200", name).replace("a800", "a100").split()  # the same chip beside a CPU; exported
    for device in all_devices():
        if device.name.removeprefix("rtx-").split("-")[0] in words and device.compute_capability is not None:
            return {"compute_capability": ".".join(map(str, device.compute_capability))}
    return {}


def _device_bytes(device: Mapping[str, Any]) -> int | None:
    """What the device holds: as the case says, or as the catalogue does of a name that means one device."""
    if device.get("memory_bytes") is not None:
        return int(device["memory_bytes"])
    try:
        found = get_device(str(device.get("name")))
    except UnknownNameError:
        return None
    return found.memory_bytes - (found.reserved_bytes or 0)


def training_words(case: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `Training` that a case states, by name.

    Raises:
        NotModelledError: it states something that no setting can say.
    """
    for key in ("batch", "sequence"):
        if case.get(key) is None:
            raise WeighError(f"the case does not say its {key}", where=key)
    words: dict[str, Any] = {"batch": case["batch"], "sequence": case["sequence"]}
    # the first micro-batch makes gradients, the last one may reduce them; all between are like the second
    words |= {"accumulation": min(case.get("gradient_accumulation") or 1, 3)}
    words |= dict(_precision(case))
    words |= dict(_optimizer(case))
    words |= dict(_parallel(case.get("parallel") or {}))
    mode = (case.get("checkpointing") or {}).get("mode")
    per_op = case.get("runtime") == "torchtitan" and mode == "selective"
    if mode not in (None, "none", "full") and not per_op:
        raise NotModelledError(f"{mode} checkpointing", where="checkpointing")
    words["checkpointing"] = mode if mode in ("full", "selective") else None
    if mode == "full" and REENTRANT.search(str((case.get("checkpointing") or {}).get("detail"))):
        words["checkpointing"] = "reentrant"
    if case.get("adapter"):
        words |= dict(_adapter(case["adapter"], (case.get("extra") or {}).get("adapter_detail")))
    attention = case.get("attention")
    if attention in ("eager", "sdpa"):
        words["attention"] = attention
    elif attention == "flash":
        words["attention"] = "flash_attention_2"
    elif attention is not None:
        raise NotModelledError(f"{attention} attention", where="attention")
    words |= dict(_fused(case))
    words |= dict(_switches(case))
    return words


def _switches(case: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    torchtune, offload = case.get("runtime") == "torchtune", case.get("offload")
    if case.get("compile"):
        yield "compile", True
    if offload == "activations" and torchtune:
        yield "offload_activations", True
    elif offload:
        if not str(offload).startswith("parameters") or (case.get("parallel") or {}).get("shard") != "fsdp1":
            raise NotModelledError(f"offloading {offload}", where="offload")
        yield "offload_parameters", True


MLP_LAYERS = "mlp gate_proj up_proj down_proj fc1 fc2 fc_in fc_out c_fc mlp.c_proj w1 w2 dense_h_to_4h dense_4h_to_h"
TARGETS = {"mlp": tuple(MLP_LAYERS.split()), "all_linear": (ALL_LINEAR,)}
"""A case's words for several layers; what a family does not call its layers finds none there."""
LITGPT_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp")


FMS_KERNELS = "foak"
"""In the names of fms-acceleration's configurations that put Unsloth's kernels into a model."""


FMS_QUANTIZED = "peft-bnb"
"""In the names of those that quantize with bitsandbytes, always the scales too (framework_plugin_bnb.py)."""


def _fused(case: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    loss, configuration = case.get("loss"), str((case.get("extra") or {}).get("framework_config"))
    if FMS_KERNELS in configuration:
        yield "fused_kernels", "unsloth"
    if case.get("runtime") == "torchtune" and loss in ("chunked", "eager"):
        yield "loss", "chunked" if loss == "chunked" else "upcast"
        return
    if loss == "liger_fused_linear" or (case.get("runtime") == "torchtitan" and loss == "compiled"):
        yield "loss", "liger_fused_linear_early" if loss == "liger_fused_linear" else loss  # fms-acceleration's copy
    elif loss not in (None, "eager", "fused" if FMS_KERNELS in configuration else None):
        raise NotModelledError(f"the loss {loss!r}", where="loss")


def _precision(case: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    weights, precision = case.get("weights") or {}, case.get("precision") or {}
    if weights.get("quantization"):
        yield from _quantization(case, weights["quantization"])
    dtype = weights.get("dtype") or (precision.get("compute") if weights.get("quantization") else None)
    if dtype is None and case.get("runtime") == "transformers":
        raise WeighError("the case does not say the dtype of its weights", where="weights.dtype")
    dtype = dtype or "fp32"
    if precision.get("master_weights") not in (None, dtype):
        raise NotModelledError(f"{precision['master_weights']} master weights", where="precision.master_weights")
    yield "dtype", dtype
    if precision.get("autocast"):
        yield "autocast", precision.get("compute")


SAY_THEMSELVES = ("fsdp_qlora", "litgpt", "ms-swift", "torchtune")
"""Programs that say how they quantize, where a case does not."""


def _quantization(case: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if case.get("runtime") in SAY_THEMSELVES and found.get("method") == "nf4":
        yield "quantization", "nf4"
        if found.get("double_quantization") is not None:
            yield "double_quantization", bool(found["double_quantization"])
        return
    if found.get("method") == "gptq" and found.get("bits") == 4:
        yield "quantization", "gptq"
        if found.get("group_size") is not None:
            yield "group_size", max(0, found["group_size"])
        return
    configuration = (case.get("extra") or {}).get("framework_config")
    if found.get("method") != "nf4" or FMS_QUANTIZED not in str(configuration):
        raise NotModelledError(f"{found.get('method')} weights", where="weights.quantization")
    yield "quantization", "nf4"
    yield "double_quantization", True
    if configuration == "baseline-peft-bnb" and (case.get("parallel") or {}).get("world") == 1:
        yield "upcast", "norms"


OPTIMIZER_NAMES = {
    **{f"{paged}{kind}8bit": f"{paged}{kind}_8bit" for paged in ("", "paged_") for kind in ("adam", "adamw", "lion")},
    **{f"paged_{kind}": f"paged_{kind}_32bit" for kind in ("adam", "adamw", "lion")},
    **{f"{kind}_bnb_8bit": f"{kind}_8bit" for kind in ("adam", "adamw", "lion")},
    "adamw_torch": "adamw",
    "galore_adamw": "galore",
    "galore_adamw8bit": "galore_adamw_8bit",
}
"""A case's names of optimizers, as bitsandbytes and transformers spell them, and the recipe's."""


def _optimizer(case: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    found = case.get("optimizer") or {}
    name = found.get("name")
    yield "optimizer", OPTIMIZER_NAMES.get(str(name), name)
    if (case.get("extra") or {}).get("optimizer_in_backward"):
        yield "optimizer_in_backward", True
    projected = (case.get("extra") or {}).get("galore") or {}
    if projected.get("quantized_projection"):
        raise NotModelledError("projections of gradients in 8 bits (Q-GaLore)", where="extra.galore")
    if projected.get("galore_rank"):
        yield "projection_rank", int(projected["galore_rank"])
    if found.get("implementation"):
        yield "implementation", found["implementation"]
    if found.get("clip"):
        yield "clip", True


def _parallel(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "gpus_per_node", found.get("world") or 1
    for theirs, ours in AXES.items():
        if found.get(theirs):
            yield ours, found[theirs]
    if found.get("shard") not in (None, "none"):
        yield "shard", found["shard"]


def _adapter(adapter: Mapping[str, Any], detail: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if adapter.get("kind") not in ("lora", "dora"):
        if detail is None:
            raise NotModelledError(f"the adapter {adapter.get('kind')!r}", where="adapter")
        yield "adapter", make(*of_peft(detail))
        return
    if adapter.get("rank") is None or not adapter.get("targets"):
        raise WeighError("the case does not say the adapters' rank, or which layers have one", where="adapter")
    targets = [adapter["targets"]] if isinstance(adapter["targets"], str) else adapter["targets"]
    named = (TARGETS.get(target, (target,)) for target in targets)
    found: dict[str, Any] = {"rank": adapter["rank"], "targets": tuple(name for names in named for name in names)}
    found["dora"] = adapter["kind"] == "dora"
    found["modules_to_save"] = tuple(adapter.get("modules_to_save") or ())
    if adapter.get("dropout") is not None:
        found["dropout"] = adapter["dropout"]
    yield "lora", make(Lora, found)
