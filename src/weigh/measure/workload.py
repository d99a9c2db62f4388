"""What is run: a model of transformers with random ids, or whatever a function of the user's gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._pytree import tree_leaves
from transformers import initialization

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.records import dataclass

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(slots=True)
class Workload:
    """A model, its batch, and how a loss comes of them."""

    model: torch.nn.Module
    batch: Any
    """Tensors in any nest of lists and dicts; arguments by name for the default loss."""
    loss: Loss
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None
    """Makes the optimizer of the trained parameters; None is the recipe's."""

    def inputs(self) -> list[torch.Tensor]:
        """The tensors of the batch."""
        return [leaf for leaf in tree_leaves(self.batch) if isinstance(leaf, torch.Tensor)]


def model_loss(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """The loss that the model computes itself."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def _why(kind: type, error: Exception) -> str:
    if "FlashAttention2" in str(error):
        return f"{kind.__name__} wants flash_attention_2, whose package flash-attn is not installed or has no GPU here"
    return f"{kind.__name__} cannot be built ({error})"


def _next_step(error: Exception) -> str:
    if "FlashAttention2" in str(error):
        return (
            "`pip install flash-attn` beside a CUDA build of PyTorch, or ask for --attention sdpa, which takes the "
            "same kernel where it can. `weigh train` predicts flash_attention_2 without it."
        )
    return "What stands in brackets is transformers' own complaint: mend the config, or update transformers."


def torch_dtype(dtype: DType) -> torch.dtype:
    """PyTorch's dtype of that name."""
    long = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    found: torch.dtype = getattr(torch, long[dtype.name])
    return found


def build(config: Mapping[str, Any], dtype: DType, attention: str, device: str, initialise: bool) -> Any:
    """The model of a config as `from_pretrained(dtype=...)` leaves it: every parameter in `dtype`.

    Raises:
        InputError: transformers knows no such model, or refuses the config.
    """
    settings = {k: v for k, v in config.items() if k not in ("model_type", "dtype", "torch_dtype", "auto_map")}
    model_type = str(config.get("model_type"))
    if model_type not in transformers.CONFIG_MAPPING:
        hint = f"Use another version than {transformers.__version__}, or give a function of your own: module:function."
        raise InputError(f"transformers knows no {model_type}", where="model_type", hint=hint)
    try:
        made = transformers.CONFIG_MAPPING[model_type](**settings)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"transformers refuses it ({error})", where="config", hint="Mend that key.") from None
    kind = _class(made, config)
    made._attn_implementation = attention
    made.dtype = torch_dtype(dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(dtype))
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.device(device))
            if not initialise:
                stack.enter_context(initialization.no_init_weights())
            model = kind._from_config(made, attn_implementation=attention, dtype=torch_dtype(dtype))
    except (ValueError, ImportError) as error:
        raise InputError(_why(kind, error), where="config", hint=_next_step(error)) from None
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()  # which a model without initial values has forgotten
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        assert model.get_parameter(target) is model.get_parameter(source), f"{target} and {source} are not tied"
    return model


def _class(made: Any, config: Mapping[str, Any]) -> Any:
    """The class that the config names, else transformers' language model for its type."""
    for name in config.get("architectures") or ():
        found = getattr(transformers, name, None)
        if found is not None and hasattr(found, "get_output_embeddings"):
            return found
    auto = transformers.models.auto.modeling_auto
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_MASKED_LM_MAPPING
    if made.get_text_config() is not made:  # a causal class of such a config is its language model alone
        mappings = [auto.MODEL_FOR_MULTIMODAL_LM_MAPPING, causal]
    elif made.is_encoder_decoder:
        mappings = [auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING]
    elif getattr(made, "is_decoder", False):
        mappings = [causal]
    else:
        mappings = [masked, causal, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING]
    for mapping in mappings:
        if type(made) in mapping:
            return mapping[type(made)]
    hint = "Give a function of your own that returns a model, a batch and a loss: module:function."
    raise InputError(f"transformers has no language model for {made.model_type}", where="model_type", hint=hint)


def model_inputs(model: Any, batch: Any, sequence: Any, device: str) -> dict[str, Any]:
    """Random ids (batch, sequence); or the random spectrograms of a model that hears, as long as it wants them."""
    config = model.config
    if getattr(model, "main_input_name", None) == "input_features":
        shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(shape, device=device, dtype=model.dtype)}
    return {"input_ids": torch.randint(0, config.get_text_config().vocab_size, (batch, sequence), device=device)}


def from_function(name: str, device: str) -> Workload:
    """What `module:function` returns: (model, batch, loss) or (model, batch, loss, optimizer).

    `loss(model, batch)` gives the loss, None stands for `model(**batch).loss`; `optimizer(parameters)` gives an
    optimizer. The function is called where new tensors go to the device.

    Raises:
        InputError: there is no such function, or it returns something else.
    """
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        hint = "Write module:function, with the module on the path or in this folder."
        raise InputError(f"cannot be found ({error})", where=name, hint=hint) from None
    with torch.device(device):
        made = function()
    if not isinstance(made, tuple) or len(made) not in (3, 4) or not isinstance(made[0], torch.nn.Module):
        raise InputError(
            "does not return what is needed", where=name, hint="Return (model, batch, loss), or with an optimizer too."
        )
    model, batch, loss, *more = made
    if loss is not None and not callable(loss):
        raise InputError("its loss is no function", where=name, hint="Return loss(model, batch), or None.")
    return Workload(model, batch, loss or model_loss, more[0] if more else None)
