"""Contexts by users by devices: whether each fits, what its cache takes, and how fast it is.

On each device one server is weighed, started for the longest of the contexts and the most of the users; every cell asks
it whether there is room for so many requests of so many tokens, which is what a report on that cell alone says too
(llama.cpp's compute buffers are those between sizes that were worked out: up to half a percent more).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.plan.serving import AS_ASKED
from weigh.report.explain import explain_assumptions
from weigh.report.header import header
from weigh.report.serving import format_tokens
from weigh.report.speed import few, format_seconds
from weigh.report.text import PLAIN, Style, table, wrap
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from weigh.report.assumption import Assumption
    from weigh.report.serving import ServingReport
    from weigh.report.speed import Decode, Prefill

WIDEST = 20
"""Numbers of users beside each other in the text; more of them go below."""

COLUMNS = (
    *("device", "count", "context", "users", "fits", "cache_bytes", "room_bytes"),
    *("first_token_seconds", "tokens_per_second_each", "least_each", "most_each", "tokens_per_second_together"),
    "waits_for",
)
"""Of the CSV."""


class Cell(NamedTuple):
    """So many requests of so many tokens on a device."""

    context: int
    """Tokens of each, its answer included."""
    users: int
    fits: bool
    cache_bytes: int
    """What their keys, values and states (and all that grows with them) take on the fullest device."""
    decode: Decode | None
    """A step of them, where it fits and its speed is said: of one replica, where there are several."""
    range: tuple[float, float]
    """Tokens a second for each, of the slow and the fast end of the measured cases."""


class DeviceGrid:
    """The cells of one device, or of several that share the model."""

    def __init__(self, report: ServingReport, contexts: Sequence[int], users: Sequence[int]) -> None:
        self.report = report
        self.room = report.launch.supply or 0
        """Bytes that there are for the cache on the fullest device; less than nothing where the weights do not fit."""
        device = report.place.device
        assert device is not None, "a grid is over devices"
        self.device, self.count = device, report.place.count
        speed = report.speed
        self.unsaid: str | None = speed.unsaid
        """Why nothing is said of its speed."""
        self.prefills: dict[int, Prefill] = {}
        """By context: a prompt that leaves room for one token more, alone."""
        if self.unsaid is None:
            self.prefills = {context: speed.prefill(max(1, context - 1)) for context in contexts}
        self._stands = report.engine in AS_ASKED or all((share.free or 0) >= 0 for share in report.launch.shares)
        self.rows = tuple(tuple(self.cell(context, n) for n in users) for context in contexts)
        """By context, then by users."""

    def cell(self, context: int, users: int) -> Cell:
        """One of them, or another."""
        need = self.report.launch.demand(context, users)
        fits = self._stands and need <= self.room
        if not fits or self.unsaid is not None:
            return Cell(context, users, fits, need, None, (0.0, 0.0))
        speed = self.report.speed
        decode = speed.decode(speed.of_replica(users), context)
        low, high = speed.ends(decode.users)
        return Cell(context, users, fits, need, decode, (decode.each * low, decode.each * high))

    @property
    def name(self) -> str:
        """As its maker calls it, and how many."""
        return self.device.marketing_name + (f" x {self.count}" if self.count > 1 else "")

    @property
    def short(self) -> str:
        """As it is named in words: "h100x2"."""
        return self.device.name + (f"x{self.count}" if self.count > 1 else "")

    @property
    def fitting(self) -> int:
        """Cells that fit."""
        return sum(cell.fits for row in self.rows for cell in row)

    def together(self, cell: Cell) -> float:
        """Tokens a second of all replicas."""
        return 0.0 if cell.decode is None else cell.decode.each * cell.users

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "device": self.device.name,
            "count": self.count,
            "room_bytes": self.room,
            "speed_unsaid": self.unsaid,
            "first_token": [
                {"context": context, "prompt": p.prompt, **self.report.speed.times(p.pace.seconds, 1, of_prompt=True)}
                for context, p in self.prefills.items()
            ],
            "cells": [self._cell_as_dict(cell) for row in self.rows for cell in row],
        }

    def _cell_as_dict(self, cell: Cell) -> dict[str, Any]:
        speed = None
        if cell.decode is not None:
            speed = {
                "each": cell.decode.each,
                "least_each": cell.range[0],
                "most_each": cell.range[1],
                "together": self.together(cell),
                "waits_for": cell.decode.pace.waits_for,
            }
        return {
            "context": cell.context,
            "users": cell.users,
            "fits": cell.fits,
            "cache_bytes": cell.cache_bytes,
            "tokens_per_second": speed,
        }

    def csv(self) -> Iterator[str]:
        """A line a cell."""
        for row in self.rows:
            for cell in row:
                first = self.prefills.get(cell.context)
                head = (self.device.name, self.count, cell.context, cell.users, str(cell.fits).lower())
                fast: tuple[object, ...] = ("",) * 6
                if cell.decode is not None and first is not None:
                    figures = (first.pace.seconds, cell.decode.each, *cell.range, self.together(cell))
                    fast = (*(f"{figure:.6g}" for figure in figures), cell.decode.pace.waits_for)
                yield ",".join(map(str, (*head, cell.cache_bytes, self.room, *fast)))

    def lines(self, users: Sequence[int], style: Style) -> list[str]:
        """What its cells take, and how fast they are."""
        lines = [style.bold(self.name)]
        if self.room <= 0:
            return [*lines, f"  no room for a cache: {format_bytes(-self.room)} short", ""]
        for start in range(0, len(users), WIDEST):
            part = slice(start, start + WIDEST)
            heads = [f"{n:,}" for n in users[part]]
            rows = [("context", *heads)]
            rows += [(format_tokens(row[0].context), *(self._share(cell) for cell in row[part])) for row in self.rows]
            lines += [f"  what so many users of a context need of the cache's {format_bytes(self.room)}"]
            lines += table(rows, "<" + ">" * len(heads), indent=4)
            if self.unsaid is None:
                lines += ["  the first token of an idle server; tokens/s for each of so many users"]
                lines += table([("context", "first", *heads), *self._speeds(part)], "<" + ">" * (1 + len(heads)), 4)
        if self.unsaid is not None:
            lines += wrap(f"How fast is not said: {self.unsaid}", style.width, "  ")
        return [*lines, ""]

    def _share(self, cell: Cell) -> str:
        return f"{100 * cell.cache_bytes / self.room:.0f} %" if cell.fits else "-"

    def _speeds(self, part: slice) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            first = format_seconds(self.prefills[row[0].context].pace.seconds) if row[0].fits else "-"
            each = ("-" if cell.decode is None else few(cell.decode.each) for cell in row[part])
            yield format_tokens(row[0].context), first, *each


class ServingGrid:
    """A model served on several devices, for several contexts and numbers of users."""

    def __init__(self, reports: Sequence[ServingReport], contexts: Sequence[int], users: Sequence[int]) -> None:
        self.reports = tuple(reports)
        """One a device."""
        self.contexts = tuple(contexts)
        self.users = tuple(users)
        self.devices = tuple(DeviceGrid(report, contexts, users) for report in reports)

    @property
    def fits(self) -> bool:
        """Whether any cell fits."""
        return any(one.fitting for one in self.devices)

    @cached_property
    def assumptions(self) -> tuple[Assumption, ...]:
        """Of all devices; what is taken of some only says of which."""
        found: dict[Assumption, list[str]] = {}
        for one in self.devices:
            for assumption in one.report.all_assumptions():
                found.setdefault(assumption, []).append(one.short)
        return tuple(a._replace(what=self._of(a.what, names)) for a, names in found.items())

    def _of(self, what: str, names: Sequence[str]) -> str:
        return what if len(names) == len(self.devices) else f"{what} ({', '.join(names)})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        from weigh.recipes.settings import words_of

        first = self.reports[0]
        return {
            **header("serve_grid", first.served.source, first.served.dtype),
            "runtime": first.runtime,
            "settings": words_of(first.job),
            "options": words_of(first.options),
            "contexts": list(self.contexts),
            "users": list(self.users),
            "devices": [one.as_dict() for one in self.devices],
            "assumptions": [a.as_dict() for a in self.assumptions],
        }

    def csv(self) -> str:
        """Every cell, as comma-separated values."""
        return "\n".join((",".join(COLUMNS), *(line for one in self.devices for line in one.csv()))) + "\n"

    def text(self, style: Style = PLAIN, explain: bool = False) -> str:
        """For a terminal."""
        first = self.reports[0]
        stored = first.launch.weights or first.served.dtype
        what = f"{first.runtime} serving {first.served.source.name}"
        longest, most = self.contexts[-1], self.users[-1]
        users = "a request" if most == 1 else f"{most:,} requests"
        said = f"weights in {stored} · servers started for {users} of {longest:,} tokens at most"
        lines = [style.bold(what), *wrap(said, style.width), "", *self._overview(), ""]
        if len(self.contexts) * len(self.users) > 1:
            for one in self.devices:
                lines += one.lines(self.users, style)
        return "\n".join([*lines, *self._end(style, explain)])

    def _overview(self) -> list[str]:
        """One line a device: its room, and what it does with the longest of the contexts."""
        longest, most, pairs = self.contexts[-1], self.users[-1], len(self.contexts) * len(self.users)
        of, last = f"of {format_tokens(longest)}", "" if pairs == 1 else f"of {pairs:,}"
        numbers = sorted({1, most})
        users = ["1 user" if n == 1 else f"{n:,} users" for n in numbers]
        heads = ("", "room for", "most users", "first token", *("tokens/s" for _ in numbers), "in all", "")
        rows: list[tuple[str, ...]] = [heads, ("device", "the cache", of, of, *users, "", last)]
        for one in self.devices:
            count = one.report.launch.most_users(longest)
            decodes = [one.cell(longest, n) for n in numbers]
            first = one.prefills.get(longest) if decodes[0].fits else None
            said = ("fits" if one.fitting else "does not fit") if pairs == 1 else f"{one.fitting:,} fit"
            rows.append(
                (
                    *(one.name, format_bytes(one.room) if one.room > 0 else "none"),
                    "any" if count is None else f"{count:,}",
                    "-" if first is None else format_seconds(first.pace.seconds),
                    *("-" if cell.decode is None else few(cell.decode.each) for cell in decodes),
                    "-" if decodes[-1].decode is None else few(one.together(decodes[-1])),
                    said,
                )
            )
        return table(rows, "<" + ">" * (len(heads) - 2) + "<")

    def _end(self, style: Style, explain: bool) -> list[str]:
        if explain:
            return explain_assumptions(self.assumptions, style)
        if not self.assumptions:
            return []
        found: dict[str, list[str]] = {}
        for one in self.devices:
            for what in dict.fromkeys(a.what for a in one.report.all_assumptions()):
                found.setdefault(what, []).append(one.short)
        taken = "; ".join(self._of(what, names) for what, names in found.items())
        return [style.dim(line) for line in wrap(f"Assumed (--explain says why): {taken}.", style.width)]

    def svg(self) -> str:
        """A panel a device, as the text of an SVG file."""
        from weigh.report.grid_picture import draw

        return draw(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        name, pairs = self.reports[0].served.source.name, len(self.contexts) * len(self.users)
        return f"<{name} in {self.reports[0].runtime}: {len(self.devices)} devices, {pairs} cells each>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text())
