"""answer.ai's fsdp_qlora: LoRA and QLoRA of a transformers model under FSDP1, as its `train.py` does it.

Read: AnswerDotAI/fsdp_qlora at 3afe102 (March 2024), with transformers 4.37 (it excludes 4.38 and 4.39), peft 0.9,
bitsandbytes 0.43 and torch 2.2.

- Weights are quantized by bitsandbytes, always the scales too, and pass for bf16, so that FSDP can flatten them.
- Everything is in bf16, adapters and their states among it, without autocast. Every decoder layer and every trained
  linear layer is a unit of FSDP; checkpoints lie inside of the layers' units.
- The script holds the model's output, logits in fp32 in it, through the backward pass and the update.
- With offload the shards, their gradients and the optimizer are on the host.

Left out: `custom_lora` and HQQ, DORA, Llama Pro, offloaded activations, hybrid sharding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weigh.dtypes import FLOAT32
from weigh.errors import NotModelledError
from weigh.ghost import nn
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.llama import LlamaConfig
from weigh.recipes.dividing import parallel
from weigh.recipes.loop import Loop
from weigh.recipes.training import Training
from weigh.records import dataclass, replace
from weigh.runtimes import Runtime
from weigh.runtimes.transformers import CONTEXT
from weigh.techniques import Technique
from weigh.techniques.checkpointing import Checkpointing
from weigh.techniques.lora import Lora
from weigh.techniques.quantization import Quantization
from weigh.trace.events import BACKWARD

TARGETS = ("k_proj", "q_proj", "v_proj", "up_proj", "down_proj", "gate_proj")
"""The script's "all"."""


class Train(Loop):
    """`fsdp_main`."""

    offloads = False

    waits_after = (BACKWARD,)  # loss.item()
    peft = False

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """With tables of cosines and sines in every layer, as long as the model's context.

        They are made in the default dtype: `from_pretrained` sets that to the weights', `from_config` does not. Raises
        `NotModelledError` for other families than the script's.
        """
        if config.get("model_type") not in ("llama", "mistral"):
            raise NotModelledError(f"fsdp_qlora's {config.get('model_type')}", where=f"{where}: model_type")
        model = super().build(config, recipe, where)
        dtype = recipe.dtype if recipe.quantization is None else FLOAT32
        positions = int(config.get("max_position_embeddings") or 2048)
        for module in list(model.modules()):
            if module.role == nn.ATTENTION:
                with inside_unit(module.parameters()[0].tensor.storage.unit):
                    table = (positions, LlamaConfig.read(config, where).head_dim)
                    for name in ("cos_cached", "sin_cached"):
                        setattr(module, name, nn.buffer(table, dtype))
        return model

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """Checkpoints inside of FSDP's units."""
        if recipe.quantization is not None:
            yield Quantization(recipe.quantization, recipe.double_quantization, recipe.dtype)
        if recipe.lora is not None:
            yield recipe.lora
        if recipe.checkpointing is not None:
            yield Checkpointing(recipe.checkpointing, every=recipe.checkpoint_every)
        yield from parallel(recipe)

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """`output` is a variable of the script."""
        out = model(input_ids, labels)
        model.output = out  # type: ignore[attr-defined]
        return out.loss  # type: ignore[no-any-return]

    def step(self, model: CausalModel, *args: Any) -> None:
        """One step; then `output = None`."""
        super().step(model, *args)
        model.output = None  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class FsdpQlora(Runtime):
    """The script, with its defaults."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        found.setdefault("dtype", "bf16")
        if found.get("shard") != "fsdp1":
            hint = 'It always shards by FSDP1; its strategy "ddp" is not modelled.'
            raise NotModelledError(f"the shard {found.get('shard')} in fsdp_qlora", where="shard", hint=hint)
        found |= {"shard": "fsdp1", "use_orig_params": False, "sync_module_states": True}
        found.setdefault("loss", "rebound")
        if found.get("quantization") is not None:
            found["double_quantization"] = True
        lora = found.setdefault("lora", Lora(rank=64, targets=TARGETS, dropout=0.1))
        if isinstance(lora, Lora):
            reentrant = found.get("checkpointing") == "reentrant"
            found["lora"] = replace(lora, autocast_adapter=False, input_gradients=reentrant)
        return found


RUNTIME = FsdpQlora("fsdp_qlora", "3afe102 (March 2024)", Train(), (CONTEXT,))
