"""What every report begins with, so that its number can be had again: version, schema, model and revision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh import __version__

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.sources.source import Source


def header(kind: str, source: Source | None = None, dtype: DType | None = None) -> dict[str, Any]:
    """The first keys of a JSON answer. `kind` names its schema (`docs/schema/KIND.json`)."""
    found: dict[str, Any] = {"schema": f"weigh/{kind}/1", "version": __version__}
    if source is not None:
        found["model"] = {
            "name": source.name,
            "model_type": source.config.get("model_type"),
            "revision": source.revision,
            "origin": source.origin,
            "dtype": dtype.name if dtype is not None else None,
        }
    return found
