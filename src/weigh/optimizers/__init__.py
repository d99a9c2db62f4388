"""Optimizers: what they keep beside each parameter, and what they allocate while they step.

One file per optimizer, with its implementations: `foreach` (lists; CUDA's default where there is one), `fused` (one
kernel) and `forloop` (one parameter at a time; the CPU's default). Names are those of PyTorch and of transformers'
`--optim`; the file says whose code was read.
"""

from __future__ import annotations

from importlib import import_module

from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.optimizers.base import IMPLEMENTATIONS, Choice, Optimizer

__all__ = [
    "ALIASES",
    "IMPLEMENTATIONS",
    "OPTIMIZERS",
    "REFUSED",
    "Choice",
    "Optimizer",
    "implementation_of",
    "kind_of",
    "optimizer",
]

PAGED = ("adam", "adamw", "ademamix", "lion")
"""Those of bitsandbytes that there are with paged states."""
_FILES = (
    {
        "adadelta": "adadelta",
        "adafactor": "adafactor",
        "adagrad": "adagrad",
        "adalomo": "lomo:AdaLomo",
        "adam": "adam",
        "adamax": "adamax",
        "adamw": "adam",
        "adamw_anyprecision": "anyprecision",
        "adamw_apex": "apex",
        "adan": "adan",
        "adopt": "adopt",
        "apollo": "apollo",
        "apollo_mini": "apollo",
        "came": "came",
        "galore": "galore:GaLore",
        "galore_adafactor": "galore:GaLoreAdafactor",
        "galore_adamw_8bit": "galore:GaLoreAdamW8bit",
        "grokadamw": "grokadamw",
        "lamb": "lamb",
        "lion": "lion",
        "lomo": "lomo:Lomo",
        "muon": "muon",
        "nadam": "nadam",
        "prodigy": "prodigy",
        "radam": "radam",
        "rmsprop": "rmsprop",
        "schedule_free_adamw": "schedule_free",
        "schedule_free_radam": "schedule_free",
        "schedule_free_sgd": "schedule_free",
        "sgd": "sgd",
        "shampoo": "shampoo",
        "soap": "soap",
        "sophia": "sophia",
        "stable_adamw": "stable_adamw",
        "torch_adafactor": "torch_adafactor",
    }
    | dict.fromkeys(
        [
            f"{paged}{kind}_{bits}bit"
            for paged, kinds in (("", ("adam", "adamw", "ademamix", "lion", "rmsprop", "sgd")), ("paged_", PAGED))
            for kind in kinds
            for bits in (8, 32)
        ],
        "bitsandbytes",
    )
    | {
        "torchao_cpu_offload": "torchao:CPUOffload",
        "torchao_cpu_offload_gradients": "torchao:CPUOffloadGradients",
    }
    | dict.fromkeys([f"torchao_adamw_{kind}" for kind in ("8bit", "4bit", "fp8")], "torchao")
)
"""Which file has it, and as what: as `OPTIMIZER` where nothing is said."""

OPTIMIZERS = tuple(sorted(_FILES))

ALIASES = {
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch": "adamw",
    "ademamix": "ademamix_32bit",
    "apollo_adamw": "apollo",
    "galore_adamw": "galore",
    "paged_adamw": "paged_adamw_32bit",
    "rmsprop_bnb": "rmsprop_32bit",
    "rmsprop_bnb_32bit": "rmsprop_32bit",
    "rmsprop_bnb_8bit": "rmsprop_8bit",
}
"""transformers' names of the same."""

REFUSED = {
    "adamw_torch_npu_fused": "runs on Ascend's devices",
    "adamw_torch_xla": "runs on TPUs",
    "distributed_shampoo": "cuts matrices into blocks and keeps for each what its many settings say",
    "lbfgs": "runs the model several times in a step, as often as its line search asks",
}
"""Known, and not run: why."""


def kind_of(name: str) -> type[Optimizer]:
    """The class of an optimizer.

    Raises:
        UnknownNameError: there is none of that name.
        NotModelledError: it is known, and not run.
    """
    if name in REFUSED:
        raise NotModelledError(f"the optimizer {name}, which {REFUSED[name]},", where="optimizer")
    if name not in _FILES:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    file, _, kind = _FILES[name].partition(":")
    found: type[Optimizer] = getattr(import_module(f"weigh.optimizers.{file}"), kind or "OPTIMIZER")
    return found


def implementation_of(name: str, device: str) -> str:
    """The implementation that runs where nobody asks for one."""
    known = kind_of(name).implementations
    return "forloop" if device == "cpu" and "forloop" in known else known[0]


def optimizer(choice: Choice) -> Optimizer:
    """The optimizer that was chosen.

    Raises:
        UnknownNameError: no such optimizer or implementation.
        NotModelledError: it is known, and not run.
        UsageError: a momentum, or an implementation, that this optimizer has not.
    """
    if choice.implementation not in IMPLEMENTATIONS:
        raise UnknownNameError("optimizer implementation", choice.implementation, IMPLEMENTATIONS)
    kind = kind_of(choice.name)
    if choice.momentum and not kind.takes_momentum:
        raise UsageError(f"{choice.name} takes no momentum", where="momentum", hint="Use sgd, or leave it out.")
    if choice.implementation not in kind.implementations:
        raise UsageError(
            f"{choice.name} has no {choice.implementation} implementation",
            where="implementation",
            hint=f"It has {', '.join(kind.implementations)}.",
        )
    return kind(choice)
