"""Where llama.cpp puts a model: which layer on which device, which tensor in which buffer, and the cache's cells.

Read: `src/llama-model.cpp` (`load_tensors`), `src/llama-model-loader.cpp` (`create_tensor`, `get_mapping_range`),
`src/llama-kv-cache.cpp`, `src/llama-context.cpp` of llama.cpp 4227c9be (August 2025) to af6528e6d (2026);
`ggml-cuda.cu`, `ggml-vulkan.cpp`, `ggml-metal` for alignment, `ggml-cpu/repack.cpp` for what is stored once more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.models.layout import CHUNKED, FULL, LATENT, SLIDING, LayerCache, State
from weigh.records import dataclass, field, replace
from weigh.runtimes.llama_cpp.allocator import BufferType, padded
from weigh.runtimes.llama_cpp.releases import NEWER, OLDER, OLDEST
from weigh.runtimes.llama_cpp.scheduler import GET_ROWS_TYPES, Backend

if TYPE_CHECKING:
    from weigh.sources.checkpoint import Checkpoint, StoredTensor

SPLIT_ROWS = 128
"""Rows of a shared matrix that a device has a multiple of (`get_mmq_y_host`)."""
CPU, REPACK, SPLIT = "CPU", "CPU_REPACK", "Split"
PADDING = 256
"""Cells of a cache are a multiple of it."""
EXPERTS_ON_HOST = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""What `--n-cpu-moe` keeps in host memory, by layer (`common/common.h`)."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of device, as GGML has a back end for it."""

    name: str
    alignment: int
    row_padding: int = 0
    host: str | None = None
    """Its host buffer's name."""
    maps_files: bool = False
    """Weights stay where the file is mapped."""
    splits_rows: bool = False
    """Has buffers of matrices whose rows are shared (`split_buffer_type`)."""
    is_async: bool = False
    """Can run pipeline parallelism: asynchronous copies and events."""


FAMILIES = {
    f.name.lower(): f
    for f in (
        Family("CUDA", 128, 512, "CUDA_Host", splits_rows=True, is_async=True),
        Family("ROCm", 128, 512, "ROCm_Host", splits_rows=True, is_async=True),
        Family("Vulkan", 64, 0, "Vulkan_Host"),
        Family("Metal", 32, maps_files=True),
        Family("SYCL", 128, 512, "SYCL_Host", splits_rows=True),
    )
}
"""By name in small letters."""


@dataclass(frozen=True)
class Gguf:
    """A model as llama.cpp reads it."""

    architecture: str
    tensors: Mapping[str, StoredTensor]
    """By name, in the order of the file."""
    layers: tuple[LayerCache, ...]
    """What each layer keeps."""
    config: Mapping[str, Any]
    """Its `config.json`, the language model's part."""

    @cached_property
    def of_layer(self) -> list[list[StoredTensor]]:
        """The tensors of each layer."""
        found: list[list[StoredTensor]] = [[] for _ in self.layers]
        for name, stored in self.tensors.items():
            if name.startswith("blk."):
                found[int(name[4 : name.index(".", 4)])].append(stored)
        return found

    @cached_property
    def kinds(self) -> list[int]:
        """A number for each layer, the same where tensors have the same names and sizes and the same is kept."""
        numbers: dict[object, int] = {}
        found = []
        for number, tensors in enumerate(self.of_layer):
            skipped = len(f"blk.{number}.")
            key = self.layers[number], *((one.name[skipped:], one.shape) for one in tensors)
            found.append(numbers.setdefault(key, len(numbers)))
        return found

    @cached_property
    def _padded(self) -> dict[tuple[int, int], list[int]]:
        return {}

    def layer_bytes(self, alignment: int, row_padding: int) -> list[int]:
        """Bytes of each layer's tensors in a buffer that aligns and pads so."""
        key = alignment, row_padding
        if key not in self._padded:
            self._padded[key] = [sum(padded(t, alignment, row_padding) for t in one) for one in self.of_layer]
        return self._padded[key]

    @property
    def vocabulary(self) -> int:
        """Tokens: rows of the embedding."""
        return self.tensors["token_embd.weight"].shape[0]

    @property
    def width(self) -> int:
        """Of the residual stream (`n_embd`)."""
        return self.tensors["token_embd.weight"].shape[1]

    @property
    def experts_used(self) -> int:
        """Experts that a token visits."""
        keys = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "num_experts_per_token")
        return next((int(self.config[key]) for key in keys if self.config.get(key)), 0)

    @property
    def expert_groups(self) -> tuple[int, int]:
        """Groups of experts, and how many of them are searched."""
        return int(self.config.get("n_group") or 1), int(self.config.get("topk_group") or 1)

    @property
    def positions_per_token(self) -> int:
        """4 where positions have time, height and width."""
        return 4 if self.architecture in ("qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe") else 1

    def rope_factors(self, context: int) -> str:
        """The factors that a context of that length is turned with."""
        original = self.config.get("original_max_position_embeddings") or 0
        return f"rope_factors_{'long' if original and context > original else 'short'}.weight"


@dataclass(frozen=True)
class How:
    """How it is run, in llama.cpp's words."""

    n_ctx: int
    """Cells over all sequences."""
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = True
    swa_full: bool = False
    flash_attention: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    offload_kqv: bool = True
    n_gpu_layers: int = -1
    """Layers on devices, from the last; the output layer is one more; -1 is all."""
    devices: int = 1
    family: str = "cuda"
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    overrides: tuple[tuple[str, str], ...] = ()
    """Patterns of tensors and the buffers that they go to, the first that fits counts (`--override-tensor`)."""
    n_cpu_moe: int = 0
    use_mmap: bool = True
    no_host: bool = False
    """Nothing lies in the device's host memory."""
    op_offload: bool = True
    repack: frozenset[str] = field(default_factory=frozenset)
    """Formats that the CPU stores in an order of its own, as far as no device's host buffer comes first."""
    embeddings: bool = False
    """The last hidden state is handed out too."""
    release: tuple[int, ...] = NEWER
    """Of llama.cpp."""

    @property
    def context_of_each(self) -> int:
        """Cells of one sequence."""
        return self.n_ctx if self.kv_unified else self.n_ctx // self.n_seq_max


class Placement:
    """A model placed on devices."""

    def __init__(self, gguf: Gguf, how: How) -> None:
        self.gguf, self.how = gguf, how
        self.family = FAMILIES[how.family]
        self.count = (1 if how.split_mode == "none" else how.devices) if how.devices else 0
        self.names = [f"{self.family.name}{how.main_gpu if how.split_mode == 'none' else n}" for n in range(self.count)]
        if self.family.maps_files:
            self.names = [self.family.name] * self.count
        layers = len(gguf.layers)
        self.gpu_layers = layers + 1 if how.n_gpu_layers < 0 else min(how.n_gpu_layers, layers + 1)
        patterns = [EXPERTS_ON_HOST.format(n) for n in range(how.n_cpu_moe)]
        self.overrides = [(re.compile(p), b) for p, b in (*((p, CPU) for p in patterns), *how.overrides)]

    # -- layers ----------------------------------------------------------------------------------

    @cached_property
    def device_of_layer(self) -> list[int | None]:
        """The device of each layer and, last, of the output layer; None is the host."""
        layers = len(self.gguf.layers)
        # until the end of 2025 the output layer was the last to be offloaded, since then it is the first
        first = max(layers + (self.how.release > OLDER) - self.gpu_layers, 0)
        if not self.count:
            return [None] * (layers + 1)
        ends = self._ends()
        placed: list[int | None] = []
        for layer in range(layers + 1):
            if layer < first or layer - first >= self.gpu_layers:
                placed.append(None)
                continue
            at = (layer - first) / self.gpu_layers
            placed.append(next((n for n, end in enumerate(ends) if at < end), self.count - 1))
        return placed

    def _ends(self) -> list[float]:
        """Where each device's share ends, of 1."""
        shares = self.how.tensor_split[: self.count] or (1.0,) * self.count
        shares = (*shares, *(0.0,) * (self.count - len(shares)))
        return [sum(shares[: number + 1]) / sum(shares) for number in range(self.count)]

    def backend_of_layer(self, layer: int) -> int:
        """The number of its backend; the host's is the last."""
        device = self.device_of_layer[layer]
        return self.count if device is None else device

    def is_uniform(self, layer: int) -> bool:
        """All of a layer's tensors are in its device's own buffer."""
        return self.device_of_layer[layer] is not None and not self.overrides and not self.is_split

    @cached_property
    def marks(self) -> list[tuple[object, ...]]:
        """What makes each layer's graph what it is, and where it runs."""
        found: list[tuple[object, ...]] = []
        for layer, (device, kind) in enumerate(zip(self.device_of_layer, self.gguf.kinds, strict=False)):
            own = self.is_uniform(layer) or tuple(self.buffers[one.name] for one in self.gguf.of_layer[layer])
            found.append((device, kind, own))
        return found

    @property
    def graph_key(self) -> object:
        """What makes compute buffers what they are, beside the context and the sequences.

        Formats of weights do, where a device copies weights from the host, and what is looked up in the embedding.
        """
        tensors = self.gguf.tensors
        others = [name for name in tensors if not name.startswith("blk.")]
        top = tuple((name, self.buffers[name], is_looked_up(tensors[name])) for name in others)
        copied = not all(map(self.is_uniform, range(len(self.gguf.layers)))) or self.output_buffer not in self.names
        how = replace(self.how, n_ctx=0, n_seq_max=0, use_mmap=True)
        return tuple(self.marks), top, copied and id(self.gguf), how, self.output_buffer

    # -- tensors ---------------------------------------------------------------------------------

    @cached_property
    def buffers(self) -> dict[str, str]:
        """The buffer of every tensor."""
        found: dict[str, str] = {}
        for layer, tensors in enumerate(self.gguf.of_layer):
            if self.is_uniform(layer):
                device = self.device_of_layer[layer]
                assert device is not None
                found.update(dict.fromkeys([one.name for one in tensors], self.names[device]))
        return found | {name: self._buffer(name) for name in self.gguf.tensors if name not in found}

    def buffer_of(self, name: str) -> str:
        """The buffer of a tensor."""
        return self.buffers[name]

    @property
    def output_buffer(self) -> str:
        """Where the head is: with the embedding on the host, if it is tied and nothing is on a device."""
        return self._on(self.device_of_layer[-1], "output.weight", self.gguf.tensors["token_embd.weight"])

    @property
    def has_tied_copy(self) -> bool:
        """The head is a second copy of the embedding, on a device."""
        return "output.weight" not in self.gguf.tensors and self.output_buffer != self.buffers["token_embd.weight"]

    def _buffer(self, name: str) -> str:
        stored = self.gguf.tensors[name]
        for pattern, buffer in self.overrides:
            if pattern.search(name):
                return buffer if buffer != CPU else self._on(None, name, stored)
        if name.startswith("blk."):
            return self._on(self.device_of_layer[int(name.split(".")[1])], name, stored)
        if name.startswith(("token_embd.", "position_embd", "token_types", "per_layer_token_embd")):
            return self._host(name, stored)
        if name.startswith(("per_layer_model_proj", "per_layer_proj_norm")):
            return self._on(self.device_of_layer[0], name, stored)
        if name.startswith(("output", "cls", "altup_")):
            return self._on(self.device_of_layer[-1], name, stored)
        if name.startswith("rope_"):
            return self._on(self.device_of_layer[0], name, stored)
        return self._host(name, stored)

    def _on(self, device: int | None, name: str, stored: StoredTensor) -> str:
        if device is None:
            return self._host(name, stored)
        if self.is_split and _is_split(name, stored):
            return f"{self.family.name}_{SPLIT}"
        return self.names[device]

    def _host(self, name: str, stored: StoredTensor) -> str:
        if not self.count and _is_matrix(name, stored) and dtypes.get(stored.dtype).name in self.how.repack:
            return REPACK
        if self.count and not self.how.use_mmap and self.family.host is not None and not self.how.no_host:
            looked_up = name.startswith(("token_embd", "per_layer_token_embd")) and self.how.release > OLDEST
            # the device is asked, though it does not run it
            return CPU if looked_up and not is_looked_up(stored) else self.family.host
        return CPU

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each model buffer, by the name that llama.cpp prints."""
        found: dict[str, int] = {}
        kinds = {b.kind.name: b.kind for b in self.backends}
        uniform = [layer for layer in range(len(self.gguf.layers)) if self.is_uniform(layer)]
        for layer in uniform:
            name = self.names[self.backend_of_layer(layer)]
            sizes = self.gguf.layer_bytes(kinds[name].alignment, kinds[name].row_padding)
            found[name] = found.get(name, 0) + sizes[layer]
        others = [name for name in self.gguf.tensors if not name.startswith("blk.")]
        for layer in set(range(len(self.gguf.layers))).difference(uniform):
            others += [one.name for one in self.gguf.of_layer[layer]]
        for name in others:
            buffer = self.buffers[name]
            found[buffer] = found.get(buffer, 0) + self._padded(buffer, self.gguf.tensors[name], kinds)
        if self.has_tied_copy:
            tied = self.gguf.tensors["token_embd.weight"]
            found[self.output_buffer] = found.get(self.output_buffer, 0) + self._padded(self.output_buffer, tied, kinds)
        for layer, name in self._copied_factors():
            buffer = self.factors_buffer(layer, name)
            found[buffer] = found.get(buffer, 0) + self._padded(buffer, self.gguf.tensors[name], kinds)
        return self._mapped(found) if self.how.use_mmap else found

    def factors_buffer(self, layer: int, name: str) -> str:
        """Where a layer finds the factors of its rotary frequencies."""
        return self._on(self.device_of_layer[layer], name, self.gguf.tensors[name])

    def _copied_factors(self) -> list[tuple[int, str]]:
        """Rotary factors are there once a device (`TENSOR_DUPLICATED`), beside the first layer's."""
        names = [n for n in self.gguf.tensors if n.startswith("rope_") and n in self.buffers]
        seen, copied = {self.device_of_layer[0]}, []
        for layer, device in enumerate(self.device_of_layer[:-1]):
            if device not in seen:
                seen.add(device)
                copied += [(layer, name) for name in names]
        return copied

    def _padded(self, buffer: str, stored: StoredTensor, kinds: Mapping[str, BufferType]) -> int:
        kind = kinds.get(buffer)
        alignment, padding = (32, 0) if kind is None else (kind.alignment, kind.row_padding)
        if buffer.endswith(SPLIT):
            alignment, padding = 1, self.family.row_padding
        return padded(stored, alignment, padding)

    def _mapped(self, sizes: dict[str, int]) -> dict[str, int]:
        """Buffers over the mapped file reach from their first tensor to their last, whatever lies between."""
        mapped = {CPU} if not self.family.maps_files else {CPU, *self.names}
        found = {name: size for name, size in sizes.items() if name not in mapped}
        for buffer in mapped & sizes.keys():
            at, first, last = 0, None, 0
            for name, stored in self.gguf.tensors.items():
                mine = self.buffers[name] == buffer or (
                    name == "token_embd.weight" and self.has_tied_copy and self.output_buffer == buffer
                )
                if mine:
                    first = at if first is None else first
                    last = at + stored.num_bytes
                at += -(-stored.num_bytes // 32) * 32
            found[f"{buffer}_Mapped"] = last - (first or 0)
        return found

    @property
    def at_host(self) -> bool:
        """Some of its layers, or of what they keep, are in host memory."""
        return None in self.device_of_layer or bool(self.overrides) or not self.how.offload_kqv

    @property
    def is_split(self) -> bool:
        """Matrices are shared by rows, which CUDA's and ROCm's back ends can."""
        return self.how.split_mode == "row" and self.family.splits_rows

    def split_bytes(self) -> list[int]:
        """What each device holds of the matrices that are shared by rows (`get_row_split` of CUDA's back end).

        Each begins at a multiple of 128 rows, as devices since Volta and RDNA 2 have it.
        """
        ends = self._ends()
        found = [0] * self.count
        matrices = [one for name, one in self.gguf.tensors.items() if self.buffers[name].endswith(SPLIT)]
        if self.has_tied_copy and self.output_buffer.endswith(SPLIT):
            matrices.append(self.gguf.tensors["token_embd.weight"])
        for stored in matrices:
            *rows, columns = stored.shape
            count, start, dtype = math.prod(rows), 0, dtypes.get(stored.dtype)
            for device, end in enumerate(ends):
                stop = count if device == self.count - 1 else int(count * end) // SPLIT_ROWS * SPLIT_ROWS
                if stop > start:
                    found[device] += (stop - start) * dtype.num_bytes(columns)
                    if dtype.kind == "block" and columns % self.family.row_padding:
                        found[device] += dtype.num_bytes(self.family.row_padding - columns % self.family.row_padding)
                start = stop
        return found

    def device_bytes(self) -> list[int]:
        """The model's bytes on each device."""
        split = self.split_bytes() if self.is_split else [0] * self.count
        return [
            self.sizes.get(name, 0) + self.sizes.get(f"{name}_Mapped", 0) + rows
            for name, rows in zip(self.names, split, strict=True)
        ]

    # -- caches ----------------------------------------------------------------------------------

    def cells(self, layer: LayerCache, n_ctx: int = 0, n_seq_max: int = 0, unified: bool | None = None) -> int:
        """Cells of a layer, over all streams; of another context and for other sequences, if they are given."""
        how, total, sequences = self.how, n_ctx or self.how.n_ctx, n_seq_max or self.how.n_seq_max
        if layer.kind != SLIDING or how.swa_full or layer.window is None:
            return total
        unified = how.kv_unified if unified is None else unified
        streams = 1 if unified else sequences
        seen = layer.window * (sequences if unified else 1) + how.n_ubatch
        return streams * min(total // streams, -(-seen // PADDING) * PADDING)

    def row_bytes(self, layer: LayerCache) -> int:
        """Of a layer's keys and values of one cell."""
        key, value = dtypes.get(self.how.type_k), dtypes.get(self.how.type_v)
        return key.num_bytes(layer.heads * layer.key_width) + value.num_bytes(layer.heads * layer.value_width)

    def cache_buffer(self, layer: int) -> str:
        """Where a layer's keys and values are."""
        device = self.device_of_layer[layer] if self.how.offload_kqv else None
        return CPU if device is None else self.names[device]

    def cache_sizes(self) -> dict[str, int]:
        """Bytes of keys and values, by buffer."""
        found: dict[str, int] = {}
        for number, layer in enumerate(self.gguf.layers):
            if not layer.heads:
                continue
            buffer = self.cache_buffer(number)
            found[buffer] = found.get(buffer, 0) + self.cells(layer) * self.row_bytes(layer)
        return found

    def state_sizes(self) -> dict[str, int]:
        """Bytes of recurrent states, by buffer."""
        found: dict[str, int] = {}
        for number, layer in enumerate(self.gguf.layers):
            if layer.states:
                buffer = self.cache_buffer(number)
                each = sum(dtypes.FLOAT32.num_bytes(state.elements) for state in layer.states)
                found[buffer] = found.get(buffer, 0) + self.how.n_seq_max * each
        return found

    # -- backends --------------------------------------------------------------------------------

    @cached_property
    def backends(self) -> list[Backend]:
        """The devices that the model is on, and the host."""
        family = self.family
        devices = [
            Backend(
                BufferType(name, family.alignment, family.row_padding),
                frozenset((name, f"{family.name}_{SPLIT}"))
                if number == self.how.main_gpu or self.count == 1
                else frozenset((name,)),
            )
            for number, name in enumerate(self.names)
        ]
        host = family.host if self.count and family.host is not None else CPU
        buffers = frozenset((CPU, REPACK, host))
        return [*devices, Backend(BufferType(host, 32), buffers, is_host=True)]

    @property
    def is_pipelined(self) -> bool:
        """Several ubatches are under way at once."""
        return (
            self.count > 1
            and self.gpu_layers > len(self.gguf.layers)
            and self.how.split_mode == "layer"
            and self.how.offload_kqv
            and not self.overrides
            and self.family.is_async
        )


def _is_split(name: str, stored: StoredTensor) -> bool:
    """Products alone take rows from several devices, and of matrices, not of experts."""
    others = ("conv", "_norm", "altup_", "rope_", "ssm_a", "ssm_d")
    return _is_matrix(name, stored) and len(stored.shape) == 2 and not any(one in name for one in others)


def is_looked_up(stored: StoredTensor) -> bool:
    """Devices can look its rows up."""
    return dtypes.get(stored.dtype).name in GET_ROWS_TYPES


def _is_matrix(name: str, stored: StoredTensor) -> bool:
    return len(stored.shape) > 1 and name.endswith("weight") and not name.startswith(("token_embd", "position_embd"))


WINDOWED = frozenset("gemma2 gemma3 gemma3n gemma4 gpt-oss cohere2 exaone4 olmo2 llama4".split())
"""Architectures whose windows llama.cpp knows; others see, and keep, everything."""


def gguf_of(checkpoint: Checkpoint, layers: tuple[LayerCache, ...], config: Mapping[str, Any]) -> Gguf:
    """A model, from a header or a prediction of one."""
    architecture = str(checkpoint.metadata["general.architecture"])
    if architecture == "llama4":  # a chunk's cells are kept as a window's are
        layers = tuple(replace(one, kind=SLIDING) if one.kind == CHUNKED else one for one in layers)
    if architecture not in WINDOWED:
        layers = tuple(replace(one, kind=FULL, window=None) if one.kind == SLIDING else one for one in layers)
    if any(one.states for one in layers):
        layers = tuple(replace(one, states=tuple(map(_kept_state, one.states))) for one in layers)
    if any(one.kind == LATENT for one in layers):
        layers = _latent(checkpoint, layers, config)
    return Gguf(architecture, checkpoint.tensors, layers, config)


def _kept_state(state: State) -> State:
    """A convolution's latest inputs but the one that is shifted out."""
    is_convolution = state.name.startswith("conv") and len(state.shape) > 1
    return replace(state, shape=(*state.shape[:-1], state.shape[-1] - 1)) if is_convolution else state


def _latent(
    checkpoint: Checkpoint, layers: tuple[LayerCache, ...], config: Mapping[str, Any]
) -> tuple[LayerCache, ...]:
    """Latent attention keeps one key a token, the value being a part of it; every head's in files before April 2025."""
    if "blk.0.attn_k_b.weight" not in checkpoint.tensors:
        return tuple(replace(one, kind=FULL, latent_width=0) for one in layers)
    width = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    return tuple(LayerCache(FULL, 1, width, 0) for one in layers)
