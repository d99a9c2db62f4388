"""A tensor's sizes in the words of its config: keys, their products and their sums, found by value.

No family is known here. An expression is accepted only if its value is the size; where several have it, the one wins
whose keys have to do with the tensor's name. What nothing explains stays a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, permutations
from typing import Any, NamedTuple

_IGNORED = (
    "token", "layers", "n_layer", "window", "interval", "period", "offset", "per_tok", "topk", "top_k", "factor",
    "n_group", "index", "nextn", "version", "num_labels", "chunk_size", "theta", "first_k", "distance", "tp",
)  # fmt: skip
"""Parts of keys that size no tensor."""
_ABOUT = {
    "expert": ("expert", "router", "gate.", "moe"),
    "moe_": ("expert", "router", "gate.", "moe", "mlp", "feed_forward", "mixer"),
    "head": ("attn", "attention", "mixer", "q_proj", "k_proj", "v_proj", "norm", "sinks", "linear_"),
    "rank": ("_a_", "_b_", "lora", "dt_", "x_proj", "attn"),
    "qk_": ("attn", "attention"),
    "v_head": ("attn", "attention"),
    "d_kv": ("attention",),
    "buckets": ("relative",),
    "vocab": ("embed", "wte", "head", "score", "output", "shared", "word"),
    "position": ("position", "wpe"),
    "n_ctx": ("position", "wpe"),
    "state": ("mamba", "mixer", "ssm", "a_log", "x_proj"),
    "conv": ("conv",),
    "expand": ("mamba", "mixer", "ssm"),
    "groups": ("mamba", "mixer", "conv"),
    "intermediate": ("mlp", "feed_forward", "expert", "fc", "w1", "w2", "w3", "mixer", "moe"),
    "inner": ("mlp", "c_fc", "c_proj"),
    "ffn": ("mlp", "fc", "ffn", "feed"),
    "d_ff": ("wi", "wo", "densereludense"),
}
"""Parts of keys, and what is in the names of the tensors that they have to do with."""
_PREFERRED = (
    ("k_proj", 0, "key_value_heads"), ("v_proj", 0, "key_value_heads"), ("q_proj", 0, "attention_heads"),
    ("kv_b_proj", 0, "qk_nope"), ("kv_b_proj", 0, "v_head"), ("kv_a_proj", 0, "kv_lora_rank"),
    ("o_proj", 1, "v_head"),
    ("o_proj", 1, "attention_heads"), ("selfattention.q", 0, "num_heads"), ("selfattention.k", 0, "num_heads"),
    ("selfattention.v", 0, "num_heads"), ("selfattention.o", 1, "num_heads"), ("encdecattention.q", 0, "num_heads"),
    ("encdecattention.k", 0, "num_heads"), ("encdecattention.v", 0, "num_heads"),
    ("encdecattention.o", 1, "num_heads"), ("down_proj", 1, "intermediate"), ("gate_up_proj", 2, "intermediate"),
    ("down_proj_bias", 1, "hidden"),
    ("sinks", 0, "attention_heads"), ("relative_attention_bias", 1, "num_heads"),
)  # fmt: skip
"""Whose size of that number is these keys', whatever else has the same value."""
_COUNTS = ("heads", "n_head", "expand", "experts", "groups")
_ALIEN = 6.0


class _Term(NamedTuple):
    cost: float
    words: str
    value: int


def sizes_in_words(shape: tuple[int, ...], name: str, config: Mapping[str, Any]) -> str:
    """The shape of a tensor, each size by its keys.

    >>> config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    >>> sizes_in_words((32, 64), "model.layers.0.self_attn.k_proj.weight", config)
    'num_key_value_heads * head_dim x hidden_size'
    >>> sizes_in_words((7,), "model.norm.weight", config)
    '7'
    """
    keys = list(_keys(config))
    said = []
    for number, size in enumerate(shape):
        terms = [_Term(1 + _strangeness(key, name.lower(), number), key, value) for key, value in keys]
        said.append(_words(size, terms))
    return " x ".join(said)


def _keys(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a config and of the configs inside, the first of a name."""
    found: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            found = {**dict(_keys(value)), **found}
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            found.setdefault(key, value)
    heads = found.get("num_attention_heads") or found.get("n_head")
    width = found.get("hidden_size") or found.get("n_embd")
    if heads and width and "head_dim" not in found and width % heads == 0:
        found["head_dim"] = width // heads
    return ((key, value) for key, value in found.items() if not any(part in key for part in _IGNORED))


def _strangeness(key: str, name: str, number: int) -> float:
    """How little a key has to do with one size of a tensor."""
    cost = -0.3 if key in ("hidden_size", "n_embd", "d_model") else 0.0
    for part, words in _ABOUT.items():
        if part in key:
            cost += -0.25 if any(word in name for word in words) else _ALIEN
    return cost - sum(word in name and number == which and part in key for word, which, part in _PREFERRED)


def _words(size: int, terms: list[_Term]) -> str:
    if size == 1:
        return "1"
    found = min(_expressions(size, terms), default=None)
    return str(size) if found is None else found.words


def _expressions(size: int, terms: list[_Term]) -> Iterator[_Term]:
    """Every expression of that value, with its cost."""
    terms = [term for term in terms if term.cost < _ALIEN and term.value <= size]
    for term in terms:
        if term.value == size:
            yield term
        elif size % term.value == 0:
            yield from _multiples(size, term, terms)
    for a, b in permutations([term for term in terms if not _counts(term)], 2):
        for times, words in ((1, b.words), (2, f"2 {b.words}")):
            if a.value + times * b.value == size:
                yield _Term(a.cost + b.cost + times + 0.5, f"{a.words} + {words}", size)


def _multiples(size: int, term: _Term, terms: list[_Term]) -> Iterator[_Term]:
    """The size as a number of things of the term's width: heads, experts, groups of it."""
    rest = size // term.value
    if rest <= 8:
        odd = 0.0 if rest in (2, 3, 4, 8) else 2.0  # five times a size is more often a sum that happens to be so
        yield _Term(term.cost + 1.6 + rest / 10 + odd, f"{rest} {term.words}", size)
    others = [other for other in terms if _counts(other) is not _counts(term)]
    if not _counts(term):
        for count in others:
            if count.value == rest:
                yield _Term(term.cost + count.cost - 0.5, f"{count.words} * {term.words}", size)
            if 2 * count.value == rest and "expand" in count.words:
                yield _Term(term.cost + count.cost, f"2 {count.words} * {term.words}", size)
        for a, b in permutations(others, 2):
            if a.value + 2 * b.value == rest:
                yield _Term(term.cost + a.cost + b.cost + 0.8, f"({a.words} + 2 {b.words}) * {term.words}", size)
    else:
        for a, b in combinations(others, 2):
            if a.value + b.value == rest:
                yield _Term(term.cost + a.cost + b.cost + 0.5, f"{term.words} * ({a.words} + {b.words})", size)


def _counts(term: _Term) -> bool:
    return any(part in term.words for part in _COUNTS) and "dim" not in term.words
