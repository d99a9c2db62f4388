"""peft's methods but LoRA (`weigh.techniques.lora`), one file each, and the way from their names and files to them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from weigh.errors import InputError, NotModelledError, UnknownNameError
from weigh.techniques.adapters.base import Adapter

KINDS: dict[str, str] = {
    "adalora": "weigh.techniques.adapters.adalora:AdaLora",
    "beft": "weigh.techniques.adapters.beft:Beft",
    "boft": "weigh.techniques.adapters.boft:Boft",
    "gralora": "weigh.techniques.adapters.gralora:Gralora",
    "ia3": "weigh.techniques.adapters.ia3:IA3",
    "ln_tuning": "weigh.techniques.adapters.ln_tuning:LnTuning",
    "loha": "weigh.techniques.adapters.loha:LoHa",
    "lokr": "weigh.techniques.adapters.lokr:LoKr",
    "lora": "weigh.techniques.lora:Lora",
    "oft": "weigh.techniques.adapters.oft:Oft",
    "p_tuning": "weigh.techniques.adapters.prompts:PTuning",
    "prefix_tuning": "weigh.techniques.adapters.prefix_tuning:PrefixTuning",
    "prompt_tuning": "weigh.techniques.adapters.prompts:PromptTuning",
    "psoft": "weigh.techniques.adapters.psoft:Psoft",
    "trainable_tokens": "weigh.techniques.adapters.trainable_tokens:TrainableTokens",
    "vera": "weigh.techniques.adapters.vera:Vera",
}
"""The methods by name: where each is."""

NOT_MODELLED = tuple(
    "adamss adaption_prompt bone c3a cartridge cpt deft delora fourierft frod glora hira hra lily miss "
    "multitask_prompt_tuning osf peanut poly pvera randlora road shadow shira supertuning tinylora unilora vblora "
    "waveft xlora".split()
)
"""Methods of peft 0.21 that are known by name alone."""

HARMLESS = frozenset(
    "peft_type task_type base_model_name_or_path revision auto_mapping inference_mode peft_version fan_in_fan_out "
    "init_weights layers_pattern megatron_core".split()
)
"""Keys of every `adapter_config.json` that change no byte."""


def method(kind: str) -> type[Adapter]:
    """The class of a method, by peft's name of it.

    Raises:
        NotModelledError: it is one of peft's that is not described here.
        UnknownNameError: there is none of that name.
    """
    name = kind.lower()
    if name in NOT_MODELLED:
        raise NotModelledError(f"the adapter {kind!r}", where="adapter")
    if name not in KINDS:
        raise UnknownNameError("adapter", kind, KINDS)
    module, _, attribute = KINDS[name].partition(":")
    found: type[Adapter] = getattr(import_module(module), attribute)
    return found


def of_peft(config: Mapping[str, Any]) -> tuple[type[Adapter], dict[str, Any]]:
    """The method of an `adapter_config.json`, and its settings in our words.

    >>> kind, words = of_peft({"peft_type": "LORA", "r": 16, "target_modules": ["q_proj"], "lora_dropout": 0.1})
    >>> kind.kind, words
    ('lora', {'rank': 16, 'targets': ['q_proj'], 'dropout': 0.1})

    Raises:
        InputError: the rank or the targets are missing.
        NotModelledError: another adapter, or a setting that adds other tensors.
    """
    kind = method(str(config.get("peft_type")))
    theirs, words = kind.theirs(), {}
    for key, value in config.items():
        if key in theirs and value is not None:
            words[theirs[key]] = _of_peft(key, value)
        elif key not in (*theirs, *HARMLESS, *kind.harmless) and value not in (None, False, "none", [], {}):
            raise NotModelledError(f"an adapter with {key}", where=f"adapter_config.json: {key}")
    for key in ("r", "target_modules"):
        if theirs.get(key) in ("rank", "targets") and theirs[key] not in words:
            raise InputError("names no rank or no layers", where="adapter_config.json", hint=f"Add {key}.")
    return kind, words


def _of_peft(key: str, value: Any) -> Any:
    if key in ("target_modules", "exclude_modules") and isinstance(value, str):
        return (value,) if value == "all-linear" or value.startswith("^") else (f"^{value}",)
    if key == "layers_to_transform" and isinstance(value, int):
        return (value,)
    if key.endswith("_pattern"):
        return tuple(value.items())
    if key == "decompose_factor" and value == -1:
        return None
    return value
