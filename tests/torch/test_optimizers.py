"""Every optimizer alone, on ghost parameters and for real on fake CUDA parameters: live bytes after each birth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steps import levels

MIXED = [
    ([300, 70], "float32"),
    ([70], "float32"),
    ([33, 90], "bfloat16"),
    ([80, 80], "float32"),
    ([33], "bfloat16"),
    ([128, 64], "bfloat16"),
]
MATRICES = [entry for entry in MIXED if len(entry[0]) == 2]  # type: ignore[arg-type]
TORCH = "torch.optim."


def torchs(name: str, kind: str, implementations: tuple[str, ...], **settings: Any) -> dict[str, dict[str, Any]]:
    """Cases of an optimizer of PyTorch, in each implementation, without and with weight decay."""
    found = {}
    for implementation in implementations:
        flags = {"foreach": implementation == "foreach"}
        if "fused" in implementations:
            flags["fused"] = implementation == "fused"
        for decay in (0.0, 0.1):
            found[f"{name} {implementation} {decay}{' momentum' * bool(settings)}"] = {
                "choice": {"name": name, "implementation": implementation, "weight_decay": decay, **settings},
                "class": TORCH + kind,
                "settings": {**flags, "weight_decay": decay, **settings},
            }
    return found


LISTS = ("foreach", "forloop")
ALL = (*LISTS, "fused")
CASES: dict[str, dict[str, Any]] = {
    **torchs("adamw", "AdamW", ALL),
    **torchs("adam", "Adam", ALL),
    **torchs("sgd", "SGD", LISTS),
    **torchs("sgd", "SGD", LISTS, momentum=0.9),
    **torchs("adagrad", "Adagrad", LISTS),
    **torchs("rmsprop", "RMSprop", LISTS),
    **torchs("rmsprop", "RMSprop", LISTS, momentum=0.9),
    **torchs("adadelta", "Adadelta", LISTS),
    **torchs("adamax", "Adamax", LISTS),
    **torchs("nadam", "NAdam", LISTS),
    **torchs("radam", "RAdam", LISTS),
    **torchs("torch_adafactor", "Adafactor", LISTS),
    "a scaled loss": {
        "choice": {"name": "adamw", "implementation": "foreach"},
        "class": "torch.optim.AdamW",
        "settings": {"foreach": True},
        "parameters": [entry for entry in MIXED if entry[1] == "float32"],
        "scaler": True,
    },
    "muon": {
        "choice": {"name": "muon", "implementation": "forloop"},
        "class": "torch.optim.Muon",
        "settings": {},
        "parameters": MATRICES,
    },
    **{
        f"bitsandbytes {name}": {
            "choice": {"name": name, "implementation": "forloop"},
            "class": f"bitsandbytes.optim.{kind}",
            "settings": settings,
        }
        for name, kind, settings in (
            ("adamw_8bit", "AdamW8bit", {}),
            ("adam_8bit", "Adam8bit", {}),
            ("lion_8bit", "Lion8bit", {}),
            ("sgd_8bit", "SGD8bit", {"momentum": 0.9, "lr": 0.1}),
            ("adamw_32bit", "AdamW32bit", {}),
        )
    },
    "adafactor": {
        "choice": {"name": "adafactor", "implementation": "forloop"},
        "class": "transformers.optimization.Adafactor",
        "settings": {},
    },
}
STEPS = {"radam": 7}


def job(name: str) -> dict[str, Any]:
    """What is asked for a case."""
    case = CASES[name]
    steps = STEPS.get(case["choice"]["name"], 3)
    return {"parameters": MIXED, "steps": steps, **{k: v for k, v in case.items() if k != "choice"}}


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "support.real_optimizers", json.dumps([job(c) for c in CASES])]
    folder = Path(__file__).parent
    answer = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(zip(CASES, json.loads(answer.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_step(name: str, real: dict[str, Any]) -> None:
    asked = job(name)
    assert levels(CASES[name]["choice"], asked["parameters"], asked["steps"], asked.get("scaler", False)) == real[name]
