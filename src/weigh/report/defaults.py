"""What is assumed where the user did not say: the value, why it is that one, and what another would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import InputError, UnknownNameError
from weigh.models import default_attention, language_config, uses_cache
from weigh.recipes import SOFTWARE
from weigh.report.assumption import Assumption
from weigh.report.witnessed import unverified

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.dtypes import DType
    from weigh.sources.source import Source

SEQUENCE = 1024
_CONTEXT = ("n_positions", "n_ctx", "max_position_embeddings", "max_target_positions")

CUDA = (
    Assumption(
        "no padding, so no attention mask",
        "sequences of full length are the most that a batch can need",
        "a mask costs its own bytes and rules out the flash kernel",
    ),
    Assumption(
        "scratch memory inside of kernels is not counted",
        "no source states it for every kernel: sorting in the embedding's backward, partial sums of norms, split "
        "matrix products; the workspace of flash attention's backward is counted",
        "a real peak can be higher by what one kernel takes while it runs",
    ),
)
NOTHING_KEPT = Assumption(
    "no keys and values are kept",
    "the config's use_cache is false, or it is its class's default",
    "a generation_config.json beside the weights may say otherwise; set use_cache to true to see what would be kept",
)
TEXT_ALONE = Assumption(
    "text alone, without pictures or sounds",
    "what stands in for them in the text, and how large they are, is not said",
    "their tokens lengthen the sequence, and the tower that sees or hears them keeps activations of its own",
)


DDP = Assumption(
    "DistributedDataParallel with its defaults",
    "nobody said how the devices that share the data reduce their gradients (--shard)",
    "its buckets stand beside the gradients, as large as all of them together; gradient_as_bucket_view saves that",
)

COMPILED = Assumption(
    "torch.compile of PyTorch 2.13, with its defaults",
    "its partitioner's choice of what is kept is computed as it computes it; when temporaries live is modelled",
    "matrices of odd sizes are padded where that was measured to be faster, which costs a copy of each",
)


def own_dtype(source: Source) -> tuple[DType, list[Assumption]]:
    """The dtype of a model where nobody asks for another one.

    Raises:
        InputError: the config names a dtype that does not exist.
    """
    spelled = source.dtype
    if spelled is None or spelled == "auto":
        why = "neither the config nor the command names one, and PyTorch makes parameters in fp32"
        return dtypes.FLOAT32, [Assumption("parameters in fp32", why, "bf16 takes half of it")]
    try:
        found = dtypes.get(spelled)
    except UnknownNameError as error:
        raise InputError(error.what, where=f"{source.where}: dtype", hint=error.hint) from None
    if source.stored_dtype is not None:
        return found, []
    return found, [
        Assumption(
            f"parameters in {found.name}",
            "the config says so, and transformers 5 loads a model in the dtype of its checkpoint",
            "memory for weights, gradients and optimizer state follows it",
        )
    ]


def unread_keys(source: Source, keys: tuple[str, ...]) -> list[Assumption]:
    """That keys of a config mean nothing which its family does not read."""
    if not keys:
        return []
    what = f"{', '.join(keys)} of the config {'mean' if len(keys) > 1 else 'means'} nothing"
    why = f"the family {source.config['model_type']!r} does not read such keys as transformers has it"
    return [Assumption(what, why, "if other code does, the model's tensors can be others than these")]


def cache_context(source: Source) -> tuple[int, Assumption]:
    """How many tokens a cache is weighed for where nobody says: the longest that the model is made for."""
    longest = _context(source)
    if longest is None:
        return SEQUENCE, Assumption(f"{SEQUENCE} tokens", "no context was given", "caches grow with their tokens")
    why = "no context was given, and the model is made for so many"
    return longest, Assumption(f"{longest} tokens", why, "caches grow with their tokens")


def as_if_not_quantized(why: str) -> Assumption:
    """That a quantized checkpoint is weighed as what it was made from."""
    return Assumption("the weights as if they were not quantized", why, "a quantized checkpoint has smaller weights")


def quantized(source: Source) -> list[Assumption]:
    """What a run does with a quantized checkpoint."""
    from weigh import formats

    found = formats.settings(source.config, source.where)
    if found is None:
        return []
    method = formats.method_of(found)
    return [as_if_not_quantized(f"runs with layers of {method} are not modelled; `weigh params` says what is stored")]


def complete(source: Source, words: Mapping[str, Any], length: str) -> tuple[dict[str, Any], list[Assumption]]:
    """The settings with what is missing: the model's dtype, and under the name `length` how many tokens go in."""
    found = {name.replace("-", "_"): value for name, value in words.items() if value is not None}
    assumptions = quantized(source)
    if "dtype" not in found:
        found["dtype"], taken = own_dtype(source)
        assumptions += taken
    if "attention" not in found and default_attention(source.config) == "eager":
        found["attention"] = "eager"
        assumptions.append(
            Assumption(
                "eager attention",
                "the family runs no scaled_dot_product_attention in transformers, which then takes its eager one",
                "where there is attention, the scores of every head exist as whole matrices",
            )
        )
    if length not in found:
        generated = _generated(found) if length == "prompt" else 0
        found[length] = max(1, min(SEQUENCE, (_context(source) or SEQUENCE + generated) - generated))
        assumptions.append(
            Assumption(f"{found[length]} tokens", f"no {length} was given", "memory grows with the length")
        )
    return found, assumptions


def _generated(found: Mapping[str, Any]) -> int:
    """The tokens that a generation adds to its prompt."""
    from weigh.recipes.generation import Generation

    wanted = found.get("new_tokens", Generation().new_tokens)
    return wanted if isinstance(wanted, int) else int(wanted) if str(wanted).isdecimal() else 0


def surroundings(source: Source, recipe: Any, software: str = SOFTWARE) -> tuple[Assumption, ...]:
    """What is taken for granted about the software and the device, and about lengths beyond the model's own."""
    tokens = recipe.sequence if hasattr(recipe, "sequence") else recipe.prompt + recipe.new_tokens
    context = _context(source)
    taken = (*unverified(recipe), *_software(recipe, software))
    if "text_config" in source.config:
        taken = (TEXT_ALONE, *taken)
    if hasattr(recipe, "new_tokens") and not uses_cache(source.config):
        taken = (NOTHING_KEPT, *taken)
    if _reduces_unsaid(recipe):
        taken = (DDP, *taken)
    if getattr(recipe, "compile", False):
        taken = (COMPILED, *taken)
    if context is None or tokens <= context:
        return taken
    beyond = Assumption(
        f"{tokens} tokens can be run in a context of {context}",
        "the command says so",
        "a model with learned positions fails there; one with rotary positions runs",
    )
    return (beyond, *taken)


def _software(recipe: Any, software: str) -> tuple[Assumption, ...]:
    """Whose sources decide what is allocated."""
    why = "their sources decide what is allocated, saved and freed"
    if recipe.device == "cpu":
        return (Assumption(f"{software} with the CPU's kernels", why, "other versions choose other kernels"),)
    other = "other versions and older devices choose other kernels"
    on = f"{software} on compute capability {recipe.compute_capability}"
    return Assumption(on, f"{why}, and which attention kernel runs", other), *CUDA


def _reduces_unsaid(recipe: Any) -> bool:
    """Several devices train on data of their own, and no technique says how their gradients come together."""
    return hasattr(recipe, "mesh") and recipe.shard is None and recipe.mesh.shard * recipe.mesh.replicas > 1


def _context(source: Source) -> int | None:
    config = language_config(source.config)
    return next((config[key] for key in _CONTEXT if isinstance(config.get(key), int)), None)
