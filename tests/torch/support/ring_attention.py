"""Ring attention of PyTorch itself, on fake CUDA tensors over a fake process group: the live bytes at every birth.

python -m support.ring_attention    reads rows from standard input, prints them with `forward` and `backward`
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from support.meter import Meter
from torch.distributed.tensor.experimental._context_parallel import _attention as ring
from torch.testing._internal.distributed.fake_pg import FakeStore

from weigh.measure import fake_cuda
from weigh.measure.attention import Attention
from weigh.measure.faithful import as_real

aten = torch.ops.aten


def births(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what its two passes allocate."""
    dist.init_process_group("fake", store=FakeStore(), rank=row["rank"], world_size=row["ranks"])
    ring.set_rotate_method(row["method"])
    length = row["length"]

    def made(heads: int) -> Any:
        shape = 1, length, heads, row["width"]
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda").transpose(1, 2)

    with as_real(Attention()), Meter("cuda") as meter:
        query, key, value = made(row["heads"]), made(row["kv_heads"]), made(row["kv_heads"])
        how: dict[str, Any] = {"is_causal": True, "dropout_p": 0.0, "scale": 0.1}
        inputs = {"query": query, "key": key, "value": value}
        one, back = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward.default
        meter.restart()
        out, lse, *rest = ring._templated_ring_attention(dist.group.WORLD, 2, one, **inputs, **how)
        row["forward"] = meter.births
        saved = {"out": out, "logsumexp": lse, "philox_seed": rest[4], "philox_offset": rest[5]}
        packed = {"cum_seq_q": None, "cum_seq_k": None, "max_q": length, "max_k": length}
        grad = {"grad_out": made(row["heads"]), "grad_out_name": "grad_out"}
        meter.restart()
        ring._templated_ring_attention_backward(dist.group.WORLD, 2, back, **grad, **inputs, **saved, **packed, **how)
        row["backward"] = meter.births
    dist.destroy_process_group()
    return row


if __name__ == "__main__":
    fake_cuda.install()
    for line in sys.stdin:
        print(json.dumps(births(json.loads(line))), flush=True)
    os._exit(0)  # the patched objects of `fake_cuda` are not to be destroyed by the usual exit
