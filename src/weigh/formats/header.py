"""What a checkpoint's header says, beside what the config implies: the header wins, and every difference is named."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.formats.base import Stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from weigh.dtypes import DType
    from weigh.formats.base import Format
    from weigh.sources.checkpoint import Checkpoint

BUFFERS = (
    ".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
    "embeddings.position_ids", "embeddings.token_type_ids", "rope_freqs.weight",
)  # fmt: skip
"""How the names of tensors end that models make for themselves when they are loaded (`_keys_to_ignore_on_load`)."""
SHOWN = 4
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


def stored_tensors(
    checkpoint: Checkpoint, form: Format | None, buffers: frozenset[str] = frozenset()
) -> tuple[tuple[Stored, ...], frozenset[str]]:
    """Every tensor of a checkpoint, with the number of parameters that it stands for; and the names of buffers.

    Without those that lie in another one's bytes (tied weights in PyTorch's files). `buffers` are names, with * for
    numbers, of what the model has besides its parameters.
    """
    spelled = {name: dtypes.get(name) for name in checkpoint.bytes_by_dtype()}
    attributes = tuple({f".{name.rpartition('.')[2]}" for name in buffers})
    found, beside = [], set()
    for t in checkpoint.tensors.values():
        if not t.num_bytes and all(t.shape):
            continue
        name = t.name
        if name.endswith(BUFFERS) or (name.endswith(attributes) and pattern(name) in buffers):
            stands_for: int | None = 0
            beside.add(name)
        else:
            stands_for = None if form is None else form.parameters_in(t)
        found.append(Stored(name, t.shape, spelled[t.dtype], t.num_elements if stands_for is None else stands_for))
    return tuple(found), frozenset(beside)


def grouped(tensors: Iterable[Stored]) -> tuple[Stored, ...]:
    """Those of one shape, dtype and meaning together: a checkpoint has tens of thousands of tensors of a few kinds.

    >>> from weigh.dtypes import BFLOAT16
    >>> grouped([Stored("a", (2,), BFLOAT16, 2), Stored("b", (2,), BFLOAT16, 2)])
    (Stored(name='a', shape=(2,), dtype=<DType bf16>, parameters=2, count=2),)
    """
    names: dict[tuple[tuple[int, ...], DType, int], str] = {}
    counts: Counter[tuple[tuple[int, ...], DType, int]] = Counter()
    for tensor in tensors:
        key = (tensor.shape, tensor.dtype, tensor.parameters)
        names.setdefault(key, tensor.name)
        counts[key] += tensor.count
    return tuple(Stored(name, *key, counts[key]) for key, name in names.items())


def differences(
    stored: Iterable[Stored],
    expected: Mapping[str, int],
    tied: Iterable[str],
    layers: int,
    beside: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """How a checkpoint differs from what the config implies, a sentence each.

    `expected` has the parameters by name, `tied` the second names of shared ones, `beside` those of buffers. Names may
    differ between files and models (fused experts, wrappers), so counts are compared layer by layer, and names only
    where counts differ.
    """
    second_names = set(tied)
    buffers: list[Stored] = []
    following: list[Stored] = []
    copies: list[Stored] = []
    own: list[tuple[int | None, Stored]] = []
    for tensor in stored:
        if tensor.name in beside:
            buffers.append(tensor)
        if not tensor.parameters:
            continue
        number = _layer(tensor.name)
        if (number is not None and number >= layers) or ".mtp." in tensor.name or tensor.name.startswith("mtp."):
            following.append(tensor)
        elif tensor.name in second_names:
            copies.append(tensor)
        else:
            own.append((number, tensor))
    found = []
    if buffers:
        elements = sum(t.elements for t in buffers)
        found.append(f"stores {len(buffers)} buffers ({elements:,} elements) that are no parameters")
    if following:
        count = sum(t.parameters for t in following)
        found.append(f"stores {len(following)} tensors of multi-token prediction ({count:,} parameters)")
    again = (f"stores {t.name} again ({t.parameters:,} parameters), which is tied" for t in copies)
    return (*found, *again, *_by_layer(own, expected))


def _layer(name: str) -> int | None:
    found = _NUMBER.search(name)
    return None if found is None else int(found[0])


def _by_layer(stored: Iterable[tuple[int | None, Stored]], expected: Mapping[str, int]) -> list[str]:
    """Layers whose parameters are more or fewer in the file than the config implies; those alike together."""
    here: Counter[int | None] = Counter()
    for number, tensor in stored:
        here[number] += tensor.parameters * tensor.count
    there: Counter[int | None] = Counter()
    for name, count in expected.items():
        there[_layer(name)] += count
    wrong = {number: here[number] - there[number] for number in {*here, *there} if here[number] != there[number]}
    if not wrong:
        return []
    names: dict[int | None, set[str]] = {}
    for number, tensor in stored:
        if number in wrong:
            names.setdefault(number, set()).add(tensor.name)
    alike: dict[tuple[int, str], list[int | None]] = {}
    for number in sorted(wrong, key=lambda n: -1 if n is None else n):
        known = {name for name in expected if _layer(name) == number}
        alike.setdefault((wrong[number], _names(known, names.get(number, set()))), []).append(number)
    found = [_sentence(more, said, numbers) for (more, said), numbers in alike.items()]
    return found if len(found) <= SHOWN else [*found[:SHOWN], f"differs otherwise in {len(found) - SHOWN} more ways"]


def _sentence(more: int, said: str, numbers: list[int | None]) -> str:
    first = "outside of the layers" if numbers[0] is None else f"in layer {numbers[0]}"
    place = first if len(numbers) == 1 else f"in each of {len(numbers)} layers"
    return f"has {abs(more):,} parameters {'more' if more > 0 else 'fewer'} {place} than the config implies{said}"


def _names(known: set[str], stored: set[str]) -> str:
    """Which tensors are missing and unexpected, where the names of both agree at all; experts may be fused or not."""
    if not known & stored:
        return ""
    modules = {name.rpartition(".")[0] for name in stored}
    missing = sorted(
        {pattern(n) for n in known - stored if n.rpartition(".")[0] not in modules and ".experts" not in n}
    )
    modules = {name.rpartition(".")[0] for name in known}
    unexpected = sorted({pattern(n) for n in stored if n.rpartition(".")[0] not in modules and ".experts." not in n})
    said = [f"{word} {', '.join(n[:SHOWN])}" for word, n in (("missing", missing), ("unexpected", unexpected)) if n]
    return f" ({'; '.join(said)})" if said else ""


def pattern(name: str) -> str:
    """A name without the numbers of its blocks."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
