"""What the weights take as they are stored: in which formats, how many bytes, how many bits a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh import dtypes, formats
from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.formats import gguf
from weigh.formats.header import differences, grouped, stored_tensors
from weigh.formats.prediction import predict
from weigh.ghost import nn
from weigh.records import dataclass
from weigh.report.assumption import EXACT, Assumption
from weigh.report.defaults import as_if_not_quantized
from weigh.report.parameters import ParametersReport, TensorRow
from weigh.report.parts import OTHER, layer, pattern
from weigh.report.text import share, table, wrap
from weigh.trace.events import BUFFER
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.dtypes import DType
    from weigh.formats.base import Format, Stored
    from weigh.ghost.nn import Module
    from weigh.models.common import CausalModel
    from weigh.sources.checkpoint import Checkpoint
    from weigh.sources.source import Source


_WHERE = {
    "header": "as the header says",
    "quantization_config": "as the quantization_config implies",
    "quantizer": "as llama.cpp's quantizer chooses",
}


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeights:
    """The tensors of a checkpoint."""

    tensors: tuple[Stored, ...]
    """Alike ones together."""
    title: str | None
    """The method of quantization, in a few words; None without one."""
    basis: str
    """Where they are from: "header", "quantization_config", or "quantizer"."""
    differences: tuple[str, ...] = ()
    """How the header differs from what the config implies."""

    @classmethod
    def predicted(cls, model: Module, form: Format, dtype: DType) -> StoredWeights:
        """As a method stores the weights of a model."""
        return cls(predict(model, form, dtype), form.title, "quantization_config")

    @classmethod
    def read(
        cls,
        checkpoint: Checkpoint,
        form: Format | None,
        expected: Mapping[str, int],
        tied: tuple[str, ...],
        layers: int,
        buffers: frozenset[str] = frozenset(),
    ) -> StoredWeights:
        """As a header says, beside the parameters that the config implies, by name."""
        tensors, beside = stored_tensors(checkpoint, form, buffers)
        title = None if form is None else form.title
        return cls(grouped(tensors), title, "header", differences(tensors, expected, tied, layers, beside))

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(t.num_bytes * t.count for t in self.tensors)

    @property
    def parameters(self) -> int:
        """How many parameters they stand for."""
        return sum(t.parameters * t.count for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bytes for each parameter, scales and what stays as it is included."""
        return 8 * self.num_bytes / self.parameters

    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """Bytes, and the parameters that they stand for, by the format of the tensors; the largest first."""
        found: dict[str, tuple[int, int]] = {}
        for t in self.tensors:
            num_bytes, parameters = found.get(t.dtype.name, (0, 0))
            found[t.dtype.name] = num_bytes + t.num_bytes * t.count, parameters + t.parameters * t.count
        return dict(sorted(found.items(), key=lambda item: -item[1][0]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the `stored` of `docs/schema/params.json`."""
        return {
            "from": self.basis,
            "method": self.title,
            "bytes": self.num_bytes,
            "parameters": self.parameters,
            "tensors": sum(t.count for t in self.tensors),
            "bits_per_weight": self.bits_per_weight,
            "basis": EXACT,
            "by_dtype": {
                name: {"bytes": num_bytes, "parameters": parameters}
                for name, (num_bytes, parameters) in self.by_dtype().items()
            },
            "differences": list(self.differences),
        }

    def lines(self, width: int) -> list[str]:
        """For a terminal."""
        where = _WHERE[self.basis]
        method = "" if self.title is None else f"{self.title}, "
        bits = f"{self.bits_per_weight:.3f} bits a weight"
        lines = wrap(
            f"Stored: {format_bytes(self.num_bytes)} ({self.num_bytes:,} bytes), {bits}; {method}{where}", width
        )
        rows = [
            (name, format_bytes(num_bytes), share(num_bytes, self.num_bytes), f"{parameters:,} parameters")
            for name, (num_bytes, parameters) in self.by_dtype().items()
        ]
        lines += table(rows, "<>>>")
        for difference in self.differences:
            lines += wrap(f"the checkpoint {difference}", width, "  ")
        return lines


def as_stored(source: Source, model: CausalModel, dtype: DType) -> tuple[StoredWeights | None, list[Assumption]]:
    """The weights as a header says, or as a method of quantization stores them; None where neither is there."""
    try:
        form = formats.read(source.config, source.where)
    except NotModelledError as error:
        if source.checkpoint is None:
            return None, [as_if_not_quantized(str(error))]
        raise
    if source.checkpoint is not None:
        return _read(source.checkpoint, form, model), []
    return None if form is None else StoredWeights.predicted(model, form, dtype), []


def as_gguf(source: Source, model: CausalModel, file_type: str) -> tuple[StoredWeights, list[Assumption]]:
    """The weights as a GGUF file of that type has them.

    Raises:
        NotModelledError: llama.cpp's names for the family are not known.
        UsageError: there is no such file type.
    """
    try:
        made = gguf.predict(source.config, model, file_type)
    except UnknownNameError as error:
        raise UsageError(error.what, where="gguf", hint=error.hint) from None
    tensors, _ = stored_tensors(made, None)
    title = f"GGUF {made.metadata['general.file_type']}"
    matrix = Assumption("an importance matrix", "most published files were made with one", "formats of a few tensors")
    header = Assumption("without the file's header", "its tokenizer is not known", "a few MB")
    return StoredWeights(grouped(tensors), title, "quantizer"), [matrix, header]


def _read(checkpoint: Checkpoint, form: Format | None, model: CausalModel) -> StoredWeights:
    parameters = model.parameters()
    expected: dict[str, int] = {name: p.numel for p in parameters for name in p.names}  # type: ignore[misc]
    seen = {id(p.tensor): p.names[0] for p in parameters}
    tied = tuple(
        name
        for module in model.modules()
        for attribute, tensor in module.own_tensors()
        if (name := f"{module.path}.{attribute}") not in expected and id(tensor) in seen
    )
    layers = 1 + max((number for name in expected if (number := layer(name)) is not None), default=-1)
    buffers = frozenset(
        pattern(f"{module.path}.{attribute}")
        for module in model.modules()
        for attribute, tensor in module.own_tensors()
        if tensor.storage.purpose == BUFFER
    )
    return StoredWeights.read(checkpoint, form, expected, tied, layers, buffers)


PARTS = (
    (nn.EMBEDDING, ("embed", "wte", "wpe", "token_embd", "position_embd")),
    (nn.HEAD, ("lm_head", "output.", "score.", "classifier")),
    (nn.NORM, ("norm", "ln_")),
    (nn.ATTENTION, ("attn", "attention")),
    (nn.MIXER, ("mixer", "ssm", "mamba", "short_conv", "shortconv")),
    (nn.MLP, ("mlp", "ffn", "feed_forward", "expert", "moe", "fc1", "fc2")),
)
"""Components, and what the names of their tensors have in them, where nothing else says; the first that fits."""


def header_only(source: Source, dtype: DType | None) -> ParametersReport:
    """The parameters of a checkpoint whose family is not described: what its header says, and nothing more.

    Raises:
        NotModelledError: its method of quantization is not described.
    """
    assert source.checkpoint is not None
    form = formats.read(source.config, source.where)
    tensors, _ = stored_tensors(source.checkpoint, form)
    rows: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for tensor in tensors:
        if tensor.parameters:
            shape = tensor.shape if tensor.elements == tensor.parameters else (tensor.parameters,)
            rows.setdefault((pattern(tensor.name), shape), []).append(tensor.name)
    found = tuple(TensorRow(tuple(names), shape, _component(path)) for (path, shape), names in rows.items())
    kind = source.config.get("model_type")
    taken = Assumption(
        "what the header says is the model",
        "it has no config" if kind is None else f"the family {kind!r} is not described",
        "components are told by the names of tensors; buffers may be counted, tied copies twice",
    )
    stored = StoredWeights(grouped(tensors), None if form is None else form.title, "header")
    chosen = dtype or dtypes.get(next(iter(stored.by_dtype())))
    return ParametersReport(source, chosen, found, (), (taken,), stored)


def _component(path: str) -> str:
    return next((part for part, words in PARTS if any(word in path for word in words)), OTHER)
