"""What generating takes: the peaks of reading the prompt and of writing, and the keys and values at the end."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from weigh.records import dataclass
from weigh.report.assumption import EXACT
from weigh.report.run import RunReport
from weigh.report.text import exactly
from weigh.report.work import flops_by_phase, format_flops
from weigh.trace.events import DECODE, KV_CACHE, PREFILL, RECURRENT_STATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.recipes.generation import Generation, GenerationRun
    from weigh.report.assumption import Assumption
    from weigh.report.pace import GenerationPace


@dataclass(frozen=True, eq=False, repr=False)
class GenerationReport(RunReport):
    """A generation, weighed."""

    kind: ClassVar[str] = "generate"
    doing: ClassVar[str] = "Generating with"
    run: GenerationRun

    @property
    def recipe(self) -> Generation:
        """How it generates."""
        return self.run.recipe

    @property
    def kv_cache(self) -> int:
        """Bytes of keys and values at the end."""
        return sum(count * size for count, size, _ in self._keys_and_values())

    @property
    def kv_cache_per_token(self) -> int:
        """Bytes of keys and values of one token of one sequence, in all layers."""
        return sum(count * size // tokens for count, size, tokens in self._keys_and_values())

    @property
    def recurrent_state(self) -> int:
        """Bytes of the states of constant size that recurrent layers keep, at the end."""
        kept = [(a.num_bytes, count) for a, count in self.memory.live_at_end() if a.purpose == RECURRENT_STATE]
        return sum(count * int(size) for size, count in kept)  # type: ignore[arg-type, misc]

    @cached_property
    def pace(self) -> GenerationPace | None:
        """How long it takes on the device that is named."""
        from weigh.report.pace import generation_pace

        return generation_pace(self)

    def all_assumptions(self) -> tuple[Assumption, ...]:
        from weigh.report.pace import GENERATION_ASSUMED

        said = super().all_assumptions()
        return said if self.pace is None else (*said, GENERATION_ASSUMED)

    def _keys_and_values(self) -> Iterator[tuple[int, int, int]]:
        """The storages of the cache at the end: how many are alike, the bytes of one, the tokens in it."""
        for allocation, count in self.memory.live_at_end():
            if allocation.purpose == KV_CACHE and len(allocation.shape) == 4:
                batch, _, length, _ = allocation.shape
                yield count, int(allocation.num_bytes), int(batch * length)  # type: ignore[arg-type]

    def _peak_of(self, phase: str) -> int:
        return self.memory.peak_of(lambda p: p.mark.phase == phase)

    def figures(self) -> dict[str, Any]:
        return {
            "prefill": {"peak_bytes": self._peak_of(PREFILL)},
            "decode": {"peak_bytes": self._peak_of(DECODE)},
            "kv_cache": {"bytes": self.kv_cache, "bytes_per_token": self.kv_cache_per_token, "basis": EXACT},
            "recurrent_state": {"bytes": self.recurrent_state, "basis": EXACT},
            "prefill_flops": {"total": flops_by_phase(self.run.trace).get(PREFILL, 0), "basis": EXACT},
            "speed": self.pace and self.pace.as_dict(),
        }

    def summary(self) -> str:
        r = self.recipe
        said = [
            self.parameters_note(),
            r.dtype.name,
            f"batch {r.batch} x {r.prompt} tokens of prompt",
            f"{r.new_tokens} new tokens",
            f"{r.cache} cache",
            f"{r.attention} attention" + (f" ({r.attention_kernel})" if r.attention_kernel else ""),
        ]
        if r.beams > 1:
            said.append(f"{r.beams} beams")
        if r.returned > 1:
            said.append(f"{r.returned} sequences returned")
        if r.device != "cuda":
            said.append(f"on the {r.device.upper()}")
        return " · ".join(said)

    def chart_title(self) -> str:
        return f"Memory while generating: the peak is {self.where()}"

    def notes(self) -> list[str]:
        prefill = flops_by_phase(self.run.trace).get(PREFILL, 0)
        state = self.recurrent_state
        return [
            f"  prefill    {exactly(self._peak_of(PREFILL))}",
            f"  decode     {exactly(self._peak_of(DECODE))}",
            f"  KV cache   {exactly(self.kv_cache)}, {self.kv_cache_per_token:,} bytes a token and sequence",
            *([f"  states     {exactly(state)} of recurrent layers, however long the text"] if state else []),
            f"  arithmetic {format_flops(prefill)} to read the prompt",
            *(self.pace.lines() if self.pace is not None else ()),
        ]
