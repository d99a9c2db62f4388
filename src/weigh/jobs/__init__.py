"""Files that describe a training: recipes of our own, and what other programs are configured with. One reader each.

A reader turns a file into a `Job`: the model, the program that trains it, and settings in the words of
`weigh.recipes.training.Training`. Every key of the file has one of four fates: it was used, it is known not to matter
to memory, it is unknown (the report says so), or it matters and is not modelled, which is an error. Nothing is run
here and no setting is checked: that is the business of who takes the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from weigh.errors import InputError, UnknownNameError
from weigh.jobs.documents import Document, load
from weigh.jobs.job import Job

__all__ = ["FORMATS", "Job", "describes_training", "read", "together"]

SUFFIXES = (".toml", ".yaml", ".yml", ".json", ".sh")
"""Endings of the names of files that may describe a training."""

FORMATS = {
    "axolotl": "weigh.jobs.axolotl",
    "llama-factory": "weigh.jobs.llama_factory",
    "torchtune": "weigh.jobs.torchtune",
    "torchtitan": "weigh.jobs.torchtitan",
    "accelerate": "weigh.jobs.accelerate",
    "deepspeed": "weigh.jobs.deepspeed",
    "megatron": "weigh.jobs.megatron",
    "trainer": "weigh.jobs.trainer",
    "weigh": "weigh.jobs.recipe",
}
"""Name -> its reader, with `recognises(document)` and `read(document, ignored)`, in the order of asking."""


def read(path: str, form: str | None = None, ignored: Iterable[str] = ()) -> list[Job]:
    """What a file says, and the files that it names in its turn.

    `form` is one of `FORMATS`; None is what the file's keys look like. Keys in `ignored` are passed over.

    Raises:
        InputError: it cannot be read, or nothing recognises it.
        NotModelledError: one of its keys matters to memory, and is not modelled.
        UnknownNameError: there is no such format.
    """
    document = load(path)
    name = form or recognise(document)
    if name not in FORMATS:
        raise UnknownNameError("format of job files", name, FORMATS)
    reader: Callable[[Document, frozenset[str]], Job] = import_module(FORMATS[name]).read
    job = reader(document, frozenset(ignored))
    return [job, *(inner for other in job.files for inner in read(document.beside(other), None, ignored))]


def recognise(document: Document) -> str:
    """The format whose keys the document has.

    Raises:
        InputError: none has such keys.
    """
    for name, module in FORMATS.items():
        if import_module(module).recognises(document):
            return name
    hint = f"Name the format with --from-format: {', '.join(FORMATS)}."
    raise InputError("is no file that describes a training, as far as its keys say", where=document.where, hint=hint)


def describes_training(path: str) -> bool:
    """Whether it is a file that describes a training, as far as its name and its keys say.

    Raises:
        InputError: it looks like one, and cannot be read.
    """
    if not Path(path).is_file() or Path(path).suffix not in SUFFIXES:
        return False
    if Path(path).suffix != ".json":
        return True
    try:
        return bool(recognise(load(path)))
    except InputError:  # a model's config, say: whoever reads models finds the words for it
        return False


def together(jobs: Iterable[Job]) -> Job:
    """Several files of one training as one; what one of them leaves out another says.

    Raises:
        UsageError: two of them say different things.
    """
    first, *rest = jobs
    for job in rest:
        first = first.beside(job)
    return first
