"""A folder of a model, wherever it lies: which of its files say what the model is, and what they say.

The config is `config.json`, else Mistral's `params.json`, else what a GGUF file says of itself. The weights are, best
first: safetensors, PyTorch's `.bin`, GGUF; an index before single files. A folder with several checkpoints is an error
that lists them, for nobody can know which is meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import InputError
from weigh.records import replace
from weigh.sources.checkpoint import SUFFIXES
from weigh.sources.shards import counted, one_set, read_index, read_set
from weigh.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from weigh.sources.checkpoint import Checkpoint
    from weigh.sources.opened import Folder

INDEX = ".index.json"
STANDARD = ("model", "pytorch_model")
"""What transformers calls a model's weights."""
_CONFIGS = ("config.json", "params.json")
_NO_MODEL = ("adapter_model", "training_args", "optimizer", "scheduler", "rng_state", "mmproj", "imatrix", "tokenizer")
"""How files begin that hold tensors of something else."""


def read_folder(folder: Folder, tag: str = "", base: Callable[[str], Source] | None = None) -> Source:
    """What the files in a folder say of a model; of an adapter's folder, what `base` says of the model that it names.

    `tag` chooses among GGUF files by a part of their names.

    Raises:
        InputError: there is no model in it, several, or one that contradicts itself.
    """
    names = folder.names()
    if "adapter_config.json" in names and not any(checkpoints(names, suffix) for suffix in SUFFIXES):
        from weigh.sources.adapters import read_adapter

        return read_adapter(folder, base)
    config = next((name for name in _CONFIGS if name in names), None)
    checkpoint = find_weights(folder, names, tag)
    if config is None and (checkpoint is None or checkpoint.format != "gguf"):
        if checkpoint is not None:
            return _bare(folder, checkpoint)
        raise InputError("the folder has no config.json", where=folder.where, hint="Name the file itself.")
    return made(folder, None if tag and checkpoint is not None else config, checkpoint)


def read_file(folder: Folder, name: str) -> Source:
    """What one file of a folder says, with the config that lies beside it.

    Raises:
        InputError: it is no checkpoint, or contradicts itself.
    """
    checkpoint = checkpoint_file(folder, name)
    config = None if checkpoint.format == "gguf" else next((n for n in _CONFIGS if n in folder.names()), None)
    if config is None and checkpoint.format != "gguf":
        return _bare(folder, checkpoint)
    return made(folder, config, checkpoint)


def checkpoint_file(folder: Folder, name: str) -> Checkpoint:
    """The checkpoint of which this is the index, a file, or the only one.

    Raises:
        InputError: it is no checkpoint, or contradicts itself.
    """
    if name.endswith(INDEX):
        return read_index(folder, name, reader(name.removesuffix(INDEX)))
    return read_set(folder, counted(name) or [name], reader(name))


def made(folder: Folder, config: str | None, checkpoint: Checkpoint | None) -> Source:
    """The source of a config's file and a checkpoint; without a config, of what the GGUF file says."""
    if config is None:
        from weigh.sources.gguf_config import config_of

        assert checkpoint is not None
        where = checkpoint.where
        return Source(folder.title, config_of(checkpoint), f"read from {where}", where, checkpoint=checkpoint)
    from weigh.sources.files import read_opened

    return replace(read_opened(folder.open(config), folder.title), checkpoint=checkpoint)


def reader(name: str) -> Callable[[Any], Checkpoint]:
    """What reads a file of this name; GGUF where it has no ending (`weigh.sources.locate`)."""
    if name.endswith(".safetensors"):
        from weigh.sources.safetensors import read_safetensors

        return read_safetensors
    if name.endswith((".bin", ".pt", ".pth")):
        from weigh.sources.pytorch import read_pytorch

        return read_pytorch
    from weigh.sources.gguf import read_gguf

    return read_gguf


def _bare(folder: Folder, checkpoint: Checkpoint) -> Source:
    """A checkpoint that nothing says the architecture of."""
    return Source(folder.title, {}, f"read from {checkpoint.where}", checkpoint.where, checkpoint=checkpoint)


def find_weights(folder: Folder, names: tuple[str, ...], tag: str) -> Checkpoint | None:
    """The checkpoint in a folder; None where there is none."""
    for suffix in (".gguf",) if tag else SUFFIXES:
        index = next((name for name in STANDARD if f"{name}{suffix}{INDEX}" in names and not tag), None)
        if index is not None:
            return read_index(folder, f"{index}{suffix}{INDEX}", reader(suffix))
        found = checkpoints(names, suffix, tag)
        single = [name for name in found if name.removesuffix(suffix) in STANDARD]
        if found:
            hint = f"Name one of them, as in {folder.title}:Q4_K_M." if suffix == ".gguf" else "Name one of them."
            return read_set(folder, single[:1] or one_set(found, folder.where, hint), reader(suffix))
    if tag:
        raise InputError(f"has no GGUF file with {tag!r} in its name", where=folder.where)
    return None


def checkpoints(names: Iterable[str], suffix: str, tag: str = "") -> list[str]:
    """The files that can be the model's weights.

    >>> checkpoints(["model-q4.gguf", "mmproj-f16.gguf"], ".gguf"), checkpoints(["training_args.bin"], ".bin")
    (['model-q4.gguf'], [])
    """
    found = [n for n in names if n.endswith(suffix) and not n.startswith(_NO_MODEL) and tag.lower() in n.lower()]
    if suffix in (".safetensors", ".gguf"):
        return found
    return [name for name in found if name.startswith((*STANDARD, "consolidated"))]
