"""Ollama: llama.cpp under names of its own.

Read: Ollama's `docs/context-length.mdx` (948f69330, defaults by the device's memory), `envconfig/config.go` and
`api/types.go` (names and defaults). What it computes is llama.cpp's; models that run in the engine that Ollama wrote
itself are laid out by that one, which is left out. It asks for embeddings beside logits and divides the cache among
requests (`--concurrency` is OLLAMA_NUM_PARALLEL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from weigh.records import dataclass, replace
from weigh.runtimes.llama_cpp.engine import LlamaCpp, LlamaCppOptions

if TYPE_CHECKING:
    from weigh.recipes.settings import Text
    from weigh.runtimes.engine import Launch, Place, Served, ServeJob, Version

CONTEXTS = ((48 * 2**30, 262144), (24 * 2**30, 32768), (0, 4096))
"""Tokens where nobody says, by the memory that there is at least."""


@dataclass(frozen=True, slots=True)
class OllamaOptions:
    """A Modelfile's parameters and the server's environment, in small letters and without OLLAMA_."""

    num_ctx: int | None = None
    """Tokens of a request (`PARAMETER num_ctx`, OLLAMA_CONTEXT_LENGTH); by the device's memory where nobody says."""
    num_gpu: Text = "all"
    """Layers on devices; Ollama fits as many as it can where nobody says, here all of them."""
    num_batch: int = 512
    """Tokens that are computed at once."""
    kv_cache_type: Text = "f16"
    """Number format of keys and values (OLLAMA_KV_CACHE_TYPE): "f16", "q8_0" or "q4_0"."""
    flash_attention: Text = "auto"
    """ "1" or "0" (OLLAMA_FLASH_ATTENTION); where nobody says, on where the back end has it."""
    main_gpu: int = 0
    """The device of what is not shared."""
    use_mmap: bool = True
    """The file is mapped."""


class Ollama(LlamaCpp):
    """Ollama."""

    name = "ollama"
    options: ClassVar[type] = OllamaOptions

    def launch(  # type: ignore[override]
        self, served: Served, job: ServeJob, options: OllamaOptions, place: Place, version: Version
    ) -> Launch:
        """What its runner, llama.cpp, takes."""
        memory = place.memory_bytes or 0
        default = next(tokens for least, tokens in CONTEXTS if memory >= least)
        asked = options.num_ctx or job.context
        context = min(asked or default, served.longest or asked or default)
        kv_dtype = job.kv_dtype if options.kv_cache_type == "f16" else options.kv_cache_type
        theirs = LlamaCppOptions(
            gpu_layers=options.num_gpu,
            ctx_size=None if options.num_ctx is None and asked else context * job.concurrency,
            batch_size=options.num_batch,
            ubatch_size=options.num_batch,
            flash_attn=options.flash_attention,
            main_gpu=options.main_gpu,
            no_mmap=not options.use_mmap,
            embeddings=True,
        )
        job = replace(job, context=context, kv_dtype=kv_dtype)
        made = super().launch(served, job, theirs, place, version)
        if asked is None:
            why = "Ollama takes 4k, 32k or 256k by the device's memory (below 24 GiB, below 48 GiB, above)"
            taken = (f"a context of {context:,} tokens", why, "the cache and the compute buffer")
            made = replace(made, assumptions=(*made.assumptions, taken))
        return made


ENGINE = Ollama()
