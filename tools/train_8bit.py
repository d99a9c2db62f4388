"""Trains a small language model with 32-bit AdamW and with 8-bit AdamW and writes docs/training_8bit.md.

The text is the Python standard library's own sources, byte by byte; the model is a Llama of some 800,000 weights
from transformers, on the CPU, in fp32. The runs see the same batches from the same start. Needs torch and
transformers; takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from weigh import api
from weigh.lab.text import read
from weigh.quant.optimizers import AdamW8bit, embeddings
from weigh.report.svg import style_sheet

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "training_8bit.md", ROOT / "docs" / "pictures" / "training_8bit.svg"
BATCH, SEQUENCE, STEPS, RATE, DECAY = 8, 96, 500, 1e-3, 0.1
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": SEQUENCE,
    "tie_word_embeddings": False,
}
RUNS = {
    "AdamW, 32 bits": lambda model: torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY),
    "AdamW, 8 bits": lambda model: AdamW8bit(model.parameters(), lr=RATE, weight_decay=DECAY),
    "AdamW, 8 bits, embeddings in 32": lambda model: AdamW8bit(
        model.parameters(), lr=RATE, weight_decay=DECAY, in_32_bits=embeddings(model)
    ),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73")
SMOOTHED = 20
"""Steps over which the picture's losses are averaged."""


def text() -> tuple[Tensor, Tensor]:
    """To train on, and held out."""
    found = read(None, SEQUENCE)
    train, held_out = (torch.frombuffer(bytearray(x), dtype=torch.uint8) for x in (found.training, found.held_out))
    return train, held_out


def batch(data: Tensor, generator: torch.Generator) -> Tensor:
    """Sequences from anywhere in the text."""
    starts = torch.randint(0, len(data) - SEQUENCE, (BATCH,), generator=generator)
    return torch.stack([data[s : s + SEQUENCE] for s in starts]).long()


def build() -> nn.Module:
    """The model, always from the same start."""
    torch.manual_seed(0)
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**settings))


def train(name: str) -> dict[str, Any]:
    """One run: losses, the loss on text that was held out, and what the states take."""
    data, held_out = text()
    model = build()
    optimizer = RUNS[name](model)
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        tokens = batch(data, generator)
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"{name}: step {step + 1}, loss {losses[-1]:.4f}", file=sys.stderr)
    model.eval()
    unseen = torch.Generator().manual_seed(2)
    with torch.no_grad():
        tests = [batch(held_out, unseen) for _ in range(20)]
        tested = sum(model(input_ids=t, labels=t).loss.item() for t in tests) / len(tests)
    return {
        "losses": losses,
        "held_out": tested,
        "state_bytes": state_bytes(optimizer),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the tensors that an optimizer keeps; PyTorch's counters of steps (4 bytes a tensor) are among them."""
    if isinstance(optimizer, AdamW8bit):
        return optimizer.state_bytes()
    states = (t for state in optimizer.state.values() for t in state.values())
    return sum(t.numel() * t.element_size() for t in states)


def predicted(optimizer: str) -> int:
    """What `weigh train` says the states take."""
    report = api.train(CONFIG, optimizer=optimizer, batch=BATCH, sequence=SEQUENCE, kernels="cpu")
    return int(report.as_dict()["peak"]["by_purpose"]["optimizer state"])


def smooth(losses: list[float]) -> list[float]:
    """Means of so many steps up to each."""
    return [sum(losses[max(0, i - SMOOTHED + 1) : i + 1]) / min(i + 1, SMOOTHED) for i in range(len(losses))]


def picture(runs: dict[str, dict[str, Any]]) -> str:
    """The loss curves, and below them how far the 8-bit ones are from the first."""
    width, height, left, right, top, middle, base = 900, 480, 74, 876, 76, 330, 440
    curves = {name: smooth(run["losses"]) for name, run in runs.items()}
    first = next(iter(curves.values()))
    high, low, apart = max(first[5:]), min(min(c) for c in curves.values()), 0.06

    def x(step: int) -> float:
        return left + (right - left) * step / (STEPS - 1)

    def y(loss: float) -> float:
        return middle - (middle - top) * (min(loss, high) - low) / (high - low)

    def y_apart(difference: float) -> float:
        half = (base - middle - 30) / 2
        return base - half - half * max(-apart, min(apart, difference)) / apart

    title = f"8-bit AdamW beside 32-bit AdamW, {STEPS} steps"
    said = f"loss in nats a byte, mean of {SMOOTHED} steps; below it the difference from 32 bits, within {apart}"
    lines = [
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        f'<text class="title" x="{left}" y="28">{title}</text>',
        f'<text class="quiet" x="{left}" y="47">{said}</text>',
    ]
    for loss in range(int(low) + 1, int(high) + 1):
        lines.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(loss):.1f}" y2="{y(loss):.1f}"/>')
        lines.append(f'<text class="quiet end" x="{left - 8}" y="{y(loss) + 4:.1f}">{loss}</text>')
    for step in range(0, STEPS + 1, 100):
        at = x(min(step, STEPS - 1))
        lines.append(f'<text class="quiet middle" x="{at:.1f}" y="{base + 22}">{step}</text>')
    lines.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{y_apart(0):.1f}" y2="{y_apart(0):.1f}"/>')
    for curve, colour in zip(curves.values(), COLOURS, strict=True):
        lines.append(_line([(x(i), y(v)) for i, v in enumerate(curve)], colour, 1.5))
        if curve is not first:
            differences = [v - w for v, w in zip(curve, first, strict=True)]
            lines.append(_line([(x(i), y_apart(v)) for i, v in enumerate(differences)], colour, 1))
    for i, (name, colour) in enumerate(zip(curves, COLOURS, strict=True)):
        lines.append(f'<rect x="{right - 240}" y="{top + 20 * i}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{right - 222}" y="{top + 11 + 20 * i}">{name}</text>')
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="weigh" role="img" aria-label="{title}">\n{style_sheet()}\n{body}\n</svg>\n'
    )


def _line(points: list[tuple[float, float]], colour: str, width: float) -> str:
    path = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The page around the picture."""
    parameters = next(iter(runs.values()))["parameters"]
    rows = []
    for name, run in runs.items():
        at = [sum(run["losses"][s - SMOOTHED : s]) / SMOOTHED for s in (100, 300, STEPS)]
        losses = " | ".join(f"{loss:.4f}" for loss in at)
        rows.append(f"| {name} | {losses} | {run['held_out']:.4f} | {run['state_bytes']:,} |")
    wide, narrow = runs["AdamW, 32 bits"]["state_bytes"], runs["AdamW, 8 bits"]["state_bytes"]
    counters = 4 * sum(1 for _ in build().parameters())
    said = predicted("adamw"), predicted("adamw_8bit")
    asserted = (said[0] == wide, said[1] == narrow)
    assert asserted == (True, True), (said, wide, narrow)
    per_weight = narrow / parameters
    saved = wide - counters - narrow
    of_three, of_four = (f"{100 * saved / (parameters * x):.1f} %" for x in (16, 24))
    whole = [f"{100 * (8 - 2 - 8 / 256) / x:.1f} %" for x in (16, 24)]
    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return f"""\
# Training with 8-bit states, for real

Written by `tools/train_8bit.py` ({versions}). A Llama of {parameters:,} weights learns the
Python standard library's sources byte by byte on the CPU: {STEPS} steps of {BATCH} sequences of {SEQUENCE}, fp32, the
same batches from the same start.

![loss curves](pictures/training_8bit.svg)

| run | loss at 100 | at 300 | at {STEPS} | held out | bytes of states |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Losses are means of the {SMOOTHED} steps before, in nats a byte; held out are 20 batches of modules that no run saw. The
embedding and the output layer's own weight are apart here; the third run keeps the embedding's states in 32 bits, as
the paper asks.

## Bytes

`weigh train --optimizer adamw_8bit` predicts {said[1]:,} bytes of states for this model, and with `adamw` {said[0]:,}:
what the runs kept, to the byte. 8 bits take {per_weight:.4f} bytes a weight here, because tensors of fewer than 4,096
values stay in 32 bits.

Of weights, gradients and states in fp32 (16 bytes a weight) this saves {of_three}, and {of_four} of the 24 bytes of an
article that counts 8 more a weight for activations. Where all tensors are large, it is {whole[0]} and {whole[1]}. Both
are said often, seldom with what they are shares of.
"""


def main() -> None:
    """Train, or draw again what was trained (`--from FILE`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", help="keep the runs as JSON")
    parser.add_argument("--from", dest="source", help="runs that were kept")
    found = parser.parse_args()
    runs = json.loads(Path(found.source).read_text()) if found.source else {name: train(name) for name in RUNS}
    if found.save:
        Path(found.save).write_text(json.dumps(runs))
    PICTURE.write_text(picture(runs))
    PAGE.write_text(page(runs))


if __name__ == "__main__":
    main()
