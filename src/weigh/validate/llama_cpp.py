"""Cases of llama.cpp: what its log prints of buffers, predicted from the hyper-parameters and settings that it prints.

The log names a file type and counts tensors by format; which tensor has which follows from the quantizer's rules, where
the counts agree with them. Releases are not printed: a cache of four sequences that share their cells, or an
architecture that came later, tells 2026 from 2025, and a log that does not say whether cells are shared is from before
July 2025. Ollama, known by the name of its files, asks for embeddings too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from weigh import dtypes, models
from weigh.errors import NotModelledError, WeighError
from weigh.formats import gguf as files
from weigh.formats.gguf.mixes import NEWER, OLDER
from weigh.ghost.state import recording
from weigh.runtimes import llama_cpp
from weigh.runtimes.llama_cpp.placement import FAMILIES, Gguf, How, Placement
from weigh.runtimes.llama_cpp.releases import MIDDLE, OLDEST
from weigh.runtimes.llama_cpp.releases import OLDER as EARLIER
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.gguf_config import ARCHITECTURES, config_of

_CACHE = {"cache_type_k": "type_k", "cache_type_v": "type_v"} | {
    name: name for name in ("n_ubatch", "n_seq_max", "kv_unified", "swa_full", "mla_attn")
}
_SIGNS = ("output.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.0.ffn_norm.weight")
"""Tensors whose presence decides between two configs of the same hyper-parameters."""
_TIED = 3072
"""Where nothing else says, models wider than that have a head of their own."""
_DEVICE = re.compile(r"^(?:model|compute)_buffer_(cuda|rocm|vulkan|metal|sycl)(\d*)(?:_mapped)?$")
_BY_DEVICE = ("model_buffer", "compute_buffer", "kv_cache", "recurrent_state")
_RECENT = frozenset(("gemma4", "qwen35", "qwen35moe", "qwen3next"))


def llama_cpp_case(row: Mapping[str, Any]) -> dict[str, int]:
    """The caches, and of llama.cpp itself the buffers too, as far as the case says enough.

    Raises:
        WeighError: it does not even say how long its context is.
    """
    found, reason = {}, None
    serving = row.get("serving") or {}
    if serving.get("n_ctx") is not None:
        given = {ours: serving[theirs] for theirs, ours in _CACHE.items() if serving.get(theirs) is not None}
        layers = llama_cpp.layout(row["model"]["gguf"])
        found = llama_cpp.cache_bytes(layers, llama_cpp.Cache(serving["n_ctx"], **given))
    try:
        found |= _buffers(row)
    except WeighError as error:
        reason = error
    if not found:
        raise reason or WeighError("the case does not say how long its context is")
    return found


def _buffers(row: Mapping[str, Any]) -> dict[str, int]:
    """Model, compute and output buffers, by the names that cases have for them."""
    pairs, serving = row["model"]["gguf"], row["serving"]
    found: dict[str, int] = {}
    if serving.get("n_seq_max") is not None and "vocab_size" in pairs:
        width = int(pairs["vocab_size"]) + (int(pairs["embedding_length"]) if _is_ollama(row) else 0)
        found["output_buffer"] = 4 * serving["n_seq_max"] * width
    if row["runtime"] != "llama.cpp":
        return found
    model, follows = _gguf(pairs)
    how = _how(row, model)
    placed = Placement(model, how)
    found["parameters"] = sum(t.num_elements for t in model.tensors.values())
    if follows:
        found["model_size"] = sum(t.num_bytes for t in model.tensors.values())
    if (row.get("extra") or {}).get("tensor_override_suspected"):
        return found
    names = _names(row, placed)
    if follows:
        found |= {f"model_buffer_{names(name)}": size for name, size in placed.sizes.items()}
    elif how.devices and placed.gpu_layers <= len(model.layers):
        return found  # a device copies weights from the host, of formats that nobody knows
    if serving.get("n_ctx") is None:
        return found
    try:
        compute = llama_cpp.compute_buffers(placed)
    except NotModelledError:
        return found
    found |= {f"compute_buffer_{names(name)}": size for name, size in compute.items()}
    if not how.tensor_split:
        found |= {f"kv_cache_{names(name)}": size for name, size in placed.cache_sizes().items()}
    found |= {f"recurrent_state_{names(name)}": size for name, size in placed.state_sizes().items()}
    return found


def unpredicted(row: Mapping[str, Any], metric: str) -> str | None:
    """Why a case of llama.cpp has no such figure; None where it is no case of its."""
    if row.get("runtime") not in ("llama.cpp", "ik_llama.cpp"):
        return None
    if row["runtime"] == "ik_llama.cpp":
        return "the fork's own formats and graphs are not described"
    if metric.startswith(("mem_", "compute_buffer")) and metric.count("_") < 2:
        return "what builds of 2023 added up is not described"
    if metric.endswith(("_repack", "_amx")):
        return "the processor decides which tensors are stored in an order of its own"
    if (row.get("extra") or {}).get("tensor_override_suspected"):
        return "tensors were moved by patterns that are not printed"
    if metric.startswith(("model_", "compute_")):
        return "the file was mixed by hand: no file type of the quantizer has these counts of formats"
    return "the case does not say what it depends on"


def _is_ollama(row: Mapping[str, Any]) -> bool:
    extra = row.get("extra") or {}
    return str(extra.get("gguf_file")).startswith("sha256-") or "ollama" in str(extra.get("backend_as_noted"))


def _gguf(pairs: Mapping[str, Any]) -> tuple[Gguf, bool]:
    """The model whose tensors have the printed formats, as often as printed.

    And whether there is one: where somebody mixed the file by hand, its tensors' sizes are known and their formats not.
    """
    file_type = _file_type(str(pairs.get("general.file_type")))
    printed = pairs.get("tensor_type_counts")
    wanted = None if printed is None else {dtypes.get(name).name: n for name, n in printed.items() if n}
    nearest = None
    for config in _configs(pairs):
        with recording():
            model = models.build(config, dtypes.BFLOAT16, "the printed hyper-parameters")
        for release in (NEWER, OLDER):
            for imatrix in (True, False):
                made = files.predict(config, model, file_type, imatrix, release)
                counts = dict(Counter(t.dtype for t in made.tensors.values()))
                found = llama_cpp.gguf_of(made, model.cache_layout(), config)
                if wanted is None or _without_factors(counts, wanted) == _without_factors(wanted, counts):
                    return found, True
                if nearest is None or abs(sum(counts.values()) - sum(wanted.values())) < nearest[0]:
                    nearest = abs(sum(counts.values()) - sum(wanted.values())), found
    assert nearest is not None
    return nearest[1], False


def _without_factors(counts: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Vectors of rotary factors are made by the converter where the config asks for them, and no size hangs on them."""
    vectors = min(counts.get("fp32", 0), other.get("fp32", 0))
    return {**counts, "fp32": vectors} if abs(counts.get("fp32", 0) - other.get("fp32", 0)) <= 2 else dict(counts)


def _configs(pairs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Configs that fit what is printed, tied or not, with biases or without."""
    architecture = str(pairs.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise NotModelledError(f"GGUF's architecture {architecture!r}")
    known = {key: value for key, value in pairs.items() if value and not key.startswith(("n_embd_", "tensor_"))}
    gating = {"softmax": 1, "sigmoid": 2}.get(str(known.get("expert_gating_func")))
    if gating is not None:
        known["expert_gating_func"] = gating
    if "expert_weights_norm" in known:
        known["expert_weights_norm"] = bool(known["expert_weights_norm"])
    metadata = {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in known.items() if not key.startswith("general.")},
    }
    seen: list[dict[str, Any]] = []
    first = int(not pairs.get("tensor_type_counts") and int(known.get("embedding_length", 0)) > _TIED)
    for order in range(2 ** len(_SIGNS)):
        number = order ^ first
        present = {name for bit, name in enumerate(_SIGNS) if number & 1 << bit}
        tensors = {name: StoredTensor(name, (1,), "F32", 4, "") for name in present}
        try:
            config = config_of(Checkpoint(tensors, "gguf", metadata, where="the printed hyper-parameters"))
        except NotModelledError:
            if order == 2 ** len(_SIGNS) - 1 and not seen:
                raise
            continue
        if config not in seen:
            seen.append(config)
            yield config


def _file_type(printed: str) -> str:
    """A file type as the loader prints it.

    >>> _file_type("Q4_K - Medium"), _file_type("IQ3_XXS - 3.0625 bpw"), _file_type("Q8_0"), _file_type("2")
    ('Q4_K_M', 'IQ3_XXS', 'Q8_0', 'Q4_0')
    """
    number = printed.partition(" ")[0]
    if number.isdecimal():
        return files.numbered(int(number)) or printed
    name, _, rest = printed.replace("mostly ", "").partition(" ")
    size = {"Small": "_S", "Medium": "_M", "Large": "_L"}.get(rest.removeprefix("- ").split(" ")[0], "")
    return name + size


def _how(row: Mapping[str, Any], model: Gguf) -> How:
    serving, family, devices = row["serving"], "cuda", 0
    for name in row["measured"]:
        match = _DEVICE.match(name)
        if match:
            family = match[1]
    numbers = _numbers(row)
    devices = len(numbers)
    context = serving.get("n_ctx") or 4096
    unified = serving.get("kv_unified")
    return How(
        context,
        n_batch=min(serving.get("n_batch") or 2048, context),
        n_ubatch=serving.get("n_ubatch") or 512,
        n_seq_max=serving.get("n_seq_max") or 1,
        kv_unified=True if unified is None else unified,
        swa_full=bool(serving.get("swa_full")),
        flash_attention=serving.get("flash_attention") in (True, "auto"),
        type_k=serving.get("cache_type_k") or "f16",
        type_v=serving.get("cache_type_v") or "f16",
        n_gpu_layers=-1 if serving.get("n_gpu_layers") is None else serving["n_gpu_layers"],
        devices=devices,
        family=family,
        tensor_split=_split(row, model, numbers),
        release=_release(row),
        use_mmap=not any(name.endswith("_host") and name.startswith("model_buffer") for name in row["measured"]),
    )


def _numbers(row: Mapping[str, Any]) -> list[str]:
    """The devices that the log names, in its order."""
    found = {match[2] for name in row["measured"] if (match := _DEVICE.match(name))}
    return sorted(found)


def _split(row: Mapping[str, Any], model: Gguf, numbers: list[str]) -> tuple[float, ...]:
    """Layers of each device, where the printed caches show that they are not shared equally; none where they are."""
    caches = [size for name, size in sorted(row["measured"].items()) if re.match(r"kv_cache_[a-z]+\d$", name)]
    if len(numbers) < 2 or len(caches) != len(numbers) or max(caches) <= 1.2 * min(caches):
        return ()
    layers = len(model.layers)
    counts = [round(size / sum(caches) * layers) for size in caches]
    return tuple(float(n + (index == len(counts) - 1)) for index, n in enumerate(counts))


def _names(row: Mapping[str, Any], placed: Placement) -> Any:
    numbers = _numbers(row)

    def name(buffer: str) -> str:
        plain = buffer.lower()
        if plain.endswith("_mapped") and f"model_buffer_{plain}" not in row["measured"]:
            plain = plain.removesuffix("_mapped")  # as older builds print it
        for index, device in enumerate(placed.names):
            if buffer == device and numbers:
                return f"{FAMILIES[placed.how.family].name.lower()}{numbers[index]}"
        return plain

    return name


def _release(row: Mapping[str, Any]) -> tuple[int, ...]:
    serving = row["serving"]
    shared = (serving.get("n_seq_max") or 1) > 1 and serving.get("kv_unified") is True
    if shared or str(row["model"]["gguf"].get("general.architecture")) in _RECENT:
        return MIDDLE
    return OLDEST if serving.get("kv_unified") is None else EARLIER
