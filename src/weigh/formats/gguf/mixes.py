"""File types of GGUF: which number format each tensor is quantized to, as llama.cpp's quantizer chooses.

Read: `src/llama-quant.cpp` (`llama_tensor_get_type`) of August 2025 (ggml-org/llama.cpp 4227c9be) and of spring 2026
(af6528e6d), which differ in fused queries, keys and values only. A file type such as Q4_K_M is a mixture: one format
for most matrices and a few rules about which get more bits. Files that somebody mixed by hand (names with "UD", "XL")
follow none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from weigh import dtypes
from weigh.dtypes import DType
from weigh.errors import NotModelledError, UnknownNameError
from weigh.records import dataclass

BASE = {
    **{name: name.lower() for name in "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q6_K TQ1_0 TQ2_0 Q1_0".split()},
    **{name: name.lower() for name in "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ3_XXS IQ3_S IQ4_NL IQ4_XS Q2_K".split()},
    **{
        f"Q{bits}_K_{size}": f"q{bits}_k"
        for bits in (3, 4, 5)
        for size in "SML"
        if (bits, size) not in ((4, "L"), (5, "L"))
    },
    "Q2_K_S": "q2_k",
    "IQ2_S": "iq2_xs",
    "IQ2_M": "iq2_s",
    "IQ3_XS": "iq3_s",
    "IQ3_M": "iq3_s",
    "MXFP4_MOE": "mxfp4",
}
"""Each file type and the format of most of its matrices (`llama_ftype_get_default_type`)."""
OLDER, NEWER = "2025", "2026"
"""Before and after fused queries, keys and values are treated as values are."""

_LOW = frozenset("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M".split())
_FALLBACK = {
    **dict.fromkeys("iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_xs".split(), "iq4_nl"),
    **dict.fromkeys("q2_k q3_k tq1_0 tq2_0".split(), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
"""What stands in where rows are no whole number of blocks; q2_k and q3_k had iq4_nl until 2026, of the same size."""
_UNTOUCHED = re.compile(
    r"_norm\.weight$|ffn_gate_inp|altup|laurel|per_layer_model_proj|^position_embd|^token_types|ssm_conv1d|"
    r"shortconv\.conv\.weight|attn_rel_b|time_mix_(first|w0|w1|w2|v0|v1|v2|a0|a1|a2|g1|g2|decay_w1|decay_w2|lerp_fused)"
)
"""Matrices that stay as they are (`tensor_allows_quantization`)."""


class Tensor(NamedTuple):
    """A tensor of a GGUF file before it is quantized."""

    name: str
    shape: tuple[int, ...]
    """In PyTorch's order: rows are the last dimension."""
    dtype: DType
    """As the converter writes it."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the quantizer asks of a model."""

    architecture: str
    """GGUF's name."""
    layers: int
    heads_per_key: int
    """Query heads that share a key head (`n_gqa`), in the first layer."""
    experts: int = 0
    is_70b: bool = False
    """Of 80 layers with shared key heads: values get more bits (`LLM_TYPE_70B`)."""


@dataclass(slots=True)
class _Place:
    """Where a tensor stands among its like."""

    index: int
    count: int
    traits: Traits
    has_imatrix: bool

    @property
    def more_bits(self) -> bool:
        """The first eighth, the last one, and every third between them (`use_more_bits`)."""
        eighth = self.count // 8
        return self.index < eighth or self.index >= 7 * self.count // 8 or (self.index - eighth) % 3 == 2

    def among_first(self, share: int) -> bool:
        """Of the first `share`th."""
        return self.index < self.count // share

    @property
    def inner(self) -> bool:
        """Neither in the first nor in the last eighth."""
        return not self.among_first(8) and self.index < 7 * self.count // 8


Rule = Callable[[_Place], "str | None"]


def named(file_type: str) -> str:
    """The file type of that name, as written in capitals.

    >>> named("q4_k_m"), named("Q4_K")
    ('Q4_K_M', 'Q4_K_M')

    Raises:
        UnknownNameError: there is none.
    """
    spelled = file_type.strip().upper().replace("-", "_")
    spelled = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32"}.get(spelled, spelled)
    if spelled not in BASE:
        raise UnknownNameError("GGUF file type", file_type, BASE)
    return spelled


_NUMBERED = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS "
    "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE NVFP4 "
    "Q1_0 Q2_0"
).split()


def numbered(number: object) -> str | None:
    """The file type that a header says by number (`enum llama_ftype`); None where it says none.

    >>> numbered(15), numbered(1039), numbered(4), numbered("Q4_K_M")
    ('Q4_K_M', None, None, 'Q4_K_M')
    """
    if isinstance(number, str):
        return number
    name = _NUMBERED[number] if isinstance(number, int) and 0 <= number < len(_NUMBERED) else "-"
    return None if name == "-" else name


def quantize(
    tensors: Sequence[Tensor], file_type: str, traits: Traits, imatrix: bool = True, release: str = NEWER
) -> list[Tensor]:
    """The tensors in the order and the formats of the quantized file.

    `imatrix` says that there is an importance matrix, without which some file types are made otherwise.
    """
    file_type, base = named(file_type), dtypes.get(BASE[named(file_type)])
    ordered = sorted(tensors, key=lambda t: (block_of(t.name), t.name))
    if base.kind != "block":
        return [t._replace(dtype=base if quantizable(t) else t.dtype) for t in ordered]
    tied = all(t.name != "output.weight" for t in ordered)
    categories = [_category(t.name.partition(".")[2].partition(".")[2] or t.name) for t in ordered]
    values = sum(_is_value(category, release) for category in categories)
    seen = dict.fromkeys(("value", "ffn_down", "ffn_gate", "ffn_up"), 0)
    made = []
    for t, category in zip(ordered, categories, strict=True):
        if not quantizable(t):
            made.append(t)
            continue
        key = "value" if _is_value(category, release) else category
        index = block_of(t.name) if traits.experts > 1 and key != "value" else seen.get(key, 0)
        place = _Place(index, values if key == "value" else traits.layers, traits, imatrix)
        if key in seen:
            seen[key] += 1
        chosen = _format(category, t, file_type, base, place, tied, release)
        made.append(t._replace(dtype=_that_fits(chosen, t.shape[-1])))
    return made


def quantizable(tensor: Tensor) -> bool:
    """A matrix, or the experts' matrices, that the quantizer may touch."""
    matrices = sum(size > 1 for size in tensor.shape[:-1]) > 0
    return matrices and tensor.name.endswith("weight") and not _UNTOUCHED.search(tensor.name)


def block_of(name: str) -> int:
    """The number of the block that a tensor is in; -1 outside of them.

    >>> block_of("blk.31.ffn_up.weight"), block_of("output.weight")
    (31, -1)
    """
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


@cache
def _category(name: str) -> str:
    """Of a tensor, by its name without its block."""
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    if name == "output.weight":
        return "output"
    for kind in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{kind}.weight" in name:
            return kind
    return next((kind for kind in ("ffn_up", "ffn_gate", "ffn_down") if kind in name), "other")


def _is_value(category: str, release: str) -> bool:
    return category in ("attn_v", "attn_qkv", "attn_kv_b") if release == NEWER else category == "attn_v"


def _format(category: str, tensor: Tensor, file_type: str, base: DType, place: _Place, tied: bool, release: str) -> str:
    traits = place.traits
    if category == "output" or (category == "token_embd" and tied):
        if file_type == "MXFP4_MOE" or traits.architecture == "falcon" or tensor.shape[-1] % base.elements_per_block:
            return "q8_0"
        if file_type in _LOW or file_type == "IQ3_XXS":
            return "q5_k"
        return base.name if base.name == "q8_0" else "q6_k"
    if file_type == "MXFP4_MOE":
        return "mxfp4" if len(tensor.shape) > 2 else "q8_0"
    if category == "token_embd":
        return _EMBEDDING.get(file_type, base.name)
    if file_type in _LOW:
        return _low(category, file_type, place, release) or base.name
    if _is_value(category, release):
        return _value(file_type, base.name, place)
    if category in ("attn_k", "attn_q"):
        if category == "attn_k" and traits.experts == 8:
            return "q8_0"
        return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(file_type, base.name)
    rules = _FALCON if traits.architecture == "falcon" and category in _FALCON else _RULES
    rule = rules.get(category, {}).get(file_type)
    return (rule(place) if rule else None) or base.name


def _that_fits(name: str, columns: int) -> DType:
    chosen = dtypes.get(name)
    if columns % chosen.elements_per_block:
        if name not in _FALLBACK and chosen.elements_per_block > 32:
            raise NotModelledError(f"rows of {columns} elements in {name}", hint="llama.cpp refuses them too.")
        chosen = dtypes.get(_FALLBACK.get(name, name))
    return dtypes.FLOAT16 if columns % chosen.elements_per_block else chosen


_EMBEDDING = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "q2_k"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "iq3_s"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "q4_k"),
}


def _low(category: str, file_type: str, place: _Place, release: str) -> str | None:
    """File types below three bits."""
    traits, larger = place.traits, file_type in ("IQ2_S", "IQ2_M")
    if _is_value(category, release):
        shared = traits.heads_per_key >= 4 or traits.experts >= 4
        return "q4_k" if shared else "iq3_s" if larger else "q2_k"
    if category == "attn_k" and traits.experts == 8:
        return "q4_k"
    if category == "ffn_down" and place.among_first(8):
        return "iq3_s" if larger else "q2_k"
    if category == "attn_output":
        if traits.experts == 8:
            return "q5_k"
        return "iq3_s" if larger else "iq2_xxs" if file_type in ("IQ1_S", "IQ1_M") else None
    return None


def _value(file_type: str, base: str, place: _Place) -> str:
    rule = _VALUE.get(file_type)
    chosen = (rule(place) if rule else None) or base
    if place.traits.is_70b and chosen in ("q3_k", "q4_k"):
        chosen = "q5_k"
    return "q8_0" if place.traits.experts == 8 else chosen


def _shared(many: str, few: str | None = None) -> Rule:
    return lambda at: many if at.traits.heads_per_key >= 4 else few


def _if_first(share: int, name: str) -> Rule:
    return lambda at: name if at.among_first(share) else None


def _if_more_bits(at: _Place) -> str | None:
    return "q6_k" if at.more_bits else None


def _always(name: str) -> Rule:
    return lambda _: name


_VALUE: dict[str, Rule] = {
    "Q2_K": _shared("q4_k", "q3_k"),
    "Q2_K_S": _shared("q4_k"),
    "IQ3_XXS": lambda at: _shared("q4_k", "iq3_xxs" if at.has_imatrix else "iq3_s")(at),
    **dict.fromkeys(("IQ3_XS", "IQ3_S"), _shared("q4_k")),
    "IQ3_M": _always("q4_k"),
    "Q3_K_M": lambda at: "q5_k" if at.index < 2 else "q4_k",
    "Q3_K_L": _always("q5_k"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), _shared("q5_k")),
    **dict.fromkeys(("Q4_K_M", "Q5_K_M"), _if_more_bits),
    "Q4_K_S": lambda at: "q5_k" if at.index < 4 else None,
}
_EIGHT_EXPERTS = "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS".split()


def _output(few: str | None, eight: bool) -> Rule:
    return lambda at: ("q5_k" if eight else None) if at.traits.experts == 8 else few


def _without_matrix(rule: Rule) -> Rule:
    return lambda at: None if at.has_imatrix else rule(at)


def _with_matrix(rule: Rule) -> Rule:
    return lambda at: rule(at) if at.has_imatrix else None


_OUTPUT = {"Q2_K": "q3_k", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k", "IQ3_M": "q4_k"}
_RULES: Mapping[str, Mapping[str, Rule]] = {
    "ffn_down": {
        "Q2_K": _always("q3_k"),
        "Q2_K_S": _if_first(8, "q4_k"),
        "IQ3_XXS": _without_matrix(lambda at: "q4_k" if at.among_first(8) else "q3_k"),
        "Q3_K_M": lambda at: "q5_k" if at.among_first(16) else "q4_k",
        "IQ3_M": lambda at: "q4_k" if at.among_first(8) or (at.traits.experts == 8 and at.more_bits) else None,
        "Q3_K_L": _always("q5_k"),
        **dict.fromkeys(("Q4_K_M", "Q5_K_M"), _if_more_bits),
        **dict.fromkeys(("IQ4_NL", "IQ4_XS"), _without_matrix(_if_first(8, "q5_k"))),
        "Q4_K_S": _if_first(8, "q5_k"),
        "Q4_0": _with_matrix(_if_first(8, "q4_1")),
        "Q5_0": _with_matrix(_if_first(8, "q5_1")),
    },
    "attn_output": {name: _output(_OUTPUT.get(name), name in _EIGHT_EXPERTS) for name in {*_OUTPUT, *_EIGHT_EXPERTS}},
    "attn_qkv": {
        **dict.fromkeys(("Q3_K_M", "Q3_K_L", "IQ3_M"), _always("q4_k")),
        "Q4_K_M": _always("q5_k"),
        "Q5_K_M": _always("q6_k"),
    },
    **{kind: {"IQ3_XS": lambda at: "iq3_xxs" if at.inner else None} for kind in ("ffn_gate", "ffn_up")},
}
"""By kind of matrix and file type: the format, where it is not that of most."""
_FALCON: Mapping[str, Mapping[str, Rule]] = {
    "ffn_down": {
        **_RULES["ffn_down"],
        "Q3_K_M": lambda at: "q5_k" if at.among_first(16) else "q4_k" if at.more_bits else "q3_k",
        "Q3_K_L": _always("q4_k"),
        "Q4_K_M": lambda at: "q6_k" if at.among_first(16) else "q5_k" if at.more_bits else "q4_k",
        "Q4_K_S": lambda _: None,
    },
    "attn_output": {"Q3_K_L": _always("q4_k")},
}
