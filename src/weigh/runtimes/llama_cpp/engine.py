"""`weigh serve --runtime llama.cpp`: what a launch takes, device by device.

Read: `src/llama-context.cpp` (how contexts are rounded, which settings exclude each other), `common/arg.cpp` (names and
defaults of the options) of llama.cpp af6528e6d (2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from weigh import dtypes
from weigh.errors import UnknownNameError, UsageError
from weigh.formats.gguf import numbered, predict
from weigh.records import dataclass, replace
from weigh.runtimes.engine import (
    ACTIVATIONS,
    EXACT,
    KV_CACHE,
    MODELLED,
    NEVER,
    STATES,
    WEIGHTS,
    Engine,
    Launch,
    Part,
    Share,
)
from weigh.runtimes.llama_cpp.compute import Compute, output_buffer
from weigh.runtimes.llama_cpp.placement import FAMILIES, REPACK, Gguf, How, Placement, gguf_of
from weigh.runtimes.llama_cpp.releases import MIDDLE, NEWER, OLDER, OLDEST
from weigh.runtimes.llama_cpp.room import Room, rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from weigh.recipes.settings import Text
    from weigh.runtimes.engine import Place, Served, ServeJob, Version
    from weigh.sources.checkpoint import Checkpoint

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What keys and values may be kept in (`kv_cache_types`)."""
REPACKED = {
    "none": frozenset[str](),
    "avx2": frozenset(("q4_0", "q4_k", "iq4_nl", "mxfp4")),
    "avx512": frozenset(("q4_0", "q4_k", "iq4_nl", "mxfp4", "q2_k")),
    "arm": frozenset(("q4_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "q8_0")),
}
"""By the processor: formats that are stored once more in its own order, where no device's host memory comes first."""
MOST_SEQUENCES, MOST_BEFORE = 256, 64
"""Sequences at once (`LLAMA_MAX_SEQ`), and until August 2025."""
MAKERS = {"nvidia": "cuda", "amd": "rocm", "apple": "metal", "intel": "sycl"}
"""The back end of a maker's devices where nobody says."""


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """Settings of `llama-server`, in its words."""

    gpu_layers: Text = "all"
    """Layers on devices, from the last ("-ngl"); the output layer is one more. "all", or 0 for the host alone."""
    ctx_size: int | None = None
    """Cells of the cache over all sequences ("-c"); as many as the requests need where nobody says."""
    batch_size: int = 2048
    """Tokens that are handed over at once."""
    ubatch_size: int = 512
    """Tokens that are computed at once: what the compute buffer is for."""
    flash_attn: Text = "auto"
    """ "on", "off", or "auto": on where the back end has it."""
    cache_type_k: Text | None = None
    """Number format of keys ("q8_0"), instead of the one that both have."""
    cache_type_v: Text | None = None
    """Number format of values."""
    kv_unified: bool = False
    """One cache that all sequences share, instead of a part for each."""
    swa_full: bool = False
    """Layers with a window keep every token too."""
    no_kv_offload: bool = False
    """Keys and values stay in host memory."""
    split_mode: Text = "layer"
    """How several devices share: "layer", "row" or "none"."""
    tensor_split: Text | None = None
    """What each device gets, in proportion: "3,1"; as much as the other where nobody says."""
    main_gpu: int = 0
    """The device of split modes "none" and "row"."""
    override_tensor: Text | None = None
    """Where tensors whose names fit go: "exps=CPU", several with commas."""
    cpu_moe: bool = False
    """All experts stay in host memory."""
    n_cpu_moe: int = 0
    """The experts of so many layers, from the first, stay in host memory."""
    no_mmap: bool = False
    """The file is read, not mapped."""
    no_op_offload: bool = False
    """Operations on weights in host memory stay there, however many tokens there are."""
    embeddings: bool = False
    """The last hidden states are handed out too."""
    no_imatrix: bool = False
    """The quantizer had no importance matrix."""
    repack: Text = "none"
    """Which processor repacks weights: "avx2", "avx512", "arm"; only where no device is used."""
    backend: Text | None = None
    """ "cuda", "rocm", "vulkan", "metal", "sycl"; the maker's own where nobody says."""


class LlamaCpp(Engine):
    """llama.cpp."""

    name = "llama.cpp"
    versions = tuple(".".join(map(str, release)) for release in (OLDEST, OLDER, MIDDLE, NEWER))
    told_ranks = False
    options: ClassVar[type] = LlamaCppOptions

    def launch(self, served: Served, job: ServeJob, options: LlamaCppOptions, place: Place, version: Version) -> Launch:
        """Model, cache, compute and output buffers."""
        if job.tensor > 1 or job.pipeline > 1 or job.data > 1 or job.expert:
            raise UsageError(
                "llama.cpp knows no such ranks", where="tensor", hint="Name several devices and a split_mode instead."
            )
        gguf, file_type, assumptions = stored(served, job, options)
        how = replace(settings(served, job, options, place), release=version.numbers)
        placed = Placement(gguf, how)
        compute: Compute = served.memo.setdefault(("graphs", placed.graph_key), Compute(placed))
        room = Room(placed, options.kv_unified, compute)
        shares = _shares(placed, place, room.compute.at(how.n_ctx, how.n_seq_max))
        most = MOST_SEQUENCES if version.numbers > OLDER else MOST_BEFORE
        if job.concurrency > most:
            what = f"llama.cpp has at most {most} sequences"
            raise UsageError(what, where="concurrency", hint="Start several servers.")
        longest = None if options.ctx_size is None else how.context_of_each
        model = max((_sum(placed.sizes, name) for name in placed.names), default=0)
        supply = None if not placed.count or place.memory_bytes is None else place.memory_bytes - model
        return Launch(
            shares,
            lambda context, users: NEVER if users > most else room.demand(context, users) - model,
            supply,
            longest or served.longest,
            tokens=how.n_ctx,
            weights=file_type,
            most_sequences=most,
            assumptions=(*assumptions, *_taken(how, options, served)),
            routed=sum(one.num_bytes for name, one in gguf.tensors.items() if "_exps." in name),
        )


def stored(
    served: Served, job: ServeJob, options: LlamaCppOptions
) -> tuple[Gguf, str, tuple[tuple[str, str, str], ...]]:
    """The GGUF file, its own or what the quantizer would make of the config; its file type; what was assumed of it."""
    file_type, has_matrix = job.quantization or "BF16", not options.no_imatrix
    key = "gguf", file_type, has_matrix
    if key not in served.memo:
        own, said = served.source.checkpoint, tuple[tuple[str, str, str], ...]()
        if own is None or own.format != "gguf":
            own = _predicted(served, file_type, has_matrix)
            if job.quantization is None:
                said = (("weights in BF16", "no file type is named (--quantization Q4_K_M)", "the largest file"),)
            elif has_matrix:
                said = (("an importance matrix", "most published files have one", "a few tensors' formats"),)
        gguf = gguf_of(own, served.layers, served.text_config)
        served.memo[key] = gguf, numbered(own.metadata.get("general.file_type")) or "GGUF", said
    found: tuple[Gguf, str, tuple[tuple[str, str, str], ...]] = served.memo[key]
    return found


def _predicted(served: Served, file_type: str, has_matrix: bool) -> Checkpoint:
    try:
        return predict(served.config, served.model, file_type, has_matrix)
    except UnknownNameError as error:
        raise UsageError(error.what, where="quantization", hint=error.hint) from None


def settings(served: Served, job: ServeJob, options: LlamaCppOptions, place: Place) -> How:
    """The job in llama.cpp's words, rounded as it rounds.

    Raises:
        UsageError: llama.cpp refuses it.
    """
    context, users = job.context or served.longest or 4096, job.concurrency
    unified = options.kv_unified or users == 1
    cells = rounded(options.ctx_size or context * users, users, unified)
    both = cache_types(job.kv_dtype)
    key, value = (
        cache_types(one)[0] if one else both[n] for n, one in enumerate((options.cache_type_k, options.cache_type_v))
    )
    flash = flash_attention(options.flash_attn)
    if dtypes.get(value).kind == "block" and not flash:
        raise UsageError(f"values in {value} need flash attention", where="flash_attn", hint="Turn it on.")
    family = options.backend or ("cuda" if place.device is None else MAKERS.get(place.device.maker.lower(), "vulkan"))
    if family not in FAMILIES:
        raise UsageError(f"there is no back end {family!r}", where="backend", hint=f"One of {', '.join(FAMILIES)}.")
    return How(
        cells,
        n_batch=options.batch_size,
        n_ubatch=min(options.batch_size, options.ubatch_size),
        n_seq_max=users,
        kv_unified=unified,
        swa_full=options.swa_full,
        flash_attention=flash,
        type_k=key,
        type_v=value,
        offload_kqv=not options.no_kv_offload,
        n_gpu_layers=gpu_layers(options.gpu_layers),
        devices=0 if gpu_layers(options.gpu_layers) == 0 and place.device is None else place.count,
        family=family,
        split_mode=_one_of(options.split_mode, ("layer", "row", "none"), "split_mode"),
        tensor_split=proportions(options.tensor_split),
        main_gpu=options.main_gpu,
        overrides=overrides(options),
        n_cpu_moe=options.n_cpu_moe,
        use_mmap=not options.no_mmap,
        op_offload=not options.no_op_offload,
        embeddings=options.embeddings,
        repack=REPACKED[_one_of(options.repack, tuple(REPACKED), "repack")],
    )


def _one_of(word: str, known: tuple[str, ...], where: str) -> str:
    if word not in known:
        raise UsageError(f"{word!r} is none of {', '.join(known)}", where=where, hint="Write one of them.")
    return word


def cache_types(spelled: str) -> tuple[str, str]:
    """The formats of keys and of values.

    >>> cache_types("auto"), cache_types("q8_0,f16")
    (('f16', 'f16'), ('q8_0', 'f16'))

    Raises:
        UsageError: llama.cpp keeps none in that.
    """
    names = [one.strip().lower() for one in spelled.split(",")]
    names = ["f16" if one in ("auto", "fp16") else "f32" if one == "fp32" else one for one in names]
    for one in names:
        _one_of(one, CACHE_TYPES, "kv_dtype")
    if len(names) > 2:
        raise UsageError(f"{spelled!r} names more than two formats", where="kv_dtype", hint="Write KEYS,VALUES.")
    return names[0], names[-1]


def flash_attention(word: str) -> bool:
    """Whether flash attention is on; "auto" turns it on where the back end has it, as all that are described have."""
    return _one_of(word.lower(), ("on", "off", "auto", "1", "0", "enabled", "disabled"), "flash_attn") not in (
        "off",
        "0",
        "disabled",
    )


def gpu_layers(word: str) -> int:
    """How many layers go to devices; -1 is all of them.

    >>> gpu_layers("all"), gpu_layers("40")
    (-1, 40)

    Raises:
        UsageError: it is no number.
    """
    if word in ("all", "auto", "-1", "-2"):
        return -1
    if not word.isdecimal():
        raise UsageError(f"{word!r} is no number of layers", where="gpu_layers", hint='A number, or "all".')
    return int(word)


def proportions(text: str | None) -> tuple[float, ...]:
    """What each device gets.

    Raises:
        UsageError: they are no numbers.
    """
    try:
        return tuple(float(part) for part in text.replace("/", ",").split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{text!r} are no numbers", where="tensor_split", hint='Write "3,1".') from None


def overrides(options: LlamaCppOptions) -> tuple[tuple[str, str], ...]:
    """Patterns and buffers.

    Raises:
        UsageError: a part has no buffer.
    """
    found = []
    for part in filter(None, (options.override_tensor or "").split(",")):
        pattern, equals, buffer = part.rpartition("=")
        if not equals:
            raise UsageError(f"{part!r} names no buffer", where="override_tensor", hint='Write "exps=CPU".')
        found.append((pattern, buffer))
    return (*found, *(((r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),) if options.cpu_moe else ()))


def _shares(placed: Placement, place: Place, compute: Mapping[str, int]) -> tuple[Share, ...]:
    """What each device and the host hold."""
    sizes, caches, states = placed.sizes, placed.cache_sizes(), placed.state_sizes()
    found = []
    for number, name in enumerate(placed.names):
        parts = [
            Part("model buffer", WEIGHTS, _sum(sizes, name), EXACT, "tensors of the GGUF file, rows padded"),
            Part("KV cache", KV_CACHE, _sum(caches, name), EXACT, "cells x heads x width, in the cache's format"),
            Part("recurrent states", STATES, _sum(states, name), EXACT, "convolution and state of a sequence, fp32"),
            Part("compute buffer", ACTIVATIONS, _sum(compute, name), MODELLED, "ggml's allocator over the graph"),
        ]
        label = f"GPU {number}" if len(placed.names) > 1 or placed.family.name != "Metal" else "GPU"
        found.append(Share(f"{label} ({name})", place.memory_bytes, tuple(p for p in parts if p.num_bytes)))
    there = {*placed.names, *(f"{name}_Mapped" for name in placed.names)}
    host = [name for name in {**sizes, **compute, **caches, **states} if name not in there]
    parts = []
    for name in host:
        if name in sizes:
            what = "the processor's own order" if name == REPACK else "tensors of the GGUF file that stay on the host"
            parts.append(Part(f"model buffer {name}", WEIGHTS, sizes[name], EXACT, what))
        parts += [Part(f"KV cache {name}", KV_CACHE, caches[name], EXACT, "as above")] if name in caches else []
        parts += [Part(f"states {name}", STATES, states[name], EXACT, "as above")] if name in states else []
        if compute.get(name):
            parts.append(Part(f"compute buffer {name}", ACTIVATIONS, compute[name], MODELLED, "as above"))
    logits = "fp32 logits of a token of each sequence"
    parts.append(Part("output buffer", ACTIVATIONS, output_buffer(placed), EXACT, logits))
    return (*found, Share("host", None, tuple(parts)))


def _sum(sizes: Mapping[str, int], name: str) -> int:
    return sizes.get(name, 0) + sizes.get(f"{name}_Mapped", 0)


def _taken(how: How, options: LlamaCppOptions, served: Served) -> Iterable[tuple[str, str, str]]:
    if options.flash_attn == "auto":
        yield "flash attention on", "auto turns it on where the back end has it", "smaller compute buffers"
    if how.devices and how.family == "metal":
        yield "the host's buffers beside the device's", "both lie in the same memory", "they take of it too"
    elif how.devices:
        why = "CUDA's context and libraries lie outside of llama.cpp's buffers"
        yield "nothing for the driver's context", why, "a few hundred MiB on each device"
    if served.longest is not None and how.context_of_each > served.longest:
        yield f"more than the model's {served.longest:,} tokens", "llama.cpp warns and goes on", "none on memory"


ENGINE = LlamaCpp()
