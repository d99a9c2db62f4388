"""PEFT adapters: a folder with an `adapter_config.json` says how, and on which model.

The source is that model's, with the adapter's settings and tensors beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.errors import InputError
from weigh.records import replace
from weigh.sources.strict_json import read_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.sources.checkpoint import Checkpoint
    from weigh.sources.opened import Folder
    from weigh.sources.source import Source

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def read_adapter(folder: Folder, base: Callable[[str], Source] | None) -> Source:
    """The model that an adapter is for, with the adapter; `base` finds a model by the name that the adapter gives.

    Raises:
        InputError: it names no model, or one that cannot be had.
    """
    file = folder.open("adapter_config.json")
    config = read_object(file)
    name = config.get("base_model_name_or_path")
    where = f"{file.where}: base_model_name_or_path"
    if not isinstance(name, str) or not name:
        raise InputError("names no model", where=where, hint="Add the model that the adapter was trained on.")
    if base is None:
        raise InputError("is an adapter of an adapter", where=folder.where, hint="Name the model itself.")
    try:
        model = base(name)
    except InputError as error:
        raise InputError(f"leads to {name[:200]!r}: {error}", where=where) from None
    return replace(
        model,
        name=f"{folder.title} on {model.name}",
        origin=f"{model.origin}; adapter read from {folder.where}",
        adapter=config,
        adapter_checkpoint=_weights(folder),
    )


def _weights(folder: Folder) -> Checkpoint | None:
    from weigh.sources.folders import reader
    from weigh.sources.shards import read_set

    name = next((name for name in WEIGHTS if name in folder.names()), None)
    return None if name is None else read_set(folder, [name], reader(name))
