"""Cases that count: parameters, and the bytes of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh import dtypes, formats, models
from weigh.formats.prediction import predict
from weigh.ghost.state import recording
from weigh.report.defaults import own_dtype
from weigh.report.parameters import ParametersReport
from weigh.sources.source import Source


def counting_case(row: Mapping[str, Any], config: Mapping[str, Any], where: str) -> dict[str, int]:
    """Every count of a case. What a file holds besides the parameters is known from its header only.

    Raises:
        WeighError: the model cannot be built, or its method of quantization is not described.
    """
    source = Source(str((row.get("model") or {}).get("name")), config, "a case", where)
    with recording():
        model = models.build(config, dtypes.BFLOAT16, where)
    stated = (row.get("weights") or {}).get("dtype")
    dtype = dtypes.get(stated) if stated else own_dtype(source)[0]
    report = ParametersReport.of(source, model, dtype, ())
    found = {"parameters": report.total, "parameters_non_embedding": report.without_embeddings}
    if stated or source.dtype:
        stored = predict(model, formats.read(config, where), dtype)
        found["weights"] = sum(tensor.num_bytes * tensor.count for tensor in stored)
    return found
