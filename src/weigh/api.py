"""The whole story: name a model, say what to do with it, and read what it takes.

>>> import weigh
>>> weigh.params("llama-3-8b").total
8030261248
>>> weigh.train("gpt2", batch=2, dtype="bf16").peak < weigh.train("gpt2", batch=2, dtype="fp32").peak
True

Every function takes the model in any of the forms that `model` accepts, and returns a report that prints well, has
`as_dict()` for JSON, and says what it assumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from weigh import dtypes, models
from weigh.errors import InputError, NotModelledError, UnknownNameError, UsageError
from weigh.recipes import SOFTWARE
from weigh.sources.source import Source

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.hardware import Device
    from weigh.jobs import Job
    from weigh.models.common import CausalModel
    from weigh.recipes.trained import TrainingRun
    from weigh.recipes.training import Training
    from weigh.report.assumption import Assumption
    from weigh.report.compare import Comparison, Side
    from weigh.report.compare_trainings import TrainingsComparison
    from weigh.report.generation import GenerationReport
    from weigh.report.kv import KvReport
    from weigh.report.parameters import ParametersReport
    from weigh.report.parts import Parts
    from weigh.report.serving import ServingReport
    from weigh.report.serving_grid import ServingGrid
    from weigh.report.training import TrainingReport
    from weigh.runtimes import Runtime
    from weigh.runtimes.engine import Launch, Place, Served, ServeJob
    from weigh.runtimes.phases import JobPhase
    from weigh.techniques.adapters.base import Adapter

    R = TypeVar("R")


def model(source: Any) -> Source:
    """What is known of a model: its config, where that was read, and its revision.

    `source` is a bundled name or one of its aliases; `ORG/NAME` on the Hub, with `@REVISION` or `:Q4_K_M`; an
    address; the path of a folder, a `config.json`, a checkpoint (safetensors, GGUF, PyTorch) or its index;
    a config's dict, also as text and in other words (the literature's, Mistral's, Megatron's); a transformers config,
    or a `torch.nn.Module` that has one.

    >>> model("meta-llama/Llama-3.2-1B")
    <llama-3.2-1b: llama, sha256:3f219e19ad935d2a>

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    return source if isinstance(source, Source) else _checked(unchecked(source))


def _checked(found: Source) -> Source:
    """The same, if its config is one of a family that is known.

    Raises:
        InputError: it lacks a size, or there is no config.
    """
    if found.is_bare:
        hint = "Put its config.json beside it; `weigh params` counts its tensors without."
        raise InputError("has no config beside it that says what model it is", where=found.where, hint=hint)
    if found.bundled_revision is None:
        from weigh.models.check import check

        check(found.config, found.where)
    return found


def unchecked(source: Any) -> Source:
    """The same, of a family that `weigh` may not know, its keys unread.

    Raises:
        InputError: the model cannot be read.
    """
    if isinstance(source, Mapping):
        from weigh.sources.files import translate

        return Source("config", translate(dict(source)), "a dict")
    if isinstance(source, str) and source.lstrip()[:1] == "{":
        from weigh.sources.files import parse_config

        return parse_config(source, "the given text", "config")
    if isinstance(source, str | os.PathLike):
        return _named(os.fspath(source))
    from weigh.sources.live import read_live

    return read_live(source)


def _named(name: str) -> Source:
    """A bundled model, or else one that lies somewhere."""
    from weigh.sources import catalogue
    from weigh.sources.locate import is_place, locate

    found = locate(name) if is_place(name) else None
    if found is not None:
        return found
    try:
        return catalogue.find(name)
    except UnknownNameError as unknown:
        found = locate(name)
        if found is None:
            unknown.hint = f"{unknown.hint} A path, ORG/NAME on the Hub and an address work too."
            raise
        return found


def params(
    source: Any, dtype: str | DType | None = None, lora: Any = None, gguf: str | None = None, adapter: Any = None
) -> ParametersReport:
    """How many parameters a model has, by component, layer and tensor, and what they weigh in `dtype` (else its own).

    `lora` is a rank, or "RANK:LAYER,...", `adapter` another of peft's methods ("ia3", "vera:LAYER,..."): they are
    counted too, and they alone are trainable. So are those of a source that is an adapter. Of a checkpoint whose family
    is not described, the header is counted. `gguf` is a file type of llama.cpp ("Q4_K_M"): the tensors are stored as
    its converter and quantizer would store them.

    >>> params("llama-3-8b", lora="8:q_proj,v_proj").trainable
    3407872

    Raises:
        InputError: the model cannot be read, or a live module's tensors are not those of its config.
    """
    from weigh.recipes.settings import Setting
    from weigh.report.defaults import own_dtype, unread_keys
    from weigh.report.parameters import ParametersReport
    from weigh.report.stored import as_gguf, as_stored, header_only

    found = source if isinstance(source, Source) else unchecked(source)
    if found.checkpoint is not None and str(found.config.get("model_type")) not in models.FAMILIES:
        return header_only(found, None if dtype is None else _dtype(dtype))
    chosen, assumptions = own_dtype(_checked(found)) if dtype is None else (_dtype(dtype), [])
    built = ghost(found)
    stored, taken = as_stored(found, built, chosen) if gguf is None else as_gguf(found, built, gguf)
    if adapter is not None:
        if lora is not None:
            raise UsageError("a LoRA is an adapter too", where="adapter", hint="Give one of the two.")
        adapter = Setting("adapter", "Adapter", None).read(adapter)
    else:
        adapter = found.adapter if lora is None else lora
    if adapter is not None:
        built = ghost(found, adapter)
    taken += unread_keys(found, built.unread)
    report = ParametersReport.of(found, built, chosen, (*assumptions, *taken), stored)
    if found.shapes is not None:
        _compare(found.shapes, report.tensors(), found.where)
    return report


def job(*paths: str | os.PathLike[str], form: str | None = None, ignore: tuple[str, ...] = ()) -> Job:
    """The training that files describe together: a recipe (TOML, JSON), or what another program is configured with.

    `form` is one of `weigh.jobs.FORMATS`, else what the keys look like; keys in `ignore` are passed over.

    Raises:
        InputError: a file cannot be read, or nothing recognises it.
        NotModelledError: a key matters to memory, and is not modelled.
        UsageError: two files say different things.
    """
    from weigh.jobs import read, together

    return together(one for path in paths for one in read(os.fspath(path), form, ignore))


def train(
    source: Any = None,
    device: str | Device | None = None,
    runtime: str | None = None,
    job: Job | None = None,
    **settings: Any,
) -> TrainingReport:
    """What training a model takes; the settings are those of `weigh.recipes.training.Training`, as people write them.

    `runtime` is the program that trains it, with its release where that matters ("transformers@4.48"); it decides what
    the settings do not say. A `job` says what is not said here. `precision` is one word for several settings (see
    `weigh.recipes.precision`).

    >>> train("gpt2", sequence="1k", autocast="bf16", device="rtx-4090").fit.verdict
    'yes'

    Raises:
        InputError: the model cannot be read.
        NotModelledError: the job asks for what is not modelled.
        UsageError: there is no such setting, it cannot have that value, or no model is named.
    """
    from weigh import runtimes
    from weigh.recipes.idle import refuse_idle
    from weigh.recipes.precision import with_precision
    from weigh.recipes.settings import read_words
    from weigh.recipes.settings import settings as fields_of
    from weigh.recipes.trained import run
    from weigh.recipes.training import Training
    from weigh.records import replace
    from weigh.report.training import TrainingReport

    taken: list[Assumption] = []
    said_here = [name for name, value in settings.items() if value is not None]
    if job is not None:
        source = job.model if source is None else source
        device = device or job.device
        settings, runtime, taken = _of_job(job, runtime, settings)
    if source is None:
        raise UsageError("no model is named", hint="Name one before the options, or as `model` in the recipe.")
    found = model(source)
    if job is not None and isinstance(source, Mapping):  # a script says its model size by size, and has a name itself
        found = replace(found, name=os.path.basename(next(iter(job.read_as))))  # noqa: PTH119  pathlib is slow to import
    runtime = runtime or "pytorch"
    program, version = runtimes.named(runtime)
    known = {s.name: s for s in fields_of(Training)}
    given = read_words(known, _on(device, with_precision(settings, runtime)))

    def again(changed: Mapping[str, Any], evaluate: bool = False) -> tuple[TrainingRun, tuple[Assumption, ...]]:
        chosen = program.settings({**given, **read_words(known, changed)}, found.config, version)
        recipe, assumptions = _recipe(Training, found, chosen, "sequence", program.software)
        return run(found.config, recipe, found.where, loop=program.loop, evaluate=evaluate), assumptions

    def around(report: TrainingReport) -> tuple[JobPhase, ...]:
        from weigh.report.job_phases import job_phases

        return job_phases(report, program, version, lambda: again({"steps": 1}, evaluate=True)[0])

    made, assumptions = again({})
    refuse_idle(said_here, made.recipe)
    fitted = _device(device, made.recipe)
    said = (*taken, *assumptions)
    named = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    return TrainingReport(
        *(found, made, _parts_of_run(found, made.recipe, program), fitted, said),
        runtime=runtime,
        named=named,
        job=job,
        again=lambda changed: again(changed)[0],
        around=around,
        by_stage=lambda: program.loop.stages(found.config, made.recipe, found.where),
    )


def _of_job(
    job: Job, runtime: str | None, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None, list[Assumption]]:
    """A job's settings under those that are given, the program that trains, and what was taken for granted."""
    from weigh import runtimes
    from weigh.recipes.from_job import settle
    from weigh.report.assumption import Assumption

    words, said = settle(job, settings)
    taken = [Assumption(*one) for one in said]
    if runtime is not None or job.runtime is None or job.runtime.partition("@")[0] in runtimes.RUNTIMES:
        return words, runtime or job.runtime, taken
    if job.own_loop:
        hint = "--runtime pytorch weighs a plain script with the same settings in its place."
        raise NotModelledError(f"the loop of {job.runtime}", where=", ".join(job.read_as), hint=hint)
    why = "how that program runs is not modelled yet"
    taken.append(
        Assumption(f"a plain PyTorch script in place of {job.runtime}", why, "it may keep other tensors alive")
    )
    return words, None, taken


def generate(
    source: Any, device: str | Device | None = None, assistant: Any = None, **settings: Any
) -> GenerationReport:
    """What generating with a model takes; the settings are those of `weigh.recipes.generation.Generation`.

    `assistant` is a draft model, in any of the forms that `model` accepts.

    >>> generate("llama-3-8b", prompt="8k", batch=4).kv_cache_per_token
    131072

    Raises:
        InputError: a model cannot be read.
        UsageError: there is no such setting, or it cannot have that value.
    """
    from weigh.recipes.generation import Generation, run
    from weigh.report.generation import GenerationReport

    found = model(source)
    draft = None if assistant is None else model(assistant)
    recipe, assumptions = _recipe(Generation, found, _on(device, settings), "prompt")
    made = run(found.config, recipe, found.where, None if draft is None else draft.config)
    return GenerationReport(found, made, parts(found), device=_device(device, recipe), assumptions=assumptions)


def kv(source: Any, dtype: str | DType | None = None, **settings: Any) -> KvReport:
    """What the keys, values and states of sequences take; settings are those of `weigh.recipes.keeping.Keeping`.

    `dtype` is the model's, else its own. Nothing is run.

    >>> kv("llama-3-8b", context="8k", concurrency=16).bytes_per_token
    131072

    Raises:
        InputError: the model cannot be read.
        NotModelledError: its family does not say what it keeps.
        UsageError: there is no such setting, it cannot have that value, or the model has nothing that it decides.
    """
    from weigh.recipes.keeping import Keeping, check, keep
    from weigh.recipes.settings import make
    from weigh.report.defaults import cache_context, own_dtype
    from weigh.report.kv import KvReport

    found = model(source)
    own, assumptions = own_dtype(found) if dtype is None else (_dtype(dtype), [])
    words = {name: value for name, value in settings.items() if value is not None}
    if "context" not in words:
        words["context"], taken = cache_context(found)
        assumptions.append(taken)
    how = make(Keeping, words)
    layers = ghost(found).cache_layout()
    check(layers, how)
    return KvReport(found, own, how, keep(layers, how, own), tuple(assumptions))


def serve(
    source: Any = None,
    device: str | Device | None = None,
    runtime: str | None = None,
    draft: Any = None,
    command: str | Sequence[str] | None = None,
    **settings: Any,
) -> ServingReport:
    """What serving a model takes, as the program that serves it lays out its devices' memory when it starts.

    `runtime` is that program, with its release where that matters ("vllm@0.21"); `device` may name several ("h100x2").
    The settings are those of `weigh.runtimes.engine.ServeJob` and the program's own; `draft` is a model that proposes
    tokens, in any of the forms that `model` accepts. A `command` is the program's own command line; what is given
    beside it comes before what it says.

    >>> serve("llama-3-8b", "h100", context="8k", concurrency=8).verdict
    'yes'
    >>> serve(device="rtx-4090", command="vllm serve llama-3-8b --max-model-len 8192").job.context
    8192

    Raises:
        InputError: a model cannot be read.
        NotModelledError: the job asks for what is not modelled.
        UsageError: there is no such setting or device, or the program refuses the job.
    """
    return _server(source, runtime, draft, command, settings)(device)


def _server(
    source: Any, runtime: str | None, draft: Any, command: str | Sequence[str] | None, settings: Mapping[str, Any]
) -> Callable[[str | Device | None], ServingReport]:
    """What `serve` answers on whatever device: the model is built once."""
    from weigh.recipes.settings import did_you_mean, make
    from weigh.recipes.settings import settings as fields_of
    from weigh.report.assumption import Assumption
    from weigh.report.serving import ServingReport
    from weigh.runtimes import engine

    given = {name.replace("-", "_"): value for name, value in settings.items() if value is not None}
    said, overruled = None, []
    if command is not None:
        from weigh.jobs import commands

        said = commands.read([command] if isinstance(command, str) else command)
        beside = {"model": (said.model, source)} | {n: (said.words[n], given[n]) for n in given if n in said.words}
        changed = {name: (a, b) for name, (a, b) in beside.items() if None not in (a, b) and str(a) != str(b)}
        what = "; ".join(
            f"{name.replace('_', ' ')} {b} in place of the command's {a}" for name, (a, b) in changed.items()
        )
        why = "what is given beside a command comes before what it says"
        overruled = [Assumption(what, why, "leave it out to have the command's")] if changed else []
        source, draft = source if source is not None else said.model, draft or said.draft
        runtime, given = runtime or said.engine, {**said.words, **given}
    if source is None:
        raise UsageError("no model is named", hint="Name one before the options, or in the command.")
    program, version = engine.named(runtime or "vllm")
    common = {s.name for s in fields_of(engine.ServeJob)}
    known = (*common, *(s.name for s in fields_of(program.options)))
    for name in given:
        if name not in known:
            raise UsageError(f"{program.name} has no setting {name!r}", hint=did_you_mean(name, known))
    served, taken = _served(source, str(given.get("dtype", "auto")), draft)
    named = os.fspath(source) if isinstance(source, str | os.PathLike) else served.source.name

    def on(device: str | Device | None) -> ServingReport:
        words, shared, number = dict(given), list[Assumption](), _number_of(device)
        if number > 1 and said is None and program.told_ranks and not {"tensor", "pipeline", "data"} & words.keys():
            words["tensor"] = number
            why, else_ = "several devices are named, and no way to share it", "--pipeline or --data share it otherwise"
            shared.append(Assumption(f"tensor parallelism of {number}", why, else_))

        def started(changed: Mapping[str, Any]) -> tuple[Launch, ServeJob, Any, Place]:
            wanted = {**words, **changed}
            job = make(engine.ServeJob, {name: value for name, value in wanted.items() if name in common})
            options = make(program.options, {name: value for name, value in wanted.items() if name not in common})
            place = _place(device, program.devices(job, options), bool(changed))
            return program.launch(served, job, options, place, version), job, options, place

        launch, job, options, place = started({})
        own = taken if launch.weights is None else []  # a file has formats of its own, whatever the config says
        assumed = (*overruled, *own, *shared, *(Assumption(*one) for one in launch.assumptions))
        return ServingReport(
            *(served, f"{program.name} {version}", job, options, place, launch, assumed),
            named=named,
            command=said,
            again=lambda changed: started(changed)[:2],
        )

    return on


def serve_grid(
    source: Any,
    devices: Sequence[str | Device],
    contexts: Sequence[int | str] = (),
    users: Sequence[int | str] = (1,),
    runtime: str | None = None,
    draft: Any = None,
    command: str | Sequence[str] | None = None,
    **settings: Any,
) -> ServingGrid:
    """Serving on several devices, for several contexts and numbers of users at once: what fits, and how fast it is.

    `contexts` are tokens of each request; the model's longest alone where none is named. The others are those of
    `serve`. On each device one server is weighed, started for the longest of the contexts and the most of the users.

    >>> grid = serve_grid("llama-3-8b", ["h100", "rtx-4090"], ["1k", "8k"], [1, 64])
    >>> [one.fitting for one in grid.devices]
    [3, 2]

    Raises:
        InputError: a model cannot be read.
        NotModelledError: the job asks for what is not modelled.
        UsageError: there is no such setting or device, no device is named, or the program refuses the job.
    """
    from weigh.report.serving_grid import ServingGrid
    from weigh.units import parse_tokens

    if not devices:
        raise UsageError("no device is named", where="device", hint="A table over contexts and users needs one.")
    lengths, counts = (sorted({parse_tokens(one) for one in some}) for some in (contexts, users))
    most = {"context": lengths[-1] if lengths else None, "concurrency": counts[-1]}
    on = _server(source, runtime, draft, command, {**settings, **most})
    reports = [on(device) for device in devices]
    return ServingGrid(reports, lengths or [reports[0].context], counts)


def _served(source: Any, dtype: str, draft: Any) -> tuple[Served, list[Assumption]]:
    from weigh.report.defaults import own_dtype
    from weigh.runtimes.engine import Served

    found = model(source)
    own, taken = own_dtype(found) if dtype == "auto" else (_dtype(dtype), [])
    if dtype == "auto" and own is dtypes.FLOAT32:
        from weigh.report.assumption import Assumption

        own, why = dtypes.BFLOAT16, "engines serve what is stored in fp32, or says nothing, in 16 bits (--dtype auto)"
        taken = [Assumption("parameters in bf16", why, "--dtype float32 keeps them as they are, in twice the memory")]
    return Served(found, own, None if draft is None else _served(draft, dtype, None)[0]), taken


def _number_of(device: str | Device | None) -> int:
    """How many devices "NAMExN" means."""
    number = device.rpartition("x")[2] if isinstance(device, str) else ""
    return int(number) if number.isdecimal() else 1


def _place(device: str | Device | None, wanted: int, or_more: bool = False) -> Place:
    """The devices that are named: one, or "NAMExN"; as many as are wanted where their number is not said, `or_more`.

    Raises:
        UsageError: there is no such device, or there are fewer than ranks.
    """
    from weigh.runtimes.engine import Place

    if device is None:
        return Place(None, wanted)
    name, times, number = device.rpartition("x") if isinstance(device, str) else ("", "", "")
    if not (times and number.isdecimal() and int(number)):
        return Place(_known_device(device), wanted)
    if int(number) < wanted and not or_more:
        what = f"the job takes {wanted} devices, and there are {number}"
        raise UsageError(what, where="device", hint="Ranks are tensor x pipeline x data.")
    return Place(_known_device(name.rstrip(" ")), max(wanted, int(number)))


def compare(a: Any, b: Any, dtype: str | DType | None = None) -> Comparison:
    """Two models side by side, in `dtype`, else each in its own.

    >>> compare("llama-2-7b", "llama-3-8b").figures()["parameters"]
    (6738415616, 8030261248)

    Raises:
        InputError: a model cannot be read.
    """
    from weigh.report.compare import Comparison

    return Comparison(_side(a, dtype), _side(b, dtype))


def compare_trainings(a: str, b: str) -> TrainingsComparison:
    """Two trainings side by side, each as a file describes it (a recipe, or what another program is configured with).

    Raises:
        InputError: a file cannot be read.
        NotModelledError: a training asks for what is not modelled.
    """
    from weigh.report.compare_trainings import TrainingsComparison

    left, right = (train(job=job(path)) for path in (a, b))
    return TrainingsComparison(left, right, (os.fspath(a), os.fspath(b)))


def _side(source: Any, dtype: str | DType | None) -> Side:
    from weigh.report.compare import Side

    found = source if isinstance(source, Source) else unchecked(source)
    counted = params(found, dtype)
    try:
        kept: KvReport | None = kv(found, dtype)
    except (InputError, NotModelledError):  # of a header alone, or of a family that does not say
        kept = None
    return Side(counted, kept)


def _adapter(lora: Any) -> Adapter:
    """A method of peft's that was read already, or as an `adapter_config.json` has it; or a LoRA in words."""
    from weigh.recipes.settings import Setting

    kind = "Adapter" if hasattr(lora, "kind") or (isinstance(lora, Mapping) and "peft_type" in lora) else "Lora"
    found: Adapter = Setting("lora", kind, None).read(lora)
    return found


def _on(device: str | Device | None, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, with the compute capability of the device where nothing else is said."""
    if device is None or settings.get("compute_capability") is not None:
        return settings
    found = _known_device(device)
    if found.compute_capability is None:
        return settings
    return {**settings, "compute_capability": ".".join(map(str, found.compute_capability))}


def _recipe(
    kind: type[R], source: Source, words: Mapping[str, Any], length: str, software: str = SOFTWARE
) -> tuple[R, tuple[Assumption, ...]]:
    """The recipe in these words, and what was assumed to complete it."""
    from weigh.recipes.settings import make
    from weigh.report.defaults import complete, surroundings

    completed, assumptions = complete(source, words, length)
    recipe = make(kind, completed)
    return recipe, (*assumptions, *surroundings(source, recipe, software))


def _device(device: str | Device | None, recipe: Any) -> Device | None:
    if device is None:
        return None
    if recipe.device == "cpu":
        raise UsageError("the CPU's kernels run on no GPU", where="device", hint="Leave out the device or the kernels.")
    return _known_device(device)


def _known_device(device: str | Device) -> Device:
    if not isinstance(device, str):
        return device
    from weigh.hardware import get_device

    try:
        return get_device(device)
    except UnknownNameError as error:
        raise UsageError(error.what, where="device", hint=error.hint) from None


def _dtype(dtype: str | DType) -> DType:
    if not isinstance(dtype, str):
        return dtype
    try:
        return dtypes.get(dtype)
    except UnknownNameError as error:
        raise UsageError(error.what, where="dtype", hint=error.hint) from None


def ghost(source: Source, lora: Any = None) -> CausalModel:
    """The model of a source, on ghost tensors, and its adapters; both are born into one ledger, as stacks need it."""
    from weigh.ghost.repeat import unrolled
    from weigh.ghost.state import recording

    adapter = None if lora is None else _adapter(lora)
    with unrolled(adapter is not None and adapter.uneven), recording():
        built = models.build(source.config, dtypes.FLOAT32, source.where)
        if adapter is not None:
            adapter.apply(built)
        return built


def _parts_of_run(source: Source, recipe: Training, program: Runtime) -> Parts:
    """Which part is what in the modules of the program that trains: some bring their own."""
    from weigh.ghost.state import recording
    from weigh.report.parts import Parts

    with recording():
        return Parts(program.loop.build(source.config, recipe, source.where))


def parts(source: Source) -> Parts:
    """Which part of a model is what, by module path."""
    from weigh.report.parts import Parts

    return Parts(ghost(source))


def _compare(live: Mapping[str, tuple[int, ...]], ghost: Mapping[str, tuple[int, ...]], where: str) -> None:
    """A live module is what its config says, name by name and shape by shape."""
    for name in (*live, *ghost):
        if live.get(name) != ghost.get(name):
            raise InputError(
                f"the module's {name} is {_shape(live.get(name))}, but its config makes {_shape(ghost.get(name))}",
                where=where,
                hint="Give the module as transformers makes it, without adapters and with its head.",
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"{list(shape)}"
