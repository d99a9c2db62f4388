"""Generation with a real model: `generate` itself, or prefill and decoding by hand, which works without values too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves
from transformers import StaticCache
from transformers.generation.stopping_criteria import StoppingCriteria

from weigh.measure.watcher import Watcher
from weigh.measure.workload import Workload, build, model_inputs, model_loss
from weigh.trace.events import DECODE, PREFILL

if TYPE_CHECKING:
    from weigh.recipes.generation import Generation


def workload(config: Mapping[str, Any], recipe: Generation, device: str, initialise: bool) -> Workload:
    """The model of a config, and random ids.

    Raises:
        InputError: transformers cannot build the model.
    """
    model = build(config, recipe.dtype, recipe.attention, device, initialise).eval()
    batch = model_inputs(model, recipe.batch, recipe.prompt, device)
    if "input_ids" not in batch:
        vocabulary = model.config.vocab_size
        batch["decoder_input_ids"] = torch.randint(0, vocabulary, (recipe.batch, recipe.prompt), device=device)
    return Workload(model, batch, model_loss)


@torch.no_grad()
def generate(work: Workload, recipe: Generation, watcher: Watcher) -> None:
    """Generate `recipe.new_tokens`, with the model alone (`recipe.bare`) or by transformers' own loop."""
    if recipe.bare:
        _bare(work.model, work.batch, recipe, watcher)
    else:
        _by_transformers(work.model, work.batch, recipe, watcher)


def _bare(model: Any, batch: Mapping[str, Any], recipe: Generation, watcher: Watcher) -> None:
    keep: dict[str, Any] = {"logits_to_keep": recipe.logits_to_keep} if recipe.logits_to_keep else {}
    cache = None
    name = "past_key_values"
    if recipe.cache == "static":
        cache = StaticCache(config=model.config, max_cache_len=recipe.prompt + recipe.new_tokens)
    watcher.mark(PREFILL)
    out = model(**batch, use_cache=True, **({} if cache is None else {name: cache}), **keep)
    if getattr(out, name, None) is None and hasattr(out, "cache_params"):
        name = "cache_params"
    cache = getattr(out, name)
    following = out.logits[:, -1:].argmax(-1)
    heard = {} if "input_ids" in batch else {"encoder_outputs": (out.encoder_last_hidden_state,)}
    ids = "decoder_input_ids" if heard else "input_ids"
    del out
    watcher.cached(cache_tensors(cache))
    for number in range(recipe.new_tokens):
        watcher.mark(DECODE, number)
        out = model(use_cache=True, **{ids: following, name: cache}, **heard, **keep)
        cache = getattr(out, name)
        following = out.logits[:, -1:].argmax(-1)
        del out
        watcher.cached(cache_tensors(cache))
    watcher.end()


def cache_tensors(cache: Any) -> list[tuple[torch.Tensor, bool]]:
    """The tensors that a cache keeps between two tokens, each with whether it is a state of constant size."""
    found = []
    halves = [getattr(cache, f"{half}_attention_cache", None) for half in ("self", "cross")]
    layers = [layer for part in (cache, *halves) for layer in getattr(part, "layers", None) or []]
    for layer in layers:
        for name, value in vars(layer).items():
            leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
            found += [(leaf, name.endswith("_states")) for leaf in leaves]
    return found


class _EveryToken(StoppingCriteria):
    """Stops nothing; tells the watcher where one token ends and the next begins."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.number = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.watcher.mark(DECODE, self.number)
        self.number += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _by_transformers(model: Any, batch: Mapping[str, Any], recipe: Generation, watcher: Watcher) -> None:
    watcher.mark(PREFILL)
    options: dict[str, Any] = {"num_beams": recipe.beams, "num_return_sequences": recipe.returned}
    if recipe.cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    ids = batch.get("input_ids")
    given = batch if ids is None else {"inputs": ids, "attention_mask": torch.ones_like(ids)}
    model.generate(
        **given,
        min_new_tokens=None,
        max_new_tokens=recipe.new_tokens,
        eos_token_id=None,
        do_sample=recipe.returned > 1 and recipe.beams == 1,
        stopping_criteria=[_EveryToken(watcher)],
        **options,
    )
    watcher.end()
