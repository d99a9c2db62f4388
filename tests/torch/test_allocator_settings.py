"""PyTorch's own reader of PYTORCH_CUDA_ALLOC_CONF beside ours: what the one accepts or refuses, the other does."""

import json
import subprocess
import sys

import pytest

from weigh.errors import UsageError
from weigh.trace.allocator_settings import AllocatorSettings

ACCEPTED = """
max_split_size_mb:20
max_split_size_mb:128, expandable_segments:True
expandable_segments: True
expandable_segments:True,
expandable_segments:True,expandable_segments:False
garbage_collection_threshold:0.8
max_non_split_rounding_mb:30
large_segment_size_mb:11
max_split_size_mb:40,large_segment_size_mb:40
roundup_power2_divisions:1
roundup_power2_divisions:4
roundup_power2_divisions:[]
roundup_power2_divisions:[64:8,>:0]
roundup_power2_divisions:[64:8,128:4,]
backend:native
""".split("\n")[1:-1]

REFUSED = """
max_split_size_mb:19
max_split_size_mb:30,large_segment_size_mb:40
max_non_split_rounding_mb:10
large_segment_size_mb:10
garbage_collection_threshold:0
garbage_collection_threshold:1
garbage_collection_threshold:abc
expandable_segments:true
expandable_segments
expandable_segments:
expandable_segments:True,,
max_split_size_mb 20
max_split_size_mb:x
roundup_power2_divisions:0
roundup_power2_divisions:3
roundup_power2_divisions:[3:8]
roundup_power2_divisions:[64:3]
roundup_power2_divisions:[64]
roundup_power2_divisions:[64:8
""".split("\n")[1:-1]


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


def test_both_accept_and_refuse_the_same() -> None:
    texts = json.dumps([*ACCEPTED, *REFUSED])
    ran = subprocess.run([sys.executable, "-c", READ], input=texts, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [True] * len(ACCEPTED) + [False] * len(REFUSED)
    for text in ACCEPTED:
        AllocatorSettings.parse(text)
    for text in REFUSED:
        with pytest.raises(UsageError):
            AllocatorSettings.parse(text)
