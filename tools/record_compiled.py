"""Records what the real `torch.compile` keeps for the backward pass: tests/data/compiled.jsonl.

python tools/record_compiled.py ROWS.jsonl    prints the rows, each with what was kept

A row says `config`, `dtype`, `batch`, `sequence` and perhaps `autocast`. The model of transformers is traced by
AOTAutograd on fake CUDA tensors, TorchInductor's passes run over the joint graph, and the min-cut partitioner divides
it; `kept` becomes, for every storage that goes to the backward pass and is no input, its dtype and the shape of what
made it. Needs `weigh[torch]`; nothing is compiled, no GPU is needed.
"""

from __future__ import annotations

import json
import operator
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._functorch import partitioners
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes import joint_graph
from torch._inductor.virtualized import V
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from weigh.measure import fake_cuda
from weigh.measure.attention import Attention
from weigh.measure.faithful import as_real

aten = torch.ops.aten
VIEWS = ("view", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "alias", "_unsafe_view", "t")
VIEWS_OF_PARTS = ("split", "split_with_sizes", "unbind")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

folder = joint_graph.UniformValueConstantFolder
deduce = folder._deduce_value
find_packed_sequence_indices = masking_utils.find_packed_sequence_indices


def deduce_on_the_cpu(self: Any, node: Any) -> Any:
    """The value of a constant, of which a build without CUDA cannot make a real tensor on a GPU."""
    if node.op == "call_function" and node.kwargs.get("device") is not None:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.target is aten.full.default and len(node.args) == 2:
            return torch.full([1], args[1], dtype=kwargs.get("dtype"))
        if node.target is aten.scalar_tensor.default:
            return node.target(*args, **{**kwargs, "device": "cpu"})
    return deduce(self, node)


def operation(node: Any) -> str:
    """What aten calls it."""
    return str(node.target).removeprefix("aten.").split(".")[0]


def base(node: Any) -> Any:
    """What a view is a view of."""
    while node.op == "call_function":
        name = operation(node.args[0] if node.target is operator.getitem else node)
        if name not in (VIEWS_OF_PARTS if node.target is operator.getitem else VIEWS + VIEWS_OF_PARTS):
            break
        node = node.args[0]
    return node


def kept(row: dict[str, Any]) -> list[list[Any]]:
    """What the partitioner keeps of a row's model."""
    found: list[Any] = []

    def partition(module: Any, inputs: Any, **options: Any) -> Any:
        compile_fx._recursive_joint_graph_passes(module)
        forward, backward = partitioners.min_cut_rematerialization_partition(module, inputs, "inductor", **options)
        (returned,) = next(n for n in forward.graph.nodes if n.op == "output").args
        found.extend(returned[options["num_fwd_outputs"] :])
        return forward, backward

    class Trained(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, labels: Any) -> Any:
            with torch.autocast("cuda", autocast, enabled=autocast is not None):
                out = self.model(input_ids=input_ids, labels=labels, use_cache=False)
            return out.loss, out.logits

    def compiler(module: Any, _: Any) -> Any:
        return make_boxed_func(module.forward)

    config, autocast = dict(row["config"]), DTYPES.get(row.get("autocast"))
    with as_real(Attention()) as mode, patch.object(folder, "_deduce_value", deduce_on_the_cpu):
        # the model is compiled: transformers is to know
        masking_utils.find_packed_sequence_indices = find_packed_sequence_indices
        masking_utils.is_tracing = lambda *_: True
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
            model = model.to(DTYPES[row["dtype"]]).train()
            ids = [torch.randint(0, 9, (row["batch"], row["sequence"])) for _ in range(2)]
        with V.set_fake_mode(mode), tracing(TracingContext(mode)):
            table = select_decomp_table()
            aot_module_simplified(Trained(), ids, compiler, compiler, partition, decompositions=table)
    storages = dict.fromkeys(base(n) for n in found if isinstance(n.meta.get("val"), torch.Tensor))
    values = [n.meta["val"] for n in storages if n.op != "placeholder"]
    return sorted([NAMES.get(v.dtype, str(v.dtype).removeprefix("torch.")), list(v.shape)] for v in values)


def main() -> None:
    """Print every row with what was kept."""
    fake_cuda.install()
    for line in Path(sys.argv[1]).read_text().splitlines():
        row = json.loads(line)
        try:
            row["kept"] = kept(row)
        except Exception as error:  # a model that cannot be traced leaves the others
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(row), flush=True)
    os._exit(0)  # the patched objects of `fake_cuda` are not to be destroyed by the usual exit


if __name__ == "__main__":
    main()
