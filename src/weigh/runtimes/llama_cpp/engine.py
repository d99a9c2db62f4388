"""`weigh serve --runtime llama.cpp`: what a launch takes, device by device.

Read: `src/llama-context.cpp` (how contexts are rounded, which settings exclude each other), `common/arg.cpp` (names and
defaults of the options) of llama.cpp af6528e6d (2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from weigh import dtypes
from weigh.errors import NotModelledError, UnknownNameError, UsageError
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
from weigh.runtimes.llama_cpp.placement import FAMILIES, REPACK, SPLIT, Gguf, How, Placement, gguf_of
from weigh.runtimes.llama_cpp.releases import MIDDLE, NEWER, OLDER, OLDEST
from weigh.runtimes.llama_cpp.room import Room, rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
    draft_gpu_layers: Text = "all"
    """Layers of the draft model on devices ("-ngld")."""
    draft_cache_type_k: Text | None = None
    """Number format of the draft model's keys, f16 where nobody says."""
    draft_cache_type_v: Text | None = None
    """Number format of its values."""
    no_host: bool = False
    """Nothing lies in the host memory that devices reach at once."""
    fit: Text = "off"
    """ "off"; "on" lets the program change what nobody has set until it fits, which is not described."""
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
        if _one_of(options.fit.lower(), ("on", "off", "1", "0"), "fit") in ("on", "1"):
            raise NotModelledError("settings that llama.cpp changes until they fit", where="fit", hint="Turn it off.")
        if job.tensor > 1 or job.pipeline > 1 or job.data > 1 or job.expert:
            raise UsageError(
                "llama.cpp knows no such ranks", where="tensor", hint="Name several devices and a split_mode instead."
            )
        how = replace(settings(served, job, options, place), release=version.numbers)
        gguf, file_type, assumptions = stored(served, job, options)
        rooms = [_room(served, Placement(gguf, how), options)]
        if served.draft is not None:
            drafted, stored_in, _ = stored(served.draft, job, options)
            rooms.append(_room(served.draft, Placement(drafted, _drafting(how, options)), options))
            why = "nobody says how it is stored" if served.draft.source.checkpoint is None else "its own file"
            assumptions = (*assumptions, (f"the draft model in {stored_in}", why, "its weights"))
        most = MOST_SEQUENCES if version.numbers > OLDER else MOST_BEFORE
        if job.concurrency > most:
            what = f"llama.cpp has at most {most} sequences"
            raise UsageError(what, where="concurrency", hint="Start several servers.")
        longest = None if options.ctx_size is None else how.context_of_each
        model = max(map(sum, zip(*(room.placed.device_bytes() for room in rooms), strict=True)), default=0)

        def demand(context: int, users: int) -> int:
            if users > most:
                return NEVER
            return (
                max(map(sum, zip(*(room.on_devices(context, users) for room in rooms), strict=True)), default=0) - model
            )

        return Launch(
            _shares(rooms, place),
            demand,
            None if not rooms[0].placed.count or place.memory_bytes is None else place.memory_bytes - model,
            longest or served.longest,
            tokens=how.n_ctx,
            weights=file_type,
            most_sequences=most,
            at_host=any(room.placed.at_host for room in rooms),
            assumptions=(*assumptions, *_taken(how, options, served)),
            routed=sum(one.num_bytes for name, one in gguf.tensors.items() if "_exps." in name),
        )


def _room(served: Served, placed: Placement, options: LlamaCppOptions) -> Room:
    compute: Compute = served.memo.setdefault(("graphs", placed.graph_key), Compute(placed))
    return Room(placed, options.kv_unified, compute)


def _drafting(how: How, options: LlamaCppOptions) -> How:
    """How a draft model is run: as the other, but for its layers, its cache's formats and what is moved by hand."""
    return replace(
        how,
        n_gpu_layers=gpu_layers(options.draft_gpu_layers),
        type_k=cache_types(options.draft_cache_type_k or "auto")[0],
        type_v=cache_types(options.draft_cache_type_v or "auto")[0],
        overrides=(),
        n_cpu_moe=0,
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
        no_host=options.no_host,
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


def _shares(rooms: Sequence[Room], place: Place) -> tuple[Share, ...]:
    """What each device and the host hold."""
    names, family = rooms[0].placed.names, rooms[0].placed.family
    on_devices: list[list[Part]] = [[] for _ in names]
    host: list[Part] = []
    for room, whose in zip(rooms, ("", "draft "), strict=False):
        for found, parts in zip(on_devices, _device_parts(room, whose), strict=True):
            found += parts
        host += _host_parts(room, whose)
    shares = []
    for number, (name, parts) in enumerate(zip(names, on_devices, strict=True)):
        label = f"GPU {number}" if len(names) > 1 or family.name != "Metal" else "GPU"
        shares.append(Share(f"{label} ({name})", place.memory_bytes, tuple(p for p in parts if p.num_bytes)))
    return (*shares, Share("host", None, tuple(host)))


def _device_parts(room: Room, whose: str) -> Iterator[list[Part]]:
    placed, how = room.placed, room.placed.how
    caches, states = placed.cache_sizes(), placed.state_sizes()
    compute = room.compute.at(how.n_ctx, how.n_seq_max)
    tensors = (
        "rows of the GGUF file's matrices, and its other tensors" if placed.is_split else "tensors of the GGUF file"
    )
    for name, weights in zip(placed.names, placed.device_bytes(), strict=True):
        yield [
            Part(f"{whose}model buffer", WEIGHTS, weights, EXACT, f"{tensors}, rows padded"),
            Part(f"{whose}KV cache", KV_CACHE, caches.get(name, 0), EXACT, "cells x heads x width, in its format"),
            Part(f"{whose}recurrent states", STATES, states.get(name, 0), EXACT, "of a sequence, in fp32"),
            Part(f"{whose}compute buffer", ACTIVATIONS, compute.get(name, 0), MODELLED, "ggml's allocator's graph"),
        ]


def _host_parts(room: Room, whose: str) -> Iterator[Part]:
    placed, how = room.placed, room.placed.how
    sizes, caches, states = placed.sizes, placed.cache_sizes(), placed.state_sizes()
    compute = room.compute.at(how.n_ctx, how.n_seq_max)
    there = {*placed.names, *(f"{name}_Mapped" for name in placed.names), f"{placed.family.name}_{SPLIT}"}
    for name in {**sizes, **compute, **caches, **states}:
        if name in there:
            continue
        if name in sizes:
            what = "the processor's own order" if name == REPACK else "tensors of the GGUF file that stay on the host"
            yield Part(f"{whose}model buffer {name}", WEIGHTS, sizes[name], EXACT, what)
        if name in caches:
            yield Part(f"{whose}KV cache {name}", KV_CACHE, caches[name], EXACT, "as above")
        if name in states:
            yield Part(f"{whose}states {name}", STATES, states[name], EXACT, "as above")
        if compute.get(name):
            yield Part(f"{whose}compute buffer {name}", ACTIVATIONS, compute[name], MODELLED, "as above")
    logits = "fp32 logits of a token of each sequence"
    yield Part(f"{whose}output buffer", ACTIVATIONS, output_buffer(placed), EXACT, logits)


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
