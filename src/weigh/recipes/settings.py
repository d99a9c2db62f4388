"""From words to a recipe: what the command line, keyword arguments and JSON share.

A recipe's fields are its settings. What may be written for each follows from its type; names are checked here, so that
a misspelt one is an error with a suggestion and never another run than was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from operator import index
from typing import Any, NamedTuple, TypeVar

from weigh import dtypes
from weigh.errors import UnknownNameError, UsageError, suggest
from weigh.records import MISSING, fields
from weigh.units import parse_tokens

R = TypeVar("R")

Text = str
"""A setting's type: words that are a program's own, taken as they are."""

COMPUTE_DTYPES = ("fp32", "bf16", "fp16", "fp64")
"""Those that PyTorch trains and generates in without further help."""

RENAMED = {"device": "kernels"}
"""Fields that people know under another word: a device is a GPU by its name, and kernels are CUDA's or the CPU's."""

AT_LEAST_ZERO = frozenset(
    "block_size blocks defer_embedding_wgrad group_size hybrid_rank layers logits_to_keep rank tokens".split()
)

FACTORS = ("capacity_factor", "cpu_offload_gb", "gpu_memory_utilization")
"""Numbers that may be 1 and more."""

NOTHING = ("none", "off")


class Setting(NamedTuple):
    """One field of a recipe, as people write it."""

    field: str
    """The field's name."""
    type: str
    """The field's type, as it is spelled in the code."""
    default: Any
    """What it is where nobody says."""

    @property
    def name(self) -> str:
        """What people call it."""
        return RENAMED.get(self.field, self.field)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The words that it may be; None where it is no word."""
        if self.type.startswith("Text"):
            return None
        if self.type.startswith("DType"):
            return COMPUTE_DTYPES
        return _choices(self.field)

    @property
    def optional(self) -> bool:
        """Whether it may be "none"."""
        return self.type.endswith("| None")

    def read(self, value: Any, where: str | None = None) -> Any:
        """The field's value, from a word or from a value that is one already.

        Raises:
            UsageError: it cannot be that.
        """
        where = where or self.name
        if value is None or (isinstance(value, str) and value.lower() in NOTHING and self.optional):
            return self._nothing(value, where)
        kind = self.type.removesuffix(" | None")
        reader = _READERS.get(kind)
        if reader is not None:
            return reader(value, where, self)
        return _word(value, where, self)

    def _nothing(self, value: Any, where: str) -> None:
        if not self.optional:
            raise UsageError(f"{value!r} is no {self.name}", where=where, hint="Leave it out, or give a value.")


def settings(recipe: type) -> list[Setting]:
    """The settings of a recipe, in its order."""
    return [Setting(f.name, str(f.type), None if f.default is MISSING else f.default) for f in fields(recipe)]


def make(recipe: Callable[..., R], words: Mapping[str, Any]) -> R:
    """A recipe from its settings by name.

    >>> from weigh.recipes.training import Training
    >>> made = make(Training, {"batch": "8", "sequence": "2k", "dtype": "bf16", "kernels": "cpu"})
    >>> made.batch, made.sequence, made.dtype, made.device
    (8, 2048, <DType bf16>, 'cpu')

    Raises:
        UsageError: there is no such setting, or it cannot have that value.
    """
    known = {s.name: s for s in settings(recipe)}  # type: ignore[arg-type]
    return recipe(**{known[name].field: value for name, value in read_words(known, words).items()})


def words_of(recipe: Any) -> dict[str, Any]:
    """The settings of a recipe as `make` reads them, in plain values: what a recipe file says."""
    return {s.name: _plain(getattr(recipe, s.field)) for s in settings(type(recipe))}


def given_words(recipe: Any) -> dict[str, Any]:
    """The settings of a recipe that are not what they are by default."""
    plain = {s.name: s.default for s in settings(type(recipe))}
    return {name: value for name, value in words_of(recipe).items() if value not in (plain[name], NOTHING[0])}


def _plain(value: Any) -> Any:
    if value is None:
        return NOTHING[0]
    if isinstance(value, dtypes.DType):
        return value.name
    if hasattr(value, "__dataclass_fields__"):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def read_words(known: Mapping[str, Setting], words: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings by name, from what people write.

    Raises:
        UsageError: there is no such setting, or it cannot have that value.
    """
    values: dict[str, Any] = {}
    for name, value in words.items():
        setting = known.get(name.replace("-", "_"))
        if setting is None:
            raise UsageError(f"there is no setting {name!r}", hint=did_you_mean(name, known))
        values[setting.name] = setting.read(value)
    return values


def did_you_mean(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """A sentence that helps on from a misspelt name."""
    found = suggest(name, known)
    return f"Did you mean {' or '.join(found)}?" if found else f"Known: {', '.join(known)}."


def _whole(value: Any, where: str, setting: Setting) -> Any:
    if not isinstance(value, str | bool):
        try:
            value = index(value)
        except TypeError:
            raise UsageError(f"{value!r} is no whole number", where=where, hint="Give one number.") from None
    number = parse_tokens(value, where)
    least = 0 if setting.field in AT_LEAST_ZERO else 1
    if not least <= number < 2**40:
        raise UsageError(f"is {value}", where=where, hint=f"It must be at least {least}, and below 2^40.")
    return number


def _real(value: Any, where: str, setting: Setting) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{value!r} is no number", where=where, hint="Give a number such as 0.01.") from None
    if not 0 <= number < 1 and setting.field not in FACTORS:
        raise UsageError(f"is {value}", where=where, hint="It must be at least 0 and below 1.")
    if not 0 <= number < 1000:
        raise UsageError(f"is {value}", where=where, hint="It must be at least 0 and below 1000.")
    return number


def _flag(value: Any, where: str, _: Setting) -> bool:
    if isinstance(value, bool):
        return value
    raise UsageError(f"{value!r} is neither true nor false", where=where, hint="Give True or False.")


def _word(value: Any, where: str, setting: Setting) -> str:
    known = setting.choices
    word = str(value).lower().replace("-", "_")
    if setting.field == "optimizer":
        word = _optimizer(word)
    if known is not None and word not in known:
        raise UsageError(
            f"there is no {setting.name.replace('_', ' ')} {value!r}", where=where, hint=did_you_mean(word, known)
        )
    return word


def _optimizer(word: str) -> str:
    """An optimizer under transformers' name for it, too; those that are known and not run say why."""
    from weigh.optimizers import ALIASES, REFUSED, kind_of

    if word in REFUSED:
        kind_of(word)
    return ALIASES.get(word, word)


def _dtype(value: Any, where: str, _: Setting) -> dtypes.DType:
    if isinstance(value, dtypes.DType):
        found = value
    else:
        try:
            found = dtypes.get(str(value))
        except UnknownNameError as error:
            raise UsageError(error.what, where=where, hint=did_you_mean(str(value), COMPUTE_DTYPES)) from None
    if found.name not in COMPUTE_DTYPES:
        raise UsageError(
            f"PyTorch does not compute in {found.name} by itself", where=where, hint=f"Use {', '.join(COMPUTE_DTYPES)}."
        )
    return found


def _lora(value: Any, where: str, setting: Setting) -> Any:
    """A `Lora`, a mapping of its fields or of peft's, or "RANK" or "RANK:LAYER,LAYER"."""
    from weigh.techniques.lora import Lora

    if isinstance(value, Lora):
        return value
    if isinstance(value, Mapping):
        found = _adapter({"kind": Lora.kind, **value} if "peft_type" not in value else value, where, setting)
        if not isinstance(found, Lora):
            raise UsageError(f"{found.kind} is no LoRA", where=where, hint="Give it as the adapter.")
        return found
    rank, _, targets = str(value).partition(":")
    number = _whole(rank, where, setting)
    return Lora(rank=number, targets=tuple(targets.split(","))) if targets else Lora(rank=number)


def _adapter(value: Any, where: str, setting: Setting) -> Any:
    """One of peft's methods: itself, a mapping of its kind and fields or of peft's, "KIND" or "KIND:LAYER,LAYER"."""
    from weigh.techniques.adapters import method, of_peft
    from weigh.techniques.adapters.base import Adapter

    if isinstance(value, Adapter):
        return value
    if isinstance(value, Mapping):
        if "peft_type" in value:
            return make(*of_peft(value))
        if "kind" not in value:
            raise UsageError(f"{setting.name} does not say its kind", where=where, hint="Name one of peft's methods.")
        return make(method(str(value["kind"])), {name: word for name, word in value.items() if name != "kind"})
    kind, _, targets = str(value).partition(":")
    try:
        return make(method(kind), {"targets": targets} if targets else {})
    except UnknownNameError as error:
        raise UsageError(error.what, where=where, hint=error.hint) from None


def _numbers(value: Any, where: str, setting: Setting) -> tuple[int, ...]:
    return tuple(_whole(each, where, setting) for each in (value.split(",") if isinstance(value, str) else value))


def _pairs(value: Any, where: str, setting: Setting) -> tuple[tuple[str, int], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((str(name), _whole(number, where, setting)) for name, number in pairs)


def _names(value: Any, _: str, __: Setting) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


_READERS: dict[str, Callable[[Any, str, Setting], Any]] = {
    "Size": _whole,
    "int": _whole,
    "float": _real,
    "bool": _flag,
    "DType": _dtype,
    "Lora": _lora,
    "Adapter": _adapter,
    "tuple[str, ...]": _names,
    "tuple[int, ...]": _numbers,
    "tuple[tuple[str, int], ...]": _pairs,
    "Text": lambda value, where, setting: str(value),
}

_CHOICES: dict[str, tuple[str, ...] | str] = {
    "bias": ("none", "all", "lora_only"),
    "attention": "weigh.ghost.state:ATTENTION",
    "attention_kernel": "weigh.kernels.cuda:ATTENTION_KERNELS",
    "backward_prefetch": ("pre", "post"),
    "cache": "weigh.recipes.generation:CACHES",
    "checkpointing": "weigh.techniques.checkpointing:MODES",
    "context_exchange": ("p2p", "a2a", "a2a+p2p"),
    "device": ("cuda", "cpu"),
    "eval_keeps": "weigh.recipes.training:EVAL_KEEPS",
    "fused_kernels": "weigh.kernels:FUSED",
    "fp8": ("delayed", "tensorwise", "mxfp8", "blockwise"),
    "freeze": "weigh.techniques.freezing:PARTS",
    "implementation": "weigh.optimizers:IMPLEMENTATIONS",
    "latent": ("compressed", "expanded"),
    "loss": "weigh.recipes.training:LOSSES",
    "optimizer": "weigh.optimizers:OPTIMIZERS",
    "quantization": "weigh.techniques.quantization:METHODS",
    "state_dict": "weigh.recipes.training:STATE_DICTS",
    "token_dispatcher": "weigh.recipes.training:DISPATCHERS",
    "upcast": "weigh.techniques.quantization:UPCASTS",
    "sharding_strategy": ("optim", "optim_grads", "optim_grads_params"),
    "shard": ("fsdp2", "fsdp1", "zero1", "zero2", "zero3", "distributed_optimizer", "megatron_fsdp"),
    "windows": ("capped", "reserved"),
}
"""The words that a field takes, or where they are listed; loaded when one is checked."""


def _choices(field: str) -> tuple[str, ...] | None:
    found = _CHOICES.get(field)
    if isinstance(found, str):
        module, _, name = found.partition(":")
        listed: tuple[str, ...] = getattr(import_module(module), name)
        return listed
    return found
