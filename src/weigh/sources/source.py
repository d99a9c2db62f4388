"""The plain data that every source returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.sources.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Source:
    """What is known of a model before it is built."""

    name: str
    """What to call it: the catalogue's name, or the file's."""
    config: Mapping[str, Any]
    """The keys of its `config.json`."""
    origin: str
    """Where the config was read, in words or as an address."""
    where: str = "config"
    """What errors name: the file, or the model."""
    bundled_revision: str | None = None
    """The recorded revision of a bundled config; other revisions are computed."""
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Name and shape of every parameter, where the source has the model itself."""
    stored_dtype: str | None = None
    """The dtype of the parameters, where the source has the model itself."""
    checkpoint: Checkpoint | None = None
    """The header of its weights, where the source has them; what it says wins over what the config implies."""
    adapter: Mapping[str, Any] | None = None
    """The `adapter_config.json` of a PEFT adapter, whose base model this is."""
    adapter_checkpoint: Checkpoint | None = None
    """The header of the adapter's own weights."""

    @property
    def is_bare(self) -> bool:
        """Whether there is a checkpoint and nothing that says of what model."""
        return not self.config and self.checkpoint is not None

    @property
    def dtype(self) -> str | None:
        """The dtype in which the model is published or held, as it spells it; None where nothing says."""
        inner = self.config.get("text_config")  # some multimodal configs leave it to their language model's
        nested = inner if isinstance(inner, dict) else {}
        found = self.stored_dtype or next(
            (c[key] for c in (self.config, nested) for key in ("dtype", "torch_dtype") if c.get(key)), None
        )
        if found is None and self.checkpoint is not None:
            found = self.checkpoint.float_dtype
        return None if found is None else str(found)

    @property
    def revision(self) -> str:
        """What the numbers depend on: a hash of the config, its keys in order.

        >>> Source("tiny", {"model_type": "gpt2", "n_layer": 1}, "a test").revision
        'sha256:735a3abd8f05da62'
        """
        if self.bundled_revision is not None:
            return self.bundled_revision
        import hashlib
        import json

        text = json.dumps(dict(self.config), sort_keys=True, separators=(",", ":"), default=str)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __repr__(self) -> str:
        return f"<{self.name}: {self.config.get('model_type')}, {self.revision}>"

    def __str__(self) -> str:
        keys = "\n".join(f"  {key}: {value}" for key, value in self.config.items())
        return f"{self.name} ({self.origin})\n{keys}"
