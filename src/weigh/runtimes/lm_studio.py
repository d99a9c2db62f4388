"""LM Studio: llama.cpp under names of its own.

Read: `LLMLoadModelConfig` of lmstudio-js (names and formats of the settings). What it computes is llama.cpp's; MLX
models are left out. How it makes layers of a share of the model is not said: here they are rounded. `--concurrency` is
`maxParallelPredictions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from weigh.errors import UsageError
from weigh.records import dataclass, replace
from weigh.runtimes.llama_cpp.engine import LlamaCpp, LlamaCppOptions

if TYPE_CHECKING:
    from weigh.recipes.settings import Text
    from weigh.runtimes.engine import Launch, Place, Served, ServeJob, Version


@dataclass(frozen=True, slots=True)
class LmStudioOptions:
    """The settings of a model that is loaded, as the SDK spells them, with "_" for capitals."""

    context_length: int | None = None
    """Tokens of the context."""
    gpu: Text = "max"
    """The share of the layers that is on devices: "max", "off", or a number from 0 to 1 (`gpu.ratio`)."""
    eval_batch_size: int = 512
    """Tokens that are computed at once."""
    flash_attention: bool = True
    """Flash attention."""
    offload_kv_cache_to_gpu: bool = True
    """Keys and values are where their layers are."""
    llama_k_cache_quantization_type: Text | None = None
    """Number format of keys."""
    llama_v_cache_quantization_type: Text | None = None
    """Number format of values."""
    try_mmap: bool = True
    """The file is mapped."""
    use_unified_kv_cache: bool = True
    """They share one cache."""


class LmStudio(LlamaCpp):
    """LM Studio."""

    name = "lm-studio"
    options: ClassVar[type] = LmStudioOptions

    def launch(  # type: ignore[override]
        self, served: Served, job: ServeJob, options: LmStudioOptions, place: Place, version: Version
    ) -> Launch:
        """What llama.cpp takes for it."""
        theirs = LlamaCppOptions(
            gpu_layers=_layers(options.gpu, len(served.layers)),
            ctx_size=options.context_length if options.use_unified_kv_cache else None,
            batch_size=options.eval_batch_size,
            ubatch_size=options.eval_batch_size,
            flash_attn="on" if options.flash_attention else "off",
            cache_type_k=options.llama_k_cache_quantization_type,
            cache_type_v=options.llama_v_cache_quantization_type,
            kv_unified=options.use_unified_kv_cache,
            no_kv_offload=not options.offload_kv_cache_to_gpu,
            no_mmap=not options.try_mmap,
        )
        context = options.context_length or job.context
        return super().launch(served, replace(job, context=context), theirs, place, version)


def _layers(share: str, layers: int) -> str:
    """Layers of a share of the model.

    >>> _layers("max", 32), _layers("0.5", 32), _layers("off", 32)
    ('all', '16', '0')

    Raises:
        UsageError: it is no share.
    """
    if share in ("max", "auto", "1", "1.0"):
        return "all"
    try:
        found = 0.0 if share == "off" else float(share)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise UsageError(f"{share!r} is no share", where="gpu", hint='"max", "off", or a number from 0 to 1.')
    return str(round(found * layers))


ENGINE = LmStudio()
