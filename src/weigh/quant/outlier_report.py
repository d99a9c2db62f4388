"""The outlier features of layers' inputs, for people and for JSON."""

from __future__ import annotations

from typing import Any

from weigh.quant.llm_int8 import OF_LAYERS, OF_POSITIONS, Outliers
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table

SHOWN = 12


def as_dict(found: Outliers) -> dict[str, Any]:
    """For JSON."""
    return {
        **header("outliers"),
        "threshold": found.threshold,
        "criterion": {"layers": OF_LAYERS, "positions": OF_POSITIONS},
        "features": found.width,
        "systematic": [feature.index for feature in found.systematic],
        "outlier_features": [
            {
                "index": f.index,
                "largest": f.largest,
                "layers": f.layers,
                "positions": f.positions,
                "systematic": f.systematic,
            }
            for f in found.features
        ],
        "layers": {
            name: dict(zip(("features", "positions", "values"), shares, strict=True))
            for name, shares in found.by_layer.items()
        },
    }


def text(found: Outliers, style: Style = PLAIN) -> str:
    """For people."""
    count, some = len(found.systematic), len(found.features)
    lines = [
        style.bold(f"Outlier features: values of {found.threshold:g} and more"),
        "",
        f"  {some:,} of {found.width:,} features have one ({_percent(some / found.width)}).",
        f"  {count:,} have them in {OF_LAYERS:.0%} of the layers and at {OF_POSITIONS:.0%} of the positions.",
    ]
    if found.features:
        rows = [("feature", "largest", "layers", "positions", "")]
        for f in found.features[:SHOWN]:
            said = "systematic" if f.systematic else ""
            rows.append((str(f.index), f"{f.largest:.4g}", _percent(f.layers), _percent(f.positions), said))
        lines += ["", *table(rows, ">>>><")]
        if some > SHOWN:
            lines.append(f"  and {some - SHOWN:,} more")
    of_layers: list[tuple[str, ...]] = [("layer", "features with any", "positions with any", "values")]
    of_layers += [(name, *(_percent(s) for s in shares)) for name, shares in found.by_layer.items()]
    return "\n".join([*lines, "", *table(of_layers, "<>>>")])


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"
