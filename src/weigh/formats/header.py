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
    from weigh.sources.checkpoint import Checkpoint, StoredTensor

BUFFERS = (
    ".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
    ".attention.rotary_emb.inv_freq", "embeddings.position_ids", "embeddings.token_type_ids",
)  # fmt: skip
"""How the names of tensors end that models make for themselves when they are loaded (`_keys_to_ignore_on_load`)."""
SHOWN = 4
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


def stored_tensors(checkpoint: Checkpoint, form: Format | None) -> tuple[Stored, ...]:
    """Every tensor of a checkpoint, with the number of parameters that it stands for.

    Without those that lie in another one's bytes (tied weights in PyTorch's files).
    """
    spelled = {name: dtypes.get(name) for name in checkpoint.bytes_by_dtype()}
    return tuple(
        Stored(t.name, t.shape, spelled[t.dtype], parameters_in(t, form))
        for t in checkpoint.tensors.values()
        if t.num_bytes or not all(t.shape)
    )


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


def parameters_in(tensor: StoredTensor, form: Format | None) -> int:
    """How many parameters a stored tensor stands for; a buffer's elements are none."""
    if tensor.name.endswith(BUFFERS):
        return 0
    found = None if form is None else form.parameters_in(tensor)
    return tensor.num_elements if found is None else found


def differences(
    stored: Iterable[Stored], expected: Mapping[str, int], tied: Iterable[str], layers: int
) -> tuple[str, ...]:
    """How a checkpoint differs from what the config implies, a sentence each.

    `expected` has the parameters by name, `tied` the second names of shared ones. Names may differ between files and
    models (fused experts, wrappers), so counts are compared layer by layer, and names only where counts differ.
    """
    kinds: dict[str, list[Stored]] = {"buffer": [], "next": [], "tied": [], "own": []}
    second_names = set(tied)
    for tensor in stored:
        kinds[_kind(tensor, second_names, layers)].append(tensor)
    found = []
    if buffers := kinds["buffer"]:
        found.append(
            f"stores {len(buffers)} buffers ({sum(t.elements for t in buffers):,} elements) that are no parameters"
        )
    if following := kinds["next"]:
        count = sum(t.parameters for t in following)
        found.append(f"stores {len(following)} tensors of multi-token prediction ({count:,} parameters)")
    copies = (f"stores {t.name} again ({t.parameters:,} parameters), which is tied" for t in kinds["tied"])
    return (*found, *copies, *_by_layer(kinds["own"], expected))


def _kind(tensor: Stored, tied: set[str], layers: int) -> str:
    if tensor.name.endswith(BUFFERS):
        return "buffer"
    number = _layer(tensor.name)
    if (number is not None and number >= layers) or "mtp" in tensor.name.split("."):
        return "next"
    return "tied" if tensor.name in tied else "own"


def _layer(name: str) -> int | None:
    found = _NUMBER.search(name)
    return None if found is None else int(found[0])


def _by_layer(stored: Iterable[Stored], expected: Mapping[str, int]) -> list[str]:
    """Layers whose parameters are more or fewer in the file than the config implies."""
    here: Counter[int | None] = Counter()
    names: dict[int | None, set[str]] = {}
    for tensor in stored:
        number = _layer(tensor.name)
        here[number] += tensor.parameters * tensor.count
        names.setdefault(number, set()).add(tensor.name)
    there: Counter[int | None] = Counter()
    for name, count in expected.items():
        there[_layer(name)] += count
    found = []
    for number in sorted({*here, *there}, key=lambda n: -1 if n is None else n):
        more = here[number] - there[number]
        if more:
            place = "outside of the layers" if number is None else f"in layer {number}"
            known = {name for name in expected if _layer(name) == number}
            said = _names(known, names.get(number, set()))
            word = "more" if more > 0 else "fewer"
            found.append(f"has {abs(more):,} parameters {word} {place} than the config implies{said}")
    if len(found) <= SHOWN:
        return found
    return [*found[:SHOWN], f"differs likewise in {len(found) - SHOWN} other layers"]


def _names(known: set[str], stored: set[str]) -> str:
    """Which tensors are missing and unexpected, where the names of both agree at all."""
    if not known & stored:
        return ""
    missing = sorted(known - stored - {f"{name.rpartition('.')[0]}.weight" for name in stored})
    modules = {name.rpartition(".")[0] for name in known}
    unexpected = sorted(name for name in stored - known if name.rpartition(".")[0] not in modules)
    said = [f"{word} {', '.join(n[:SHOWN])}" for word, n in (("missing", missing), ("unexpected", unexpected)) if n]
    return f" ({'; '.join(said)})" if said else ""
