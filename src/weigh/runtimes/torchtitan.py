"""torchtitan: its Llama under FSDP2, as its trainer runs it.

Read: pytorch/torchtitan at 9dec370 (December 2024): `models/llama/model.py`, `models/norms.py`, `optimizer.py`,
`parallelisms/parallelize_llama.py`, `train.py`, `train_configs/llama3_8b.toml`.

- Parameters, their states and the reduction of gradients are in fp32, everything is computed in bf16
  (`mixed_precision_param`, `mixed_precision_reduce`).
- Queries and keys are rotated as complex numbers in fp32.
- The loss is computed of the logits in fp32; the logits live until it is there.
- Gradients are clipped, and dropped when the next step begins.

- Compiled blocks keep what selective checkpoints name, but for what nothing that goes back reads: the last product's
  output. A float8 linear layer, compiled, saves what another one does.
- Since 2025 the loss is compiled too (`--loss compiled`).

- Without checkpoints compiled blocks keep what AOTAutograd's partitioner says (`techniques/compiling`).

- Devices that share a sequence (`--context`) run PyTorch's ring attention on their pieces of it (`kernels/ring.py`).

Left out: weights gathered in float8, tensor and pipeline parallelism; other models than Llama.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weigh.dtypes import BFLOAT16, COMPLEX64, FLOAT32, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, RMSNorm, name_modules
from weigh.ghost.tensor import Tensor
from weigh.kernels.compiled import compiled_cross_entropy
from weigh.models.common import CausalModel, CausalOutput
from weigh.models.llama import LlamaConfig
from weigh.recipes.loop import Loop
from weigh.recipes.training import COMPILED_LOSS, Training
from weigh.records import dataclass, replace
from weigh.runtimes import Runtime
from weigh.runtimes.phases import EVALUATING, LOADING, SAVING, SAVING_STATES, JobPhase, Surroundings, unknown
from weigh.techniques import Technique
from weigh.techniques.checkpointing import Checkpointing
from weigh.techniques.compiling import Compiled
from weigh.techniques.fsdp2 import FullyShard

ONE_MACHINE = 8
"""Devices in one."""


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, T, heads, size), turned."""
    xq_ = ops.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = ops.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    freqs_cis = freqs_cis.view(1, freqs_cis.shape[0], 1, freqs_cis.shape[1])
    xq_out = ops.view_as_real(ops.mul_complex(xq_, freqs_cis)).view(*xq.shape)
    xk_out = ops.view_as_real(ops.mul_complex(xk_, freqs_cis)).view(*xk.shape)
    return xq_out.to(xq.dtype), xk_out.to(xk.dtype)


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """(B, T, heads, size) -> (B, T, heads * n_rep, size)."""
    if n_rep == 1:
        return x
    bs, slen, n_kv_heads, head_dim = x.shape
    x = x.unsqueeze(3).expand(bs, slen, n_kv_heads, n_rep, head_dim)
    return x.reshape(bs, slen, n_kv_heads * n_rep, head_dim)


class Attention(Module):
    """`Attention`."""

    role = nn.ATTENTION

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.n_rep = config.num_attention_heads // config.num_key_value_heads
        self.wq = nn.Linear(width, config.num_attention_heads * self.head_dim, dtype)
        self.wk = nn.Linear(width, config.num_key_value_heads * self.head_dim, dtype)
        self.wv = nn.Linear(width, config.num_key_value_heads * self.head_dim, dtype)
        self.wo = nn.Linear(config.num_attention_heads * self.head_dim, width, dtype)

    def forward(self, x: Tensor, freqs_cis: Tensor) -> Tensor:
        bs, seqlen, _ = x.shape
        xq, xk, xv = self.wq(x), self.wk(x), self.wv(x)
        xq = xq.view(bs, seqlen, -1, self.head_dim)
        xk = xk.view(bs, seqlen, -1, self.head_dim)
        xv = xv.view(bs, seqlen, -1, self.head_dim)
        xq, xk = apply_rotary_emb(xq, xk, freqs_cis)
        keys = repeat_kv(xk, self.n_rep)
        values = repeat_kv(xv, self.n_rep)
        xq = xq.transpose(1, 2)
        xk = keys.transpose(1, 2)
        xv = values.transpose(1, 2)
        output = ops.scaled_dot_product_attention(xq, xk, xv, None, 0.0, True, False)
        output = output.transpose(1, 2).contiguous()
        output = output.view(bs, seqlen, -1)
        return self.wo(output)  # type: ignore[no-any-return]


class FeedForward(Module):
    """`FeedForward`."""

    role = nn.MLP

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, dtype)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, dtype)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(ops.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class TransformerBlock(Module):
    """`TransformerBlock`."""

    role = nn.BLOCK

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        self.attention = Attention(config, dtype)
        self.feed_forward = FeedForward(config, dtype)
        self.attention_norm = RMSNorm(config.hidden_size, dtype)
        self.ffn_norm = RMSNorm(config.hidden_size, dtype)

    def forward(self, x: Tensor, freqs_cis: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs_cis)
        return h + self.feed_forward(self.ffn_norm(h))  # type: ignore[no-any-return]


class Transformer(CausalModel):
    """`Transformer`, with `cross_entropy_loss` behind it."""

    cache_layers = 0

    def __init__(self, config: LlamaConfig, dtype: DType, length: Any, loss: str) -> None:
        super().__init__()
        self.loss = loss
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.freqs_cis = nn.buffer((length, config.head_dim // 2), COMPLEX64)
        self.original_freqs_cis: Tensor | None = None
        """What a shared sequence puts back: the buffer is resized to its piece while the model runs."""
        self.layers = nn.Stack("layers", config.num_hidden_layers, lambda _: TransformerBlock(config, dtype))
        self.norm = RMSNorm(config.hidden_size, dtype)
        self.output = nn.Head(None, config.hidden_size, config.vocab_size, dtype)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *_: Any) -> CausalOutput:
        h = self.tok_embeddings(input_ids)
        freqs_cis = self.freqs_cis
        if freqs_cis.shape[0] is not h.shape[1] and freqs_cis.shape[0] != h.shape[1]:
            self.original_freqs_cis = ops.clone(freqs_cis)
            freqs_cis = freqs_cis.narrow(0, h.shape[1])
        for layer in self.layers:
            h = layer(h, freqs_cis)
        h = self.norm(h)
        pred = self.output(h)
        assert labels is not None
        if self.loss == COMPILED_LOSS:
            return CausalOutput(pred, compiled_cross_entropy(pred.view(-1, pred.shape[-1]), labels.view(-1)))
        return CausalOutput(pred, ops.cross_entropy(pred.view(-1, pred.shape[-1]).float(), labels.view(-1)))


class Trainer(Loop):
    """`train.py`."""

    offloads = False

    zero_grad_first = True
    peft = False

    def kernels(self, recipe: Training, family: str) -> dict[str, Any]:
        """The compiled loss is the model's own."""
        return super().kernels(recipe if recipe.loss != COMPILED_LOSS else replace(recipe, loss="upcast"), family)

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The Transformer. Raises `NotModelledError` for another model than Llama."""
        if config.get("model_type") != "llama":
            raise NotModelledError(f"torchtitan's {config.get('model_type')}", where=f"{where}: model_type")
        model = Transformer(LlamaConfig.read(config, where), recipe.dtype, recipe.sequence, recipe.loss)
        name_modules(model)
        return model

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """The last block stays whole between the passes.

        Raises:
            NotModelledError: more than FSDP2; compiled blocks of which some are checkpointed.
        """
        if recipe.tensor > 1:
            raise NotModelledError("tensor parallelism as torchtitan does it", where="tensor")
        if recipe.compile and recipe.checkpoint_every > 1:
            raise NotModelledError("compiled layers of which some are checkpointed", where="compile")
        compiled, recipe = recipe.compile, replace(recipe, compile=False)
        found = list(super().techniques(replace(recipe, checkpointing=None, checkpoint_every=1)))
        alone = replace(recipe, shard=None, gpus_per_node=1, nodes=1, replicas=1, context=1)
        for technique in super().techniques(alone):
            yield replace(technique, compiled=compiled) if isinstance(technique, Checkpointing) else technique
        if compiled and recipe.checkpointing is None:
            yield Compiled(blocks=True)
        yield from (replace(t, keep_last=True) if isinstance(t, FullyShard) else t for t in found)


@dataclass(frozen=True, slots=True)
class Torchtitan(Runtime):
    """Its trainer."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        found.setdefault("param_dtype", BFLOAT16)
        found.setdefault("reduce_dtype", FLOAT32)
        found.setdefault("clip", True)
        return found

    def phases(self, around: Surroundings) -> Iterator[JobPhase]:
        """A run that starts anew: shards are made on the device, and saved by `torch.distributed.checkpoint`.

        Read: torchtitan 9dec370 (`train.py`, `checkpoint.py`, no `async_mode`), torch 2.13
        (`distributed/checkpoint/filesystem.py`, `_write_files_from_queue`, whose `tensor_dict` keeps what was written).
        """
        source = "torchtitan 9dec370, torch 2.13"
        what = "every rank makes room for its shards and draws them on the device"
        yield JobPhase(LOADING, around.loaded, 0, 0, 0, what, source)
        yield unknown(EVALUATING, "this release has no evaluation")
        host = around.held + around.state_bytes
        what = "with the optimizer; a rank's file is on the host as a whole before it is closed; read, not run"
        yield JobPhase(SAVING, around.resident, host, host * around.processes, 0, what, source)
        yield unknown(SAVING_STATES, "it is in one checkpoint with the model")

    def allocator(self, recipe: Training) -> str:
        """On one machine `run_llama_train.sh` sets it; `multinode_trainer.slurm`, for several, does not."""
        return "expandable_segments:True" if recipe.mesh.world <= ONE_MACHINE else ""


_READ = "9dec370 (December 2024)"
RUNTIME = Torchtitan("torchtitan", _READ, Trainer(), software=f"torchtitan {_READ} and PyTorch 2.13")
