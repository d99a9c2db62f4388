"""The working behind a report: which tensors make each figure, by which rule, and where the rule is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.models import FAMILIES
from weigh.report.dimensions import sizes_in_words
from weigh.report.parts import pattern
from weigh.report.text import Style, table, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weigh.report.assumption import Assumption
    from weigh.report.parameters import ParametersReport


def explain_parameters(report: ParametersReport, style: Style) -> list[str]:
    """Every tensor as rows times columns, in the names of the config and in numbers."""
    config, source = report.source.config, report.source
    described = config.get("model_type") in FAMILIES
    whose = (
        f"of the {config['model_type']} code of transformers, named as in its checkpoints"
        if described
        else ("in the header of the weights, by the name that it has there")
    )
    where = source.origin.removeprefix("read from ")
    lines = [
        style.bold("How the number comes about"),
        *wrap(f"Every tensor {whose}; sizes from {where}, {source.revision}.", style.width),
    ]
    rows: list[tuple[str, ...]] = []
    for component, total in report.by_component().items():
        rows.append((component, "", "", "", f"{total:,}"))
        for row in report.rows:
            if row.component == component:
                count = len(row.names)
                numbers = " x ".join(map(str, row.shape))
                rows.append(
                    (
                        f"  {pattern(row.names[0])}",
                        sizes_in_words(row.shape, row.names[0], config),
                        numbers,
                        f"{count} of {row.each:,}" if count > 1 else "",
                        f"{row.total:,}",
                    )
                )
    rows.append(("together", "", "", "", f"{report.total:,}"))
    lines += table(rows, "<<<>>")
    lines += [f"  not counted again: {name}" for name in report.tied]
    lines += [
        "",
        *wrap(
            f"Articles often leave out positions, biases and an output layer of its own: that tally is "
            f"{report.literature_tally:,}. Scaling laws leave out all embeddings: {report.without_embeddings:,}.",
            style.width,
        ),
    ]
    return [*lines, *explain_assumptions(report.assumptions, style)]


def explain_assumptions(assumptions: Iterable[Assumption], style: Style) -> list[str]:
    """What was taken for granted, why, and what it does."""
    lines: list[str] = []
    for assumption in assumptions:
        if not lines:
            lines += ["", style.bold("Assumed")]
        lines += wrap(assumption.what, style.width, "  ")
        lines += wrap(f"why: {assumption.why}", style.width, "      ")
        lines += wrap(f"effect: {assumption.effect}", style.width, "      ")
    return lines
