"""PyTorch's own reader of PYTORCH_CUDA_ALLOC_CONF: it accepts and refuses what tests/trace says ours does."""

import json
import subprocess
import sys
from pathlib import Path

TEXTS = json.loads((Path(__file__).parents[1] / "data" / "allocator_settings.json").read_text())

# PyTorch keeps the last large_segment_size_mb that was set.
READ = """
import json, sys, torch
def accepts(text):
    try:
        torch._C._accelerator_setAllocatorSettings(text)
    except (ValueError, RuntimeError):
        return False
    finally:
        torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")
    return True
print(json.dumps([accepts(text) for text in json.load(sys.stdin)]))
"""


def test_pytorch_accepts_and_refuses_the_same() -> None:
    accepted, refused = TEXTS["accepted"], TEXTS["refused"]
    texts = json.dumps([*accepted, *refused])
    ran = subprocess.run([sys.executable, "-c", READ], input=texts, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [True] * len(accepted) + [False] * len(refused)
