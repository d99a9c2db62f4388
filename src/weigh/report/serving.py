"""What serving a model takes: device by device, how many users at once, and how long their contexts can be."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from weigh import formats
from weigh.formats.prediction import predict
from weigh.records import dataclass
from weigh.report.explain import explain_assumptions
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, bar, exactly, share, table, wrap
from weigh.runtimes.engine import KV_CACHE, STATES
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from weigh.jobs.commands import ServeCommand
    from weigh.plan.serving import Change, Choice, Outcome
    from weigh.report.assumption import Assumption
    from weigh.report.speed import Speed
    from weigh.runtimes.engine import Launch, Place, Served, ServeJob, Share

CONTEXTS = tuple(2**n for n in range(10, 21))
"""Tokens, in tables: 1k to 1M."""
ENDLESS = 2**40 - 1
"""Where a search for the longest context ends without one."""
USERS = tuple(2**n for n in range(11))
"""Requests at once, in tables: 1 to 1,024."""


@dataclass(frozen=True)
class Table:
    """Which contexts and which numbers of users there is room for; worked out where it is asked for."""

    launch: Launch
    contexts: tuple[int, ...]
    users: tuple[int, ...]

    @property
    def supply(self) -> int | None:
        """Bytes that there are for the cache."""
        return self.launch.supply

    @cached_property
    def demand(self) -> tuple[tuple[int, ...], ...]:
        """Bytes that the cache needs, by context and by users."""
        return tuple(tuple(self.launch.demand(context, count) for count in self.users) for context in self.contexts)

    @cached_property
    def most_users(self) -> tuple[int | None, ...]:
        """By context."""
        return tuple(self.launch.most_users(context) for context in self.contexts)

    @cached_property
    def longest_context(self) -> tuple[int | None, ...]:
        """By users."""
        return tuple(self.launch.longest_context(count) for count in self.users)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "contexts": list(self.contexts),
            "users": list(self.users),
            "demand_bytes": [list(row) for row in self.demand],
            "supply_bytes": self.supply,
            "most_users": list(self.most_users),
            "longest_context": list(self.longest_context),
        }


@dataclass(frozen=True, eq=False, repr=False)
class ServingReport:
    """A model served, weighed."""

    served: Served
    runtime: str
    """The engine with its release: "vllm 0.21"."""
    job: ServeJob
    options: Any
    """The engine's own settings."""
    place: Place
    launch: Launch
    assumptions: tuple[Assumption, ...]
    """What was taken for granted."""
    named: str = ""
    """How the model was named."""
    command: ServeCommand | None = None
    """The command line that says so, where one was given."""
    again: Callable[[Mapping[str, Any]], tuple[Launch, ServeJob]] | None = None
    """Launches it with other settings."""

    @cached_property
    def remedies(self) -> list[Outcome]:
        """What single changes save, where it does not fit."""
        if self.verdict != "no" or self.again is None:
            return []
        from weigh.plan.serving import remedies

        is_quantized = formats.settings(self.served.config) is not None
        return remedies(self.job, self.engine, self.launch, self.context, self.again, is_quantized)

    @cached_property
    def choices(self) -> list[Choice]:
        """The model stored in each way that the engine reads."""
        if self.verdict is None or self.again is None:
            return []
        from weigh.plan.serving import choices

        stored = predict(self.served.model, None, self.served.dtype)
        parameters = sum(one.parameters * one.count for one in stored)
        return choices(self.job, self.engine, self.context, parameters, self.again)

    @property
    def engine(self) -> str:
        """Its name."""
        return self.runtime.partition(" ")[0]

    @cached_property
    def equivalents(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Command lines of every engine for the same job, and the settings that it has no flag for."""
        from weigh.jobs.commands import PROGRAMS, write
        from weigh.recipes.settings import given_words

        words = given_words(self.job) | given_words(self.options)
        words.pop("concurrency", None)  # it is no setting of theirs
        own, draft = self.engine, self.served.draft
        named = None if draft is None else draft.source.name
        experts = bool(self.served.experts_per_token)
        return {e: write(e, self.named, words, own, named, experts) for e in PROGRAMS if own in PROGRAMS}

    @property
    def context(self) -> int:
        """Tokens of a request."""
        return self.job.context or self.launch.longest or self.served.longest or 1

    @property
    def verdict(self) -> str | None:
        """Whether it fits: "yes" or "no"; None where no device is named."""
        if self.launch.supply is None:
            return None
        fits = self.launch.fits(self.context, self.job.concurrency)
        return "yes" if fits and all((share.free or 0) >= 0 for share in self.launch.shares) else "no"

    @cached_property
    def table(self) -> Table:
        """Contexts up to the longest that a request may have, and users."""
        limit = self.launch.longest or self.served.longest
        contexts = tuple(c for c in CONTEXTS if limit is None or c <= limit) or (limit or 1,)
        return Table(self.launch, contexts, USERS)

    @cached_property
    def speed(self) -> Speed:
        """How fast it is."""
        from weigh.report.speed import Speed

        return Speed(self)

    def all_assumptions(self) -> tuple[Assumption, ...]:
        """Those of the memory, and those of the speed."""
        return (*self.assumptions, *self.speed.assumptions())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        from weigh.recipes.settings import words_of

        launch, device = self.launch, self.place.device
        return {
            **header("serve", self.served.source, self.served.dtype),
            "runtime": self.runtime,
            "settings": words_of(self.job),
            "options": words_of(self.options),
            "device": None if device is None else {"name": device.name, "count": self.place.count},
            "shares": [_share_as_dict(one) for one in launch.shares],
            "cache": {
                "demand_bytes": launch.demand(self.context, self.job.concurrency),
                "supply_bytes": launch.supply,
                "tokens": launch.tokens,
                "blocks": launch.blocks,
                "block_size": launch.block_size,
            },
            "context": self.context,
            "longest_context": launch.longest_context(self.job.concurrency),
            "most_users": launch.most_users(self.context),
            "most_sequences": launch.most_sequences,
            "table": self.table.as_dict(),
            "verdict": self.verdict,
            "speed": self.speed.as_dict(),
            "remedies": [one.as_dict() for one in self.remedies],
            "command": None if self.command is None else self.command.as_dict(),
            "equivalents": {
                engine: {"command": line, "left_out": list(left)} for engine, (line, left) in self.equivalents.items()
            },
            "assumptions": [a.as_dict() for a in self.all_assumptions()],
        }

    def text(self, style: Style = PLAIN, explain: bool = False) -> str:
        """For a terminal."""
        body = (*self._head(style), *self._shares(style), *self._room(style), *self.speed.lines(style))
        return "\n".join((*body, *self._remedies(), *self._commands(style), *self._end(style, explain)))

    def _head(self, style: Style) -> list[str]:
        full = max(self.launch.shares, key=lambda share: share.num_bytes)
        devices = f" on {self.place.device.marketing_name}" if self.place.device is not None else ""
        many = f" x {self.place.count}" if self.place.count > 1 else ""
        alike = len([share for share in self.launch.shares if share.device != "host"]) < 2
        each = (" on each device" if alike else " on the fullest device") if self.place.count > 1 else ""
        stored = self.launch.weights or self.served.dtype
        users = "a request" if self.job.concurrency == 1 else f"{self.job.concurrency} requests"
        lines = [
            style.bold(f"{self.runtime} serving {self.served.source.name} takes {exactly(full.num_bytes)}{each}"),
            *wrap(f"{users} of {self.context:,} tokens{devices}{many} · weights in {stored}", style.width),
        ]
        if self.verdict is not None:
            need, supply = self.launch.demand(self.context, self.job.concurrency), self.launch.supply or 0
            word = "Fits" if self.verdict == "yes" else "Does not fit"
            room = f"of {format_bytes(supply)}" if supply > 0 else "and nothing is left"
            with_it = any(part.what.startswith("compute buffer") for part in full.parts)  # which grow with the cache
            what = "the cache and the compute buffers need" if with_it else "the cache needs"
            said = f": {what} {format_bytes(need)} {room}"
            lines.append(style.good(word, self.verdict == "yes") + said)
        return [*lines, ""]

    def _shares(self, style: Style) -> list[str]:
        lines = []
        for one in self.launch.shares:
            if len(self.launch.shares) > 1 or one.memory_bytes is not None:
                has = "" if one.memory_bytes is None else f": {format_bytes(one.memory_bytes)}"
                lines.append(f"  {style.bold(one.device)}{has}")
            whole = one.memory_bytes or one.num_bytes
            rows = [
                (
                    p.what,
                    format_bytes(p.num_bytes),
                    share(p.num_bytes, whole),
                    p.basis,
                    bar(min(p.num_bytes, whole), whole, 30),
                )
                for p in one.parts
            ]
            if one.free is not None:
                rows.append(("free", format_bytes(one.free), share(one.free, whole), "", ""))
            lines += [*table(rows, "<>><<"), ""]
        return lines

    def _room(self, style: Style) -> list[str]:
        launch = self.launch
        if launch.supply is None or not launch.demand(self.context, 1):
            return []
        held, limit = self.table, launch.most_sequences
        if not any(held.most_users) and not any(held.longest_context):
            return ["  no room for a request, however short", ""]
        lines = []
        if launch.tokens is not None:
            blocks = "" if launch.blocks is None else f" ({launch.blocks:,} blocks of {launch.block_size})"
            whose = "each replica's cache" if self.job.data > 1 else "the cache"
            lines += [f"  {whose} has room for {launch.tokens:,} tokens{blocks}"]
        context, users = launch.longest_context(self.job.concurrency) or 0, launch.most_users(self.context)
        longest = "any" if context >= ENDLESS else f"{context:,} tokens"
        lines += [f"  longest context for {self.job.concurrency} at once   {longest}"]
        lines += [f"  most at once of {self.context:,} tokens   {users:,}", ""]
        lines += ["  most users for a context, longest context for so many users"]
        lines += table(
            [
                ("context", *map(format_tokens, held.contexts)),
                ("users", *(f"{n:,}" for n in held.most_users)),
            ],
            "<" + ">" * len(held.contexts),
        )
        lines += table(
            [
                ("users", *(f"{n:,}" for n in held.users)),
                ("context", *(format_tokens(n or 0) for n in held.longest_context)),
            ],
            "<" + ">" * len(held.users),
        )
        if limit is not None and limit < max(users or 0, *(n or 0 for n in held.most_users)):
            lines += [f"  as it is started, no more than {limit:,} run at once; others wait"]
        return [*lines, ""]

    def _remedies(self) -> list[str]:
        if not self.remedies:
            return ["  nothing that was tried makes it fit", ""] if self.verdict == "no" else []
        rows = [("what would change it", "saves", "", "asks for")]
        for one in self.remedies:
            left = "fits" if not one.short else f"short of {format_bytes(one.short)}"
            rows += _lines_of(one.change, format_bytes(one.saving), left)
        return [*table(rows, "<><<"), ""]

    def advice(self, style: Style = PLAIN) -> str:
        """Which quantization to choose: the most bits that fit."""
        from weigh.plan.serving import advised

        best = advised(self.choices)
        users = "a request" if self.job.concurrency == 1 else f"{self.job.concurrency} requests"
        head = f"No way to store {self.served.source.name} fits {users} of {self.context:,} tokens"
        if best is not None:
            head = f"Store {self.served.source.name} {_in(best.method)} for {users} of {self.context:,} tokens"
        rows = [("weights", "bits", "on the fullest device", "most users", "longest context", "")]
        for one in self.choices:
            size, users_of, tokens = format_bytes(one.weights), f"{one.most_users:,}", f"{one.longest_context:,}"
            said = "fits" if one.fits else "does not fit"
            rows.append((one.method, f"{one.bits:.2f}", size, users_of, tokens, said))
        why = "Of those that fit, the one with the most bits a weight is named: what fewer bits cost is not weighed."
        return "\n".join([style.bold(head), "", *table(rows, "<>>>><"), "", *wrap(why, style.width)])

    def _commands(self, style: Style) -> list[str]:
        """The flags of a command line, and the same job for other engines."""
        if self.command is None:
            return []
        lines = []
        if self.command.harmless:
            lines += wrap(f"Flags that do not matter to memory: {', '.join(self.command.harmless)}.", style.width)
        lines += ["The same as other engines are started:"]
        own = self.engine
        for engine, (line, left) in self.equivalents.items():
            if engine != own:
                lines.append(f"  {line}")
                lines += [f"    which has no flag for {', '.join(left)}"] if left else []
        return [*lines, ""]

    def _end(self, style: Style, explain: bool) -> list[str]:
        if explain:
            lines = [style.bold("How the number comes about")]
            for part in dict.fromkeys(part for share in self.launch.shares for part in share.parts):
                lines += wrap(f"{part.what}: {part.source}", style.width, "  ")
            return [*lines, *explain_assumptions(self.all_assumptions(), style)]
        if not self.all_assumptions():
            return []
        taken = "; ".join(a.what for a in self.all_assumptions())
        return [style.dim(line) for line in wrap(f"Assumed (--explain says why): {taken}.", style.width)]

    def svg(self) -> str:
        """The table as a heat map, as the text of an SVG file."""
        from weigh.report.heat_map import draw

        return draw(self)

    @property
    def cache_bytes(self) -> int:
        """Keys, values and states on the fullest device."""
        return max(share.of(KV_CACHE) + share.of(STATES) for share in self.launch.shares)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.served.source.name} in {self.runtime}: {self.verdict or 'no device'}>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text())


def _lines_of(change: Change, saving: str, left: str) -> Iterator[tuple[str, str, str, str]]:
    """A row of a change; of several together a row of each, for they would be too wide."""
    whats = change.what.split(" + ")
    for number, (what, price) in enumerate(zip(whats, change.price.split(" + "), strict=True)):
        more = " +" if number < len(whats) - 1 else ""
        yield what + more, saving if not number else "", left if not number else "", price


def _in(method: str) -> str:
    return method if method == "as it is" else f"in {method}"


def format_tokens(tokens: int) -> str:
    """Tokens in few characters; "any" where nothing grows with them.

    >>> format_tokens(32768), format_tokens(40000), format_tokens(2**20)
    ('32k', '40,000', '1M')
    """
    if tokens >= ENDLESS:
        return "any"
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if tokens and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"


def _share_as_dict(one: Share) -> dict[str, Any]:
    return {
        "device": one.device,
        "memory_bytes": one.memory_bytes,
        "bytes": one.num_bytes,
        "free_bytes": one.free,
        "parts": [
            {"what": p.what, "of": p.of, "bytes": p.num_bytes, "basis": p.basis, "source": p.source} for p in one.parts
        ],
    }


def _bar(size: int, whole: int) -> str:
    """A share of the device; full where it is more."""
    return bar(min(size, whole), whole, 30)
