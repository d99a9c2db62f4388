"""Generation: prefill, then decoding token by token, as transformers 5.23 does it (`generation/utils.py`).

Greedy decoding, several returned sequences, beam search with its reordered cache, and assisted decoding with a draft
model. The steps between the first two tokens and the last two add nothing new (a step's peak grows with the length of
the cache), so the cache is set to the length it has before the last two and these are run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from weigh import models
from weigh.dims import Size
from weigh.dtypes import BFLOAT16, FLOAT32, INT32, INT64, DType
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import ops
from weigh.ghost.ledger import Ledger, NotSteady
from weigh.ghost.nn import Parameter
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import no_grad, recording, state
from weigh.ghost.tensor import Tensor
from weigh.kernels import kernels
from weigh.kernels.workspaces import Workspaces
from weigh.models.common import Cache, CausalModel, CausalOutput, StaticCache
from weigh.models.experts import BATCHED
from weigh.models.seq2seq import EncoderDecoderModel
from weigh.records import dataclass
from weigh.trace.events import DECODE, KV_CACHE, PREFILL, Trace

CACHES = ("dynamic", "static")


@dataclass(frozen=True, slots=True)
class Generation:
    """How a model generates. Sizes may be arrays' dimensions (see `weigh.dims`)."""

    batch: Size = 1
    """Prompts at once."""
    prompt: Size = 1024
    """Tokens in a prompt."""
    new_tokens: int = 128
    """Tokens to generate."""
    dtype: DType = BFLOAT16
    """Of all parameters, and so of the cache."""
    attention: str = "sdpa"
    """transformers' attention implementation: "sdpa", "flash_attention_2", or "eager", all that some families have."""
    attention_kernel: str | None = None
    """Forces the kernel behind sdpa: "flash", "efficient", "cudnn" or "math"."""
    cache: str = "dynamic"
    """ "dynamic" grows by concatenation, "static" has its full length from the start."""
    logits_to_keep: int = 1
    """Positions whose logits the head computes (`generate` asks for 1; 0 is all of them)."""
    beams: int = 1
    """Beams of a beam search."""
    returned: int = 1
    """Sequences returned for each prompt; without beams each is a sequence of its own in the batch."""
    draft_tokens: int = 20
    """Tokens that an assistant drafts before the model checks them."""
    compute_capability: str = "8.0"
    """Of the CUDA device: it decides how large the matrix library's workspace is."""
    device: str = "cuda"
    """Whose kernels run: "cuda" or "cpu"."""
    bare: bool = False
    """Call the model and take the argmax, without what `generate` keeps around it (as the recorded witnesses do)."""
    traced: bool = False
    """Run as a dispatch mode over fake tensors sees it (for comparison with recorded witnesses)."""
    unchecked_attention: bool = False
    """CUDA's choice of the attention kernel without its checks of heads and widths (as the recorded rows have it)."""


@dataclass(slots=True)
class GenerationRun:
    """The trace of a generation, and what generated."""

    recipe: Generation
    trace: Trace
    parameters: list[Parameter]


def run(
    config: Mapping[str, Any],
    recipe: Generation,
    where: str = "config",
    assistant: Mapping[str, Any] | None = None,
    unroll: bool = False,
) -> GenerationRun:
    """Generate with the model of a config on ghost tensors; `assistant` is the config of a draft model.

    Raises:
        InputError: a config cannot be read.
        UsageError: settings that `generate` refuses (an assistant with a batch or with beams, ...).
    """
    _check(recipe, assistant is not None)
    try:
        with unrolled(unroll):
            return _run(config, recipe, where, assistant)
    except NotSteady:
        with unrolled():
            return _run(config, recipe, where, assistant)


def _check(recipe: Generation, assisted: bool) -> None:
    if recipe.cache not in CACHES:
        raise UsageError(f"there is no cache {recipe.cache!r}", where="cache", hint=f"Use one of: {', '.join(CACHES)}.")
    if recipe.new_tokens < 1:
        raise UsageError(f"cannot generate {recipe.new_tokens} tokens", where="new_tokens", hint="Give at least 1.")
    if recipe.beams > 1 and recipe.returned > recipe.beams:
        raise UsageError(
            f"{recipe.beams} beams cannot return {recipe.returned} sequences", where="returned", hint="Use more beams."
        )
    if assisted and (recipe.batch != 1 or recipe.beams > 1 or recipe.returned > 1):
        raise UsageError(
            "an assistant drafts for one sequence at a time", where="assistant", hint="Use batch 1, and no beams."
        )
    if assisted and recipe.cache == "static":
        raise UsageError("an assistant needs the dynamic cache", where="cache", hint="Leave the cache out.")


def _run(
    config: Mapping[str, Any], recipe: Generation, where: str, assistant: Mapping[str, Any] | None
) -> GenerationRun:
    for checked in (config, assistant):
        if checked is not None:
            models.check_attention(checked, recipe.attention)
    chosen = kernels(recipe.device, recipe.attention_kernel, recipe.traced, recipe.unchecked_attention)
    with (
        recording(chosen, traced=recipe.traced, attention=recipe.attention) as ledger,
        no_grad(),
    ):
        if recipe.device == "cuda" and not recipe.traced:
            ledger.on_phase = Workspaces(recipe.compute_capability).begin
        model = models.build(config, recipe.dtype, where, to_run=True)
        model.train(False)
        draft = models.build(assistant, recipe.dtype, "assistant", to_run=True) if assistant is not None else None
        if draft is not None:
            draft.train(False)
        input_ids = model.inputs(recipe.batch, recipe.prompt, recipe.dtype)
        caches = models.uses_cache(config)
        if not caches and model.encoder_decoder:
            raise NotModelledError("an encoder-decoder that keeps nothing", where=f"{where}: use_cache")
        if not caches and draft is not None:
            raise UsageError("an assistant needs a cache", where=f"{where}: use_cache", hint="Set it to true.")
        if recipe.bare:
            held = _bare(model, recipe, ledger, input_ids)
        elif draft is not None:
            held = _assisted(model, draft, recipe, ledger, input_ids)
        elif recipe.beams > 1:
            held = _beam_search(model, recipe, ledger, input_ids, caches)
        else:
            held = _greedy(model, recipe, ledger, input_ids, caches)
        trace = ledger.trace()
        del held
        return GenerationRun(recipe, trace, model.parameters())


def _prompt(recipe: Generation, model: CausalModel) -> Size:
    """Tokens that the decoder begins with: one, where the encoder reads the prompt."""
    return 1 if model.encoder_decoder and model.features is None else recipe.prompt


def _new_cache(recipe: Generation, model: CausalModel) -> Cache:
    if recipe.cache == "static" and model.encoder_decoder:
        raise NotModelledError("a static cache of an encoder-decoder", where="cache", hint="Leave the cache out.")
    if recipe.cache == "static":
        return StaticCache(recipe.prompt + (recipe.new_tokens - 1), dense_masks=True)
    return Cache()


def _steps(past: Cache | _Inputs, prompt: Size, count: int) -> Iterator[int]:
    """The numbers of the decoding steps that are run: all of a few, else the first two and the last two."""
    for number in range(count):
        if count > 6 and number == 2:
            past.fill(prompt + (count - 2))
        if count <= 6 or number < 2 or number >= count - 2:
            yield number


def _bare(model: CausalModel, recipe: Generation, ledger: Ledger, input_ids: Tensor) -> Any:
    cache = StaticCache(recipe.prompt + recipe.new_tokens) if recipe.cache == "static" else None
    first = cache or Cache()
    heard = None
    if model.features is not None:
        heard, input_ids = input_ids, ops.input_tensor((recipe.batch, recipe.prompt), INT64)
    ledger.mark(PREFILL, 0)
    if heard is not None:
        assert isinstance(model, EncoderDecoderModel)
        first.encoder_output = model.encode(heard)
    out = model(input_ids, None, first, recipe.logits_to_keep)
    past = out.cache
    next_tokens = ops.argmax(_last(out.logits))
    del out
    for number in _steps(past, recipe.prompt, recipe.new_tokens):
        ledger.mark(DECODE, number)
        out = model(next_tokens, None, past, recipe.logits_to_keep)
        past = out.cache
        next_tokens = ops.argmax(_last(out.logits))
        del out
    return past, next_tokens, input_ids


def _last(logits: Tensor) -> Tensor:
    """`logits[:, -1:]`."""
    return logits.narrow(1, 1)


class _Inputs:
    """What `generate` keeps beside the cache: ids and positions, each a token longer after every step.

    The caller's mask of ones makes the positions; then `generate` drops it, so that the model sees none.
    """

    def __init__(
        self, model: CausalModel, cache: Cache, input_ids: Tensor, copies: int, caches: bool, prompt: Size
    ) -> None:
        self.cache = cache
        self.caches = caches
        """Whether the model is given the cache; without it, the model sees every token again in every step."""
        self.segment = ops.clone(input_ids) if model.features is not None else None
        """Of the sound, which Whisper's own `generate` takes piece by piece."""
        self.attention_mask = None if model.features is not None else ops.ones(input_ids.shape, INT64)
        self.positions: Tensor | None = None
        if model.takes_positions and self.attention_mask is not None:
            counted = ops.cumsum(self.attention_mask)
            self.positions = counted - 1
            del counted
            self.positions = model.prepare_positions(self.positions)
        self.input_ids = input_ids
        if isinstance(model, EncoderDecoderModel):
            self._encode(model, cache, copies, prompt)
        if copies > 1:
            self.input_ids = ops.repeat_interleave(self.input_ids, copies)
        if copies > 1 and self.positions is not None:
            self.positions = ops.repeat_interleave(self.positions, copies, self.positions.ndim - 2)
        self.first_positions = self.positions
        """Which `generate` has in its own `model_kwargs`, whatever becomes of those of the loop."""

    def _encode(self, model: EncoderDecoderModel, cache: Cache, copies: int, prompt: Size) -> None:
        """The encoder's output and its mask for every beam; the decoder begins with `prompt` tokens."""
        output, mask = model.encode(self.input_ids, self.attention_mask), self.attention_mask
        self.input_ids = ops.ones((self.input_ids.shape[0], prompt), INT64) * 1
        if copies > 1:
            mask = ops.repeat_interleave(mask, copies) if mask is not None else None
            output = ops.repeat_interleave(output, copies)
        cache.encoder_output, cache.encoder_mask = output, mask

    def fill(self, length: Size) -> None:
        """Pretend that `length` tokens were seen one by one, and the next one was found."""
        self.cache.fill(length)
        if not self.caches:
            self.input_ids = ops.full((self.input_ids.shape[0], length + 1), INT64)
        if not self.caches and self.positions is not None:
            self.positions = ops.full((*self.positions.shape[:-1], length + 1), INT64)

    def call(self, model: CausalModel, keep: int, new: Size | None = None) -> CausalOutput:
        """Run the model on the last `new` tokens, or on all of them (`prepare_inputs_for_generation`)."""
        ids, positions = self.input_ids, self.positions
        if new is not None and self.caches:
            ids = ids.narrow(1, new)
            positions = ops.clone_contiguous(positions.narrow(-1, new)) if positions is not None else None
        ids = ops.clone_contiguous(ids)
        out: CausalOutput = model(ids, None, self.cache if self.caches else None, keep, None, positions)
        return out

    def extend(self) -> None:
        """The position of one more token (`_update_model_kwargs_for_generation`)."""
        if self.positions is None:
            return
        following = ops.arange(1).view(*(1,) * self.positions.ndim) + self.positions.narrow(-1, 1)
        following = following + 1
        self.positions = ops.cat([self.positions, following], -1)


def _greedy(model: CausalModel, recipe: Generation, ledger: Ledger, input_ids: Tensor, caches: bool) -> Any:
    """`_sample` without sampling: the last logits are copied to fp32, the best token is appended."""
    ledger.mark(PREFILL, 0)
    cache = _new_cache(recipe, model)
    inputs = _Inputs(model, cache, input_ids, recipe.returned, caches, _prompt(recipe, model))
    unfinished = ops.ones((inputs.input_ids.shape[0],), INT64)
    outputs = inputs.call(model, recipe.logits_to_keep)
    if recipe.device != "cpu":
        state.overrides["experts"] = BATCHED  # `_optimize_model_for_decode`
    for number in chain([-1], _steps(inputs, _prompt(recipe, model), recipe.new_tokens - 1)):
        if number >= 0:
            ledger.mark(DECODE, number)
            outputs = inputs.call(model, recipe.logits_to_keep, 1)
        inputs.extend()
        next_token_logits = ops.copy_to(ops.select(outputs.logits, 1), FLOAT32)
        next_tokens = ops.argmax(next_token_logits)
        inputs.input_ids = ops.cat([inputs.input_ids, next_tokens.unsqueeze(1)], -1)
        del outputs
    return cache, inputs, unfinished


def _beam_search(model: CausalModel, recipe: Generation, ledger: Ledger, input_ids: Tensor, caches: bool) -> Any:
    """`_beam_search`: scores of every beam and word in fp32, and a cache that is picked anew for every token."""
    ledger.mark(PREFILL, 0)
    batch, beams = recipe.batch, recipe.beams
    kept = 2 * beams
    cache = _new_cache(recipe, model)
    inputs = _Inputs(model, cache, input_ids, beams, caches, _prompt(recipe, model))
    length = _prompt(recipe, model) + recipe.new_tokens
    running_sequences = ops.full((batch, beams, length), INT64)
    sequences = ops.clone(running_sequences)
    running_scores = ops.zeros((batch, beams), FLOAT32)
    running_indices = ops.full((batch, beams, recipe.new_tokens), INT32)
    prompts = inputs.input_ids
    outputs = inputs.call(model, recipe.logits_to_keep)
    for number in _steps(inputs, _prompt(recipe, model) - 1, recipe.new_tokens):  # the first of them fills the cache
        if number:
            ledger.mark(DECODE, number - 1)
            if not caches:
                seen = running_sequences.narrow(-1, _prompt(recipe, model) + number)
                inputs.input_ids = seen.reshape(batch * beams, seen.shape[-1])
            outputs = inputs.call(model, recipe.logits_to_keep, 1)
        inputs.extend()
        logits = ops.copy_to(ops.select(outputs.logits, 1), FLOAT32)
        log_probs = ops.log_softmax(logits)
        del outputs
        log_probs = log_probs.view(batch, beams, -1)
        log_probs = log_probs + running_scores.unsqueeze(-1)
        log_probs = log_probs.view(batch, -1)
        top_scores, top_indices = ops.topk(log_probs, kept)
        top_sequences = ops.gather(running_sequences, top_indices, (batch, kept, length))
        running_sequences = ops.gather(top_sequences, top_indices, (batch, beams, length))
        running_scores = ops.gather(top_scores, top_indices, (batch, beams))
        running_indices = ops.gather(running_indices, top_indices, (batch, beams, recipe.new_tokens))
        merged = ops.cat([sequences, top_sequences], 1)
        sequences = ops.gather(merged, top_indices, (batch, beams, length))
        del merged
        beam_idx = ops.select(running_indices, -1).reshape(-1)
        cache.rewrite(lambda x, index=beam_idx: ops.index_select(x, index))  # type: ignore[misc]
    return cache, inputs, prompts, running_sequences, sequences


def _assisted(model: CausalModel, draft: CausalModel, recipe: Generation, ledger: Ledger, input_ids: Tensor) -> Any:
    """`_assisted_decoding`, every drafted token accepted; the first and the last round of drafting and checking.

    The draft's logits are kept in fp32 until the model has checked them.
    """
    ledger.mark(PREFILL, 0)
    cache, draft_cache = Cache(rollback=True), Cache(rollback=True)
    each = recipe.draft_tokens + 1
    rounds = -(-recipe.new_tokens // each)
    for number in sorted({0, rounds - 1}):
        if number:
            ledger.mark(DECODE, number - 1)
            cache.fill(recipe.prompt + (number * each - 1))
            draft_cache.fill(recipe.prompt + (number * each - 2))
        drafted = min(recipe.draft_tokens, recipe.new_tokens - number * each)
        _draft_and_check(model, draft, cache, draft_cache, input_ids, drafted, recipe.prompt + number * each)
    return cache, draft_cache


def _draft_and_check(
    model: CausalModel,
    draft: CausalModel,
    cache: Cache,
    draft_cache: Cache,
    input_ids: Tensor,
    drafted: int,
    length: Size,
) -> None:
    attention_mask = ops.ones((1, length), INT64)
    positions = ops.ones((1, length + drafted), INT64)
    token = input_ids if not cache.layers else input_ids.narrow(1, 2)
    scores: list[Tensor] = []
    for _ in range(drafted):
        out = draft(ops.clone_contiguous(token), None, draft_cache, 1, attention_mask)
        scores.append(ops.copy_to(ops.select(out.logits, 1), FLOAT32))
        del out
        token = ops.argmax(scores[-1]).unsqueeze(1)
    candidate_logits = ops.stack(scores) if scores else None
    scores.clear()
    candidates = ops.full((1, length + drafted), INT64)
    checked = candidates.narrow(1, drafted + 1) if cache.layers else candidates
    checked = ops.clone_contiguous(checked)
    outputs = model(checked, None, cache, drafted + 1, None, positions.narrow(1, checked.shape[1]))
    new_logits = ops.copy_to(outputs.logits, FLOAT32)
    next_token_logits = ops.clone(new_logits)
    ops.argmax(new_logits)
    del candidate_logits, next_token_logits


def kv_cache_bytes(run: GenerationRun) -> Size:
    """The bytes of keys and values at the end."""
    from weigh.trace.peak import Moment, breakdown

    trace = run.trace
    last = len(trace.spans) - 1
    at_end = Moment(last, trace.spans[last].count - 1, len(trace.events) - 1)
    return breakdown(trace, at_end, lambda a: a.purpose).get(KV_CACHE, 0)
