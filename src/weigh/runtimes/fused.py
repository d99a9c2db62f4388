"""The layers of vLLM, which SGLang took over: fused, cut over ranks, padded, in the order in which they are made.

A family's parameters come under Hugging Face's names. vLLM makes one matrix of queries, keys and values and one of gate
and up, gives each rank a share of the heads, of the inner width or of the experts (key-value heads are copied where
there are fewer than ranks), and pads the vocabulary. Which matrix is cut along which side is told by its name; an
unknown one is refused where there is more than one rank.

Read: vLLM 0.6.4 to 0.25 (`model_executor/layers/linear.py`, `vocab_parallel_embedding.py`, `fused_moe/layer.py`,
`rotary_embedding/`, `distributed/utils.py: get_pp_indices`, `attention/layer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh import formats
from weigh.dims import product
from weigh.dtypes import FLOAT32
from weigh.errors import NotModelledError, UsageError
from weigh.formats.base import EMBEDDING, EXPERTS, HEAD, LINEAR, Format, Weight
from weigh.ghost import nn
from weigh.recipes.keeping import heads_of_rank
from weigh.records import replace
from weigh.runtimes.methods import form_of
from weigh.runtimes.sharding import (
    COLUMN,
    FUSED,
    KEYS_VALUES,
    PACKED,
    PER_HEAD,
    ROW,
    WHOLE,
    WHOLE_TOWERS,
    Rank,
    side,
    stage_layers,
)
from weigh.trace.allocator import Block, CachingAllocator

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.ghost.nn import Module
    from weigh.runtimes.engine import Served
    from weigh.trace.allocator_settings import AllocatorSettings

PADDING = 64
"""Rows of the vocabulary are padded to a multiple of it (`DEFAULT_VOCAB_PADDING_SIZE`)."""

MARLIN = (8, 0)
"""Which row of the table below is taken where nothing else is said."""
MXFP4_PADDING = {(9, 0): (1, 64), (10, 0): (256, 256), MARLIN: (256, 128)}
"""Experts in MXFP4: hidden and inner width are padded to these multiples by the kernels that a device runs
(`mxfp4.py: get_mxfp4_backend, create_weights`: Triton's on Hopper, FlashInfer's on Blackwell, else Marlin)."""
TOWERS = ("vision", "visual", "audio", "projector")
"""Parts of the names of modules that see or hear."""
SMALL_GATES = frozenset("gate router shared_expert_gate in_proj_a in_proj_b in_proj_ba".split())
"""What those who publish quantized checkpoints leave as it is: the choice of experts, whose outputs are few, and the
gates of linear attention, which have fewer outputs than Marlin's kernels take (llm-compressor's `ignore` and
AutoRound's, on the pages of Qwen3.6-27B's W4A16)."""

RELAID = ("weight_packed", "weight_scale")
"""Parts of compressed-tensors' integers that are written anew for the kernels, of a linear layer by way of a copy of
the transposed one (`mixed_precision/marlin.py`, `compressed_tensors_moe.py: process_weights_after_loading`)."""
SCALES = 7
"""Numbers of four bytes that every attention has on the device: its scales of q, k, v and p, and ranges of q, k, v."""


class Held(NamedTuple):
    """A tensor that a rank holds."""

    name: str
    num_bytes: int
    of: str
    """ "weights", "rotary tables", "attention scales", "LoRA slots"."""
    first: tuple[int, ...] = ()
    """Temporaries that were made for it, and are gone when it is."""
    beside: int = 0
    """One that goes when it is there."""
    routed: bool = False
    """Of experts, of which a token goes through some."""
    relaid: tuple[int, ...] | None = None
    """Once all are loaded it is written anew in the order that kernels want, by way of these temporaries; None: not."""


class _Parameter(NamedTuple):
    """One of a family's, of one block."""

    module: str
    attribute: str
    shape: tuple[int, ...]
    owner: Module
    block: int | None
    """The number of its block."""
    parent: str
    """The name of the module that has its module."""
    leaf: str
    """What its module is called there."""

    @property
    def is_tower(self) -> bool:
        """Whether it sees or hears."""
        return self.owner.role in nn.TOWERS or any(part in self.module for part in TOWERS)


def held(
    served: Served,
    rank: Rank,
    wanted: str | None = None,
    capability: tuple[int, int] | None = None,
    is_pooling: bool = False,
) -> Iterator[Held]:
    """The tensors of a rank, in the order in which they are made.

    `wanted` is a method of quantization where the model's config names none; `capability` the device's, which decides
    by which kernels quantized layers run, and so how they are padded. A model for pooling loses its head.

    Raises:
        NotModelledError: ranks share a matrix that no list above has.
        UsageError: they cannot share it.
    """
    for block in _loading(served, rank, wanted, capability, is_pooling).blocks():
        was, now = f".{block.named}.", f".{block.number}."
        for one in block.tensors:
            yield one if was == now else one._replace(name=one.name.replace(was, now, 1))


class _Block(NamedTuple):
    """The tensors of one block, or of what stands between blocks."""

    number: int | None
    named: int | None
    """The number in the names of its tensors: of the first that is alike."""
    tensors: tuple[Held, ...]


class Loaded(NamedTuple):
    """Bytes of a rank with all its tensors there."""

    weights: int
    besides: int
    """Rotary tables, scales of attention, slots."""
    routed: int
    """Of the weights, experts' matrices, of which a token goes through some."""
    allocated: int
    """What PyTorch's allocator counts as allocated: a request that leaves less than 1 MiB of a large block keeps the
    whole block, and engines print these bytes too."""
    with_cache: int
    """What the allocator has from the driver then."""
    reserved: int
    """The same, its cache given back."""


def loaded(
    served: Served,
    rank: Rank,
    wanted: str | None = None,
    capability: tuple[int, int] | None = None,
    is_pooling: bool = False,
    settings: AllocatorSettings | None = None,
    is_blind: bool = False,
) -> Loaded:
    """What `held` comes to; a blind model leaves out what sees and hears. Raises as `held` does."""
    key = ("loaded", rank, wanted, capability, is_pooling, settings, is_blind)
    if key not in served.memo:
        blocks = list(_loading(served, rank, wanted, capability, is_pooling).blocks())
        if is_blind:
            blocks = [b for b in blocks if not any(part in one.name for one in b.tensors for part in TOWERS)]
        served.memo[key] = _load(blocks, settings)
    found: Loaded = served.memo[key]
    return found


def _load(blocks: Sequence[_Block], settings: AllocatorSettings | None) -> Loaded:
    allocator = CachingAllocator(settings)
    relaid: list[tuple[Block, Held]] = []
    tensors: list[Held] = []
    for held, run in groupby(blocks, key=lambda block: block.tensors):
        times = len(list(run))
        tensors += held * times
        if any(one.first or one.beside or one.relaid is not None for one in held):
            for _ in range(times):
                relaid += _make(allocator, held)
        else:
            allocator.fill([one.num_bytes for one in held if one.num_bytes], times)
    for own, one in relaid:
        first = [allocator.malloc(size) for size in one.relaid or ()]
        allocator.malloc(one.num_bytes)
        for block in [*first, own]:
            allocator.free(block)
    with_cache = allocator.reserved
    allocator.empty_cache()
    weights = sum(one.num_bytes for one in tensors if one.of == "weights")
    besides = sum(one.num_bytes for one in tensors) - weights
    routed = sum(one.num_bytes for one in tensors if one.routed)
    return Loaded(weights, besides, routed, allocator.allocated, with_cache, allocator.reserved)


def _make(allocator: CachingAllocator, held: Iterable[Held]) -> Iterator[tuple[Block, Held]]:
    """One after another; those that are laid out anew when all are there."""
    for one in held:
        first = [allocator.malloc(size) for size in one.first if size]
        beside = allocator.malloc(one.beside) if one.beside else None
        for block in first:
            allocator.free(block)
        own = allocator.malloc(one.num_bytes) if one.num_bytes else None
        if beside is not None:
            allocator.free(beside)
        if own is not None and one.relaid is not None:
            yield own, one


def _loading(
    served: Served, rank: Rank, wanted: str | None, capability: tuple[int, int] | None, is_pooling: bool
) -> _Loading:
    """The one of these arguments; many jobs of one model ask for the same."""
    key = (rank, wanted, capability, is_pooling)
    if key not in served.memo:
        served.memo[key] = _Loading(served, rank, wanted, capability, is_pooling)
    found: _Loading = served.memo[key]
    return found


class _Loading:
    def __init__(
        self, served: Served, rank: Rank, wanted: str | None, capability: tuple[int, int] | None, is_pooling: bool
    ) -> None:
        self.served, self.rank = served, rank
        self.form = form_of(served, wanted)
        self.wanted = wanted if formats.settings(served.config) is None else None
        self.mxfp4 = MXFP4_PADDING.get(capability or MARLIN, MXFP4_PADDING[MARLIN])
        self.dtype = served.dtype
        self.is_pooling = is_pooling
        self.seen_layers = _seen_layers(served)
        self.rotary = list(_rotary(served))
        if "fused" not in served.memo:
            served.memo["fused"] = _fused(_in_order(served.model))
        self.fused: list[list[_Parameter]] = served.memo["fused"]
        self.weights: dict[tuple[Module, str], Weight | None] = {}
        self.sparse = {one[0].block for one in self.fused if one[0].owner.active_share != 1}

    def blocks(self) -> Iterator[_Block]:
        """The tensors of block after block, in the order in which they are made; of alike blocks the first one's."""
        stage = stage_layers(len(self.served.layers), self.rank.stages)[self.rank.stage]
        known: dict[object, _Block] = {}
        tables = list(self.rotary)
        for number, groups in groupby(self.fused, key=lambda together: together[0].block):
            here = [together for together in groups if self._is_here(together[0], stage)]
            alike: object = tuple((together[0].owner, together[0].attribute) for together in here)
            if number is None or tables or (self.form is not None and self.form.by_name):
                alike = number, alike
            if alike not in known:
                known[alike] = _Block(number, number, tuple(self._tensors(here, tables)))
            yield known[alike]._replace(number=number)

    def _tensors(self, here: Iterable[list[_Parameter]], tables: list[Held]) -> Iterator[Held]:
        for together in here:
            one = together[0]
            yield from self._made(together)
            if one.block is not None and one.leaf in ROW and "att" in one.module and not one.is_tower:
                yield from self._attention(one, tables)

    def matrices(self) -> Iterator[Matrix]:
        """Those that vectors are multiplied by."""
        for together in self.fused:
            one, weight = together[0], self._weight(together)
            if weight is not None and weight.kind in (LINEAR, HEAD, EXPERTS):
                packed = 3 if one.leaf in PACKED else 2 if one.leaf == "gate_up_proj" else 1
                parts, experts = max(packed, len(together)), weight.experts if weight.kind == EXPERTS else 0
                yield Matrix(one.module, one.block, weight.rows, weight.columns, parts, experts)

    def _is_here(self, one: _Parameter, blocks: range) -> bool:
        """Whether a pipeline stage has it: the first one the embedding, the last one the norm and the head."""
        if self.is_pooling and one.owner.role == nn.HEAD:
            return False
        if one.block is not None and "vision_tower" in one.module and one.block >= self.seen_layers:
            return False
        if self.rank.stages == 1:
            return True
        if one.block is not None and one.owner.role not in nn.TOWERS:
            return one.block in blocks
        first = isinstance(one.owner, nn.Embedding)
        if first and self.served.text_config.get("tie_word_embeddings"):
            return self.rank.stage in (0, self.rank.stages - 1)
        return self.rank.stage == (0 if first else self.rank.stages - 1)

    def _made(self, together: list[_Parameter]) -> Iterator[Held]:
        """A matrix with what its format stores beside it, a vector, or the experts' matrices."""
        one = together[0]
        name, weight = f"{one.module}.{one.attribute}", self._weight(together)
        if weight is not None and self.form is not None:
            weight = replace(weight, name=name)  # which may say that it is left as it is, or stored in other bits
        if weight is None:
            yield Held(name, self._dtype(one).num_bytes(_count(self._vector(together))), "weights")
        elif self.form is not None and self._is_quantized(one, weight, self.form):
            yield from self._quantized(weight, self.form)
        else:
            size = self.dtype.num_bytes(weight.elements * weight.experts)
            yield Held(name, size, "weights", routed=weight.kind == EXPERTS)

    def _is_quantized(self, one: _Parameter, weight: Weight, form: Format) -> bool:
        """Checkpoints of methods that are only named leave what sees and hears as it is."""
        if self.wanted is not None and (one.leaf in SMALL_GATES or one.is_tower):
            return False
        return form.converts(weight if one.attribute == "weight" else replace(weight, name=f"{one.module}.weight"))

    def _quantized(self, weight: Weight, form: Format) -> Iterator[Held]:
        experts = 1 if form.method == "mxfp4" else weight.experts  # it says all experts' bytes itself
        for stored in form.store(self._padded(weight)):
            size = stored.num_bytes
            if form.method == "compressed-tensors" and stored.name.endswith("weight_scale") and self._is_float(form):
                size = FLOAT32.num_bytes(stored.elements)  # `ChannelQuantScaleParameter` and its like
            is_routed, relaid = weight.kind == EXPERTS, None
            if form.title.startswith("pack-quantized") and stored.name.endswith(RELAID):
                relaid = () if is_routed else (size,)
            yield Held(stored.name, size * experts, "weights", routed=is_routed, relaid=relaid)

    @staticmethod
    def _is_float(form: Format) -> bool:
        return form.title.startswith(("float-quantized", "int-quantized", "naive-quantized"))

    def _dtype(self, one: _Parameter) -> DType:
        return FLOAT32 if one.attribute in ("A_log", "e_score_correction_bias") else self.dtype

    def _weight(self, together: list[_Parameter]) -> Weight | None:
        """The matrix that they become; in alike blocks the first one's."""
        key = (together[0].owner, together[0].attribute)
        if key not in self.weights:
            self.weights[key] = self._joined(together)
        return self.weights[key]

    def _joined(self, together: list[_Parameter]) -> Weight | None:
        one = together[0]
        name = f"{one.module}.{one.attribute}"
        if len(one.shape) == 3 and one.owner.active_share != 1:
            return self._experts(one, name)
        if len(one.shape) != 2 or one.attribute != "weight":
            return None
        if isinstance(one.owner, nn.Embedding) and side(one.module) is not WHOLE:
            return Weight(name, self._vocabulary(one.shape[0]), one.shape[1], self.dtype, EMBEDDING)
        if one.owner.role == nn.HEAD:
            return Weight(name, self._vocabulary(one.shape[0]), one.shape[1], self.dtype, HEAD)
        rows = columns = 0
        for part in together:
            out, into = part.shape[::-1] if isinstance(part.owner, nn.Conv1D) else part.shape
            out, into = self._cut(part, out, into)
            rows, columns = rows + out, into
        is_linear = isinstance(one.owner, nn.Linear | nn.Conv1D)
        return Weight(name, rows, columns, self.dtype, LINEAR if is_linear else "")

    def _vocabulary(self, rows: int) -> int:
        return -(-rows // PADDING) * PADDING // self.rank.tensor

    def _experts(self, one: _Parameter, name: str) -> Weight:
        rank, (count, rows, columns) = self.rank, one.shape
        if getattr(one.owner, "is_transposed", False):
            rows, columns = columns, rows
        joined = 2 if one.attribute == "gate_up_proj" else 1
        if rank.whole_experts:
            count = -(-(count + rank.redundant) // rank.experts_over)
        elif joined == 2:
            rows = 2 * self._divide(rows // 2, one, rank.experts_over)
        else:
            columns = self._divide(columns, one, rank.experts_over)
        return Weight(name, rows, columns, self.dtype, EXPERTS, count, joined)

    def _padded(self, weight: Weight) -> Weight:
        """The experts' kernels for four-bit floats want sizes of their own (`mxfp4.py: create_weights`, Triton's)."""
        if self.form is None or self.form.method != "mxfp4":
            return weight
        hidden, inner = self.mxfp4
        if weight.joined == 2:
            return replace(weight, rows=2 * _up(weight.rows // 2, inner), columns=_up(weight.columns, hidden))
        return replace(weight, rows=_up(weight.rows, hidden), columns=_up(weight.columns, inner))

    def _cut(self, one: _Parameter, out: int, into: int) -> tuple[int, int]:
        """Outputs and inputs of a matrix on this rank."""
        if self._is_whole(one):
            return out, into
        found = COLUMN if one.module.endswith("intermediate.dense") else side(one.module)  # BERT's name for it
        if found is ROW:
            return out, self._divide(into, one)
        if found is COLUMN:
            return self._rows(one, out), into
        raise NotModelledError(f"how ranks share {one.module}", where="tensor", hint="Serve it on one device.")

    def _is_whole(self, one: _Parameter) -> bool:
        """Whether every rank has all of it."""
        if self.rank.tensor == 1 or side(one.module) is WHOLE:
            return True
        if (self.rank.towers_whole or self.served.config.get("model_type") in WHOLE_TOWERS) and one.is_tower:
            return True
        return self.rank.dense_whole and "mlp" in one.module and one.block not in self.sparse

    def _rows(self, one: _Parameter, out: int) -> int:
        """Outputs of a column-parallel matrix or of its bias; key-value heads are copied where there are too few."""
        if one.is_tower or not self.served.layers:
            return self._divide(out, one)  # as many heads of keys as of queries
        if one.leaf in PACKED:
            keys = self._keys_values(one)
            return self._divide(out - keys[0], one) + keys[1]
        if one.leaf in KEYS_VALUES:
            heads = self._heads(one)
            return out // heads * heads_of_rank(heads, self.rank.tensor)
        return self._divide(out, one)

    def _heads(self, one: _Parameter) -> int:
        layers, block = self.served.layers, one.block
        found = layers[block].heads if block is not None and block < len(layers) else 0
        return found or int(self.served.text_config.get("num_key_value_heads") or 0) or self.rank.tensor

    def _keys_values(self, one: _Parameter) -> tuple[int, int]:
        """Rows of keys and values, of the model's and of a rank's heads."""
        layer = self.served.layers[one.block or 0]
        width, heads = layer.key_width + layer.value_width, self._heads(one)
        return width * heads, width * heads_of_rank(heads, self.rank.tensor)

    def _vector(self, together: list[_Parameter]) -> tuple[int, ...]:
        one, ranks = together[0], self.rank.tensor
        if len(one.shape) == 2 and one.owner.active_share != 1:  # biases of experts
            count, width = one.shape
            if self.rank.whole_experts:
                return -(-count // self.rank.experts_over), width
            cut = "gate_up" in one.attribute
            return count, self._divide(width, one, self.rank.experts_over) if cut else width
        if one.attribute == "bias" and side(one.module) is COLUMN and not self._is_whole(one):
            return (sum(self._rows(part, part.shape[0]) for part in together),)
        if ranks > 1 and (one.attribute in PER_HEAD or one.leaf in PER_HEAD):
            at = next((index for index, size in enumerate(one.shape) if size > 1), 0)
            return (*one.shape[:at], self._divide(one.shape[at], one), *one.shape[at + 1 :])
        return (sum(part.shape[0] for part in together), *one.shape[1:])

    def _divide(self, size: int, one: _Parameter, ranks: int | None = None) -> int:
        ranks = ranks or self.rank.tensor
        if size % ranks:
            what = f"{ranks} ranks cannot share the {size} of {one.module}"
            raise UsageError(what, where="tensor", hint="Take a divisor.")
        return size // ranks

    def _attention(self, one: _Parameter, tables: list[Held]) -> Iterator[Held]:
        """The scales of an attention, and with the first one that uses it a table of positions."""
        if tables:
            yield tables.pop(0)
        for number in range(SCALES):
            yield Held(f"{one.parent}.scale.{number}", 4, "attention scales")


def _in_order(model: Module) -> list[_Parameter]:
    """Every parameter of every block, block by block."""
    found: list[tuple[int, int, _Parameter]] = []
    segment, stack = 0, ""
    for parameter in model.parameters():
        names = parameter.names
        shape: tuple[int, ...] = parameter.tensor.shape  # type: ignore[assignment]
        for name in names:
            module, _, attribute = name.rpartition(".")
            block = next((int(part) for part in module.split(".") if part.isdecimal()), None)
            parent, _, leaf = module.rpartition(".")
            one = _Parameter(module, attribute, shape, parameter.module, block, parent, leaf)
            prefix = "" if block is None else name.partition(f".{block}.")[0]
            if prefix != stack:
                segment, stack = segment + 1, prefix
            found.append((segment, block or 0, one))
    found.sort(key=lambda entry: entry[:2])
    return [one for _, _, one in found]


def _fused(parameters: list[_Parameter]) -> list[list[_Parameter]]:
    """Those that engines make one of, at the place of the first."""
    beside: dict[tuple[str, str, str], list[_Parameter]] = {}
    for one in parameters:
        names = next((names for names in FUSED if one.leaf in names and len(one.shape) < 3), (one.leaf,))
        beside.setdefault((one.parent, one.attribute, names[0]), []).append(one)
    return list(beside.values())


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _count(shape: tuple[int, ...]) -> int:
    found = product(shape)
    assert isinstance(found, int)
    return found


def _length(tensor: Any) -> int:
    return int(tensor.shape[0])


def _seen_layers(served: Served) -> int:
    """Blocks of a vision tower that are made: those up to the one whose output is taken (`llava.py`)."""
    count = (served.config.get("vision_config") or {}).get("num_hidden_layers")
    wanted = served.config.get("vision_feature_layer")
    if not isinstance(count, int) or not isinstance(wanted, int):
        return 2**31
    return count + wanted + 1 if wanted < 0 else wanted


def _rotary(served: Served) -> Iterator[Held]:
    """Cosines and sines of every position (`cos_sin_cache`); layers that rotate alike share a table."""
    config = served.text_config
    rotary = (m for m in served.model.modules() if m.role == nn.ROTARY and not any(part in m.path for part in TOWERS))
    found = {
        (name, 2 * _length(tensor))  # one for windows and one for full attention, where they rotate differently
        for module in rotary
        for name, tensor in module.own_tensors()
        if name.endswith("inv_freq") and "original" not in name
    }
    dtype = FLOAT32 if config.get("model_type") == "gpt_oss" else served.dtype
    for name, width in sorted(found):
        positions = _positions(config, name.removesuffix("_inv_freq"), served.longest or 0)
        half = 4 * positions * width // 2  # `_compute_cos_sin_cache`: times, angles, cosines, sines, all in fp32
        table = dtype.num_bytes(positions * width)
        yield Held("rotary_emb.cos_sin_cache", table, "rotary tables", (4 * positions, half, half, half), 2 * half)


def _positions(config: Mapping[str, Any], layer_type: str, longest: int) -> int:
    """Rows of a table (`get_rope` and its classes); windows turn plainly where nobody says how (`gemma3.py`)."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    own = given.get(layer_type, {} if layer_type == "sliding_attention" else given)
    scaling: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    factor = float(scaling.get("factor") or 1)
    original = scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    positions = longest
    if kind == "yarn":
        positions = int((original or longest) * factor)
    elif kind in ("linear", "dynamic"):
        positions = int(longest * factor)
    elif kind == "longrope":  # one for short contexts and one for long ones
        positions += int(original or 0)
    return positions * 4 if kind == "mrope" or "mrope_section" in scaling else positions


class Matrix(NamedTuple):
    """A matrix of a rank."""

    name: str
    """Of its module."""
    block: int | None
    rows: int
    columns: int
    parts: int = 1
    """How many matrices of the model it is."""
    experts: int = 0
    """How many of them lie one behind the other."""

    @property
    def leaf(self) -> str:
        """What the module is called in its parent."""
        return self.name.rpartition(".")[2]

    @property
    def makes_queries(self) -> bool:
        """Queries, keys and values come out of it."""
        return self.leaf in PACKED or self.leaf in FUSED[0]

    @property
    def makes_inner(self) -> bool:
        """It is the first of a feed-forward."""
        return not self.experts and self.leaf in COLUMN and not self.makes_queries and "attn" not in self.name

    @property
    def is_output(self) -> bool:
        """Attention's output goes through it."""
        return self.leaf in ROW and "att" in self.name


def matrices(served: Served, rank: Rank) -> tuple[Matrix, ...]:
    """The matrices of a rank, fused and cut, the embedding left out."""
    key = ("matrices", rank)
    if key not in served.memo:
        served.memo[key] = tuple(_loading(served, rank, None, None, is_pooling=False).matrices())
    found: tuple[Matrix, ...] = served.memo[key]
    return found
