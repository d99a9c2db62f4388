"""The recorded architectures of transformers 5.23, and how weigh builds them."""

import gzip
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from weigh import dtypes, models
from weigh.errors import NotModelledError, UnknownNameError, WeighError
from weigh.ghost.state import recording
from weigh.models.common import CausalModel

DATA = Path(__file__).parents[1] / "data/architectures"


@dataclass(frozen=True)
class Architecture:
    """One class, with its default config."""

    name: str
    model_type: str
    config: dict[str, Any]
    parameters: int

    def build(self) -> CausalModel:
        """The ghost model. Raises `WeighError` where weigh does not know it."""
        with recording():
            return models.build(self.config, dtypes.FLOAT32)

    def weigh(self) -> dict[str, tuple[int, ...]] | WeighError:
        """Name and shape of every parameter that weigh builds, tied ones once; or why it does not."""
        try:
            model = self.build()
        except (NotModelledError, UnknownNameError) as refused:
            return refused
        return {name: p.tensor.shape for p in model.parameters() for name in p.names}

    @staticmethod
    def count(shape: tuple[int, ...]) -> int:
        """Numbers in a tensor."""
        return math.prod(shape)


def _read() -> list[Architecture]:
    with gzip.open(DATA / "architectures.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = []
    for row in rows:
        model_type = row["config"].get("model_type") or row["model_type"]
        config = row["config"] | {"model_type": model_type, "architectures": [row["class"]]}
        found.append(Architecture(row["class"], model_type, config, row["parameters"]))
    return found


ARCHITECTURES = _read()


@cache
def _all_tensors() -> dict[str, Any]:
    with gzip.open(DATA / "tensors.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def tensors(name: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that transformers builds, tied ones once."""
    return {tensor: tuple(shape) for tensor, shape, _ in _all_tensors()[name]["params"]}
