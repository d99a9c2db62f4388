"""`weigh.watch` and the Trainer's callback: what they read off a training, and what they say of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

SCRIPT = """
import json, sys, warnings
import torch, transformers, weigh
from weigh.errors import WeighError
from weigh.hooks import TrainerMemoryCallback

warnings.simplefilter("ignore")
config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=131, bos_token_id=None, eos_token_id=None,
)
case = sys.argv[1]
found = {}


def model(checkpointing=False, lora=False):
    made = transformers.LlamaForCausalLM(config).train()
    if checkpointing:
        made.gradient_checkpointing_enable()
    if lora:
        from peft import LoraConfig, get_peft_model
        made = get_peft_model(made, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    return made


def training(made, autocast=False, passes=1, optimizer=torch.optim.AdamW, case=None):
    ids = torch.randint(0, 131, (3, 100))
    chosen = optimizer([p for p in made.parameters() if p.requires_grad], lr=1e-3)
    with weigh.watch(made, case=case) as seen:
        for _ in range(2):
            for _ in range(passes):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = made(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                del loss
            chosen.step()
            chosen.zero_grad()
    return seen


def note(name, seen):
    recipe = seen.recipe()
    found[name] = {
        "measured": seen.measured()["max_allocated"], "predicted": seen.predicted(), "steps": seen.steps,
        "batch": recipe.batch, "sequence": recipe.sequence, "checkpointing": recipe.checkpointing,
        "lora": recipe.lora and recipe.lora.rank, "autocast": recipe.autocast and recipe.autocast.name,
        "accumulation": recipe.accumulation, "optimizer": recipe.optimizer, "text": seen.text(),
    }


note("plain", training(model(), case=case))
note("checkpointing", training(model(checkpointing=True)))
note("lora", training(model(lora=True)))
note("autocast", training(model(), autocast=True))
note("passes", training(model(), passes=2))
note("sgd", training(model(), optimizer=torch.optim.SGD))
found["unknown"] = training(model(), optimizer=torch.optim.Rprop, case=case).text()
with weigh.watch(model()) as seen:
    pass
found["nothing"] = seen.text()


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        ids = torch.randint(0, 131, (64,))
        return {"input_ids": ids, "labels": ids}


callback = TrainerMemoryCallback(case=case)
arguments = transformers.TrainingArguments(
    output_dir=sys.argv[2], per_device_train_batch_size=4, max_steps=3, use_cpu=True, report_to=[],
    save_strategy="no", logging_strategy="no", disable_tqdm=True,
)
transformers.Trainer(model(), arguments, train_dataset=Data(), callbacks=[callback]).train()
note("trainer", callback.seen)
print("@" + json.dumps(found))
"""


def test_what_is_watched_is_what_was_predicted(tmp_path: Path) -> None:
    case = tmp_path / "case.jsonl"
    command = [sys.executable, "-c", SCRIPT, str(case), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("@")[2])

    for name in ("plain", "checkpointing", "lora", "autocast", "passes", "sgd"):
        seen = found[name]
        assert seen["predicted"] == pytest.approx(seen["measured"], rel=1e-3), name
        assert (seen["steps"], seen["batch"], seen["sequence"]) == (2, 3, 100)
        assert "measured" in seen["text"]
        assert "predicted" in seen["text"]
    assert found["checkpointing"]["checkpointing"] == "full"
    assert found["lora"]["lora"] == 4
    assert found["autocast"]["autocast"] == "bf16"
    assert found["passes"]["accumulation"] == 2
    assert found["sgd"]["optimizer"] == "sgd"
    assert found["sgd"]["measured"] < found["plain"]["measured"]
    assert "no prediction: the optimizer Rprop" in found["unknown"]
    assert "saw no training step" in found["nothing"]

    trained = found["trainer"]
    assert (trained["steps"], trained["batch"], trained["sequence"]) == (3, 4, 64)
    # The Trainer keeps the sum of its losses, and counts the items of a batch.
    assert trained["predicted"] == pytest.approx(trained["measured"], rel=2e-3)

    assert "weigh: predicted" in done.stderr  # where nobody has set up logging
    assert "no case was saved: " in done.stderr  # of what a case cannot say, and the training goes on
    saved, of_trainer = map(json.loads, case.read_text().splitlines())
    assert of_trainer["runtime"] == "transformers"
    assert of_trainer["optimizer"]["clip"] is True
    assert saved["measured"]["max_allocated"] == found["plain"]["measured"]
    assert saved["trust"] == "exact"
    assert saved["model"]["config"]["hidden_size"] == 64
