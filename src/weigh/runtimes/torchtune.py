"""torchtune: its decoder, whole or with LoRA, on one device or under FSDP2, as its recipes train it.

Read: pytorch/torchtune at 30b8519 (September 2024) and 1814feb (November 2024): `modules/transformer.py`,
`attention.py`, `position_embeddings.py`, `peft/lora.py`, `loss/ce_chunked_output_loss.py`, `training/_compile.py`,
`_activation_offloading.py`, `recipes/{full,lora}_finetune_{single_device,distributed}.py`.

- Everything is in one dtype; positions are rotated in pairs and in fp32; keys and values are copied for every head.
- With the chunked loss the output layer runs on eight pieces of the sequence, whose logits are all there when the first
  of them is made fp32; otherwise the model returns logits in fp32. Labels are moved, not logits, and the script drops
  its logits before the backward pass.
- Since 2025 (bd2a0fc, `modules/loss/cross_entropy_loss.py`) configs have the output layer and the loss run on an eighth
  of the tokens after the other, of those that are not ignored; each eighth's gradient is as large as all of them.
- `compile` compiles every layer and the chunks' cross entropy. Under checkpoints a compiled layer leaves its input
  alone, as any other; what it makes while it runs again is taken to be what its single ops make. The compiled loss
  keeps a chunk's logits and two numbers a row, and makes their gradient at once (`kernels/compiled.py`). Without
  checkpoints a compiled layer keeps what AOTAutograd's partitioner says (`techniques/compiling`).
- Offloaded activations leave the device five saved tensors later, and come back one node before they are used.

Left out: QLoRA, DoRA, LoRA on the output layer, packed samples' masks, distillation, preference recipes, other families
than Llama and Mistral.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.host import Host, host_of
from weigh.ghost.nn import Module, RMSNorm, name_modules
from weigh.ghost.state import saved_tensors_hooks
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels.compiled import compiled_cross_entropy
from weigh.models.common import CausalModel, CausalOutput
from weigh.models.llama import LlamaConfig
from weigh.recipes.dividing import parallel
from weigh.recipes.loop import Loop
from weigh.recipes.training import LINEAR_LOSS, Training
from weigh.records import dataclass, replace
from weigh.runtimes import Runtime
from weigh.techniques import Technique
from weigh.techniques.checkpointing import Checkpointing, Packed
from weigh.techniques.compiling import Compiled
from weigh.techniques.lora import Lora
from weigh.techniques.offloading import ACTIVATIONS
from weigh.trace.events import ACTIVATION, BUFFER, WEIGHT

FAMILIES = ("llama", "mistral")
CHUNKS = 8
"""`CEWithChunkedOutputLoss(num_output_chunks=8)`."""
STASH = 5
"""Saved tensors that stay on the device while they are copied (`max_fwd_stash_size`)."""
SMALLEST = 1024
"""Bytes from which a saved tensor is offloaded (`min_offload_size`)."""


# -- layers ----------------------------------------------------------------------------------------
class LoRALinear(Module):
    """`LoRALinear`, whose weight is its own."""

    def __init__(self, lora: Lora, width_in: int, width_out: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((width_out, width_in), dtype)
        self.dropout = nn.Dropout(lora.dropout)
        self.lora_a = nn.Linear(width_in, lora.rank, dtype)
        self.lora_b = nn.Linear(lora.rank, width_out, dtype)

    def forward(self, x: Tensor) -> Tensor:
        out = ops.linear(x, self.weight)
        lora_out = self.lora_a(self.dropout(x))
        lora_out = self.lora_b(lora_out) * 2.0
        return out + lora_out  # type: ignore[no-any-return]


def linear(recipe: Training, name: str, width_in: int, width_out: int) -> Module:
    """A linear layer, with an adapter where `name` is one of LoRA's targets."""
    if recipe.lora is not None and name in recipe.lora.targets:
        return LoRALinear(recipe.lora, width_in, width_out, recipe.dtype)
    return nn.Linear(width_in, width_out, recipe.dtype)


class RotaryPositionalEmbeddings(Module):
    """`RotaryPositionalEmbeddings`, one for all layers."""

    role = nn.ROTARY

    def __init__(self, width: int, length: Any) -> None:
        super().__init__()
        self.theta = nn.buffer((width // 2,), FLOAT32)
        self.cache = nn.buffer((length, width // 2, 2), FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, H), in pairs."""
        batch, length, heads, width = x.shape
        rope_cache = self.cache.narrow(0, length)
        xshaped = x.float().reshape(batch, length, heads, width // 2, 2)
        rope_cache = rope_cache.view(1, length, 1, width // 2, 2)
        first, second = ops.select(xshaped, -1), ops.select(xshaped, -1)
        cos, sin = ops.select(rope_cache, -1), ops.select(rope_cache, -1)
        x_out = ops.stack_last([first * cos - second * sin, second * cos + first * sin])
        return x_out.view(batch, length, heads, width).to(x.dtype)


class MultiHeadAttention(Module):
    """`MultiHeadAttention`."""

    role = nn.ATTENTION

    def __init__(self, config: LlamaConfig, recipe: Training, rope: list[RotaryPositionalEmbeddings]) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = linear(recipe, "q_proj", width, self.heads * self.head_dim)
        self.k_proj = linear(recipe, "k_proj", width, self.kv_heads * self.head_dim)
        self.v_proj = linear(recipe, "v_proj", width, self.kv_heads * self.head_dim)
        self.output_proj = linear(recipe, "o_proj", self.heads * self.head_dim, width)
        self.pos_embeddings = rope

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        (rope,) = self.pos_embeddings
        q = self.q_proj(x)
        q = q.view(batch, length, self.heads, self.head_dim)
        q = rope(q)
        q = q.transpose(1, 2)
        k = self.k_proj(x)
        v = self.v_proj(x)
        k = k.view(batch, length, -1, self.head_dim)
        v = v.view(batch, length, -1, self.head_dim)
        k = rope(k)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        if self.heads != self.kv_heads:
            expand_shape = (batch, self.kv_heads, self.heads // self.kv_heads, length, self.head_dim)
            k = k.unsqueeze(2).expand(*expand_shape).reshape(batch, self.heads, length, self.head_dim)
            v = v.unsqueeze(2).expand(*expand_shape).reshape(batch, self.heads, length, self.head_dim)
        output = ops.scaled_dot_product_attention(q, k, v, None, 0.0, True, False)
        output = output.transpose(1, 2).contiguous().view(batch, length, -1)
        return self.output_proj(output)  # type: ignore[no-any-return]


class FeedForward(Module):
    """`FeedForward`."""

    role = nn.MLP

    def __init__(self, config: LlamaConfig, recipe: Training) -> None:
        super().__init__()
        self.w1 = linear(recipe, "gate_proj", config.hidden_size, config.intermediate_size)
        self.w2 = linear(recipe, "down_proj", config.intermediate_size, config.hidden_size)
        self.w3 = linear(recipe, "up_proj", config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        h = ops.silu(self.w1(x))
        h = h * self.w3(x)
        return self.w2(h)  # type: ignore[no-any-return]


class TransformerSelfAttentionLayer(Module):
    """`TransformerSelfAttentionLayer`."""

    role = nn.BLOCK

    def __init__(self, config: LlamaConfig, recipe: Training, rope: list[RotaryPositionalEmbeddings]) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(config, recipe, rope)
        self.mlp = FeedForward(config, recipe)
        self.sa_norm = RMSNorm(config.hidden_size, recipe.dtype)
        self.mlp_norm = RMSNorm(config.hidden_size, recipe.dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.sa_norm(x)
        attn_out = self.attn(h)
        h = attn_out + x
        mlp_out = self.mlp(self.mlp_norm(h))
        return h + mlp_out  # type: ignore[no-any-return]


class TransformerDecoder(CausalModel):
    """`TransformerDecoder`, with the recipe's `_loss_step` behind it."""

    cache_layers = 0

    def __init__(self, config: LlamaConfig, recipe: Training, positions: Any) -> None:
        super().__init__()
        self.recipe = recipe
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, recipe.dtype)
        self.pos_embeddings = RotaryPositionalEmbeddings(config.head_dim, positions)
        rope = [self.pos_embeddings]
        self.layers = nn.Stack(
            "layers", config.num_hidden_layers, lambda _: TransformerSelfAttentionLayer(config, recipe, rope)
        )
        self.norm = RMSNorm(config.hidden_size, recipe.dtype)
        tied_to = self.tok_embeddings if config.tie_word_embeddings else None
        self.output = nn.Head(tied_to, config.hidden_size, config.vocab_size, recipe.dtype)

    def logits(self, tokens: Tensor) -> list[Tensor]:
        """The model's own forward: logits in chunks, or all of them in fp32."""
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h)
        h = self.norm(h)
        if self.recipe.loss == LINEAR_LOSS:  # `skip_output_layer`
            return [h]
        if self.recipe.loss == "chunked":
            with saved_tensors_hooks(None):  # `NoOpManager` around the output layer
                return [self.output(chunk) for chunk in h.split(-(-h.shape[1] // CHUNKS), dim=1)]
        return [self.output(h).float()]

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *_: Any) -> CausalOutput:
        offloading = Offloading(host_of(self, ACTIVATIONS)) if self.recipe.offload_activations else None
        with saved_tensors_hooks(offloading.pack) if offloading is not None else nullcontext():
            logits = self.logits(input_ids)
        assert labels is not None
        if self.recipe.loss == LINEAR_LOSS:
            return CausalOutput(None, self.linear_chunked(logits.pop(), labels))  # whose data has moved labels
        ignored = ops.input_tensor((labels.shape[0], 1), INT64)
        labels = ops.cat([labels.narrow(1, labels.shape[1] - 1), ignored], 1)
        del ignored
        if self.recipe.loss != "chunked":
            return CausalOutput(None, ops.cross_entropy(logits[0].view(-1, logits[0].shape[-1]), labels.view(-1)))
        return CausalOutput(None, self.chunked(logits, labels))

    def chunked(self, logits: list[Tensor], labels: Tensor) -> Tensor:
        """`CEWithChunkedOutputLoss.forward`."""
        target_chunks = [chunk.reshape(-1) for chunk in labels.split(logits[0].shape[1], dim=1)]
        logits_chunks = [chunk.reshape(-1, chunk.shape[-1]) for chunk in logits]
        total_loss: Tensor | None = None
        for logits_chunk, labels_chunk in zip(logits_chunks, target_chunks, strict=True):
            if self.recipe.compile:
                loss = compiled_cross_entropy(logits_chunk, labels_chunk)
            else:
                loss = ops.cross_entropy(logits_chunk.float(), labels_chunk)
            total_loss = loss if total_loss is None else total_loss + loss
        assert total_loss is not None
        return total_loss / 2

    def linear_chunked(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`LinearCrossEntropyLoss.forward`, where no token is ignored: hidden states (batch, length, width)."""
        targets = targets.reshape(-1)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        indices = ops.nonzero(ops.equal(targets, targets), targets.shape[0]).narrow(0, 1).squeeze(0)
        outputs, targets = ops.index_select(outputs, indices), ops.index_select(targets, indices)
        del indices
        pieces = _eighths(targets.shape[0])
        hidden_chunks = [outputs.narrow(0, length, start) for start, length in pieces]
        target_chunks = [targets.narrow(0, length, start) for start, length in pieces]
        total_loss = ops.zeros((), FLOAT32)
        for hidden_chunk, target_chunk in zip(hidden_chunks, target_chunks, strict=True):
            logits = self.output(hidden_chunk)
            loss = ops.cross_entropy(logits.float(), target_chunk)
            del logits
            total_loss = ops.add_(total_loss, loss)
        return total_loss / 2


def _eighths(tokens: Size) -> list[tuple[Size, Size]]:
    """Where `tensor_split` cuts: the first ones are longer by one, where it does not divide."""
    if not isinstance(tokens, int):
        raise NotModelledError("eighths of many numbers of tokens at once", where="loss")
    each, longer = divmod(tokens, CHUNKS)
    lengths = [each + (number < longer) for number in range(CHUNKS)]
    return [(sum(lengths[:number]), length) for number, length in enumerate(lengths)]


# -- activations on the host -----------------------------------------------------------------------
class Offloading:
    """`OffloadActivations` with streams, for one forward and backward pass."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tensor_id = 0
        self.fwd_stash: dict[int, Tensor] = {}
        self.bwd_stash: list[Tensor] = []

    def pack(self, activation: Tensor) -> Any:
        """What a node keeps: the tensor, or where it went."""
        self.tensor_id += 1
        small = isinstance(activation.num_bytes, int) and activation.num_bytes < SMALLEST
        if small or activation.storage.purpose in (WEIGHT, BUFFER):
            return activation.alias()
        for number in [n for n in self.fwd_stash if n <= self.tensor_id - STASH]:
            del self.fwd_stash[number]
        self.fwd_stash[self.tensor_id] = activation.alias()
        return _Offloaded(self, self.tensor_id, activation)


class _Offloaded(Packed):
    """A saved tensor on the host."""

    __slots__ = ("copy", "dtype", "manager", "requires_grad", "shape", "tensor_id")

    def __init__(self, manager: Offloading, tensor_id: int, activation: Tensor) -> None:
        self.manager, self.tensor_id = manager, tensor_id
        self.copy = manager.host.empty(activation.shape, activation.dtype, ACTIVATION)
        self.shape, self.dtype = activation.shape, activation.dtype
        self.requires_grad = activation.requires_grad

    def unpack(self) -> Tensor:
        """Where it still is on the device, that one; else a copy, which stays until the next node has its own."""
        manager = self.manager
        kept = manager.fwd_stash.get(self.tensor_id)
        previous = manager.bwd_stash
        if kept is None:
            kept = empty(self.shape, self.dtype, "aten::_to_copy")
            manager.bwd_stash = [kept]
        manager.fwd_stash.clear()
        del previous
        unpacked = kept.alias()
        unpacked.requires_grad = self.requires_grad
        return unpacked


# -- the program -----------------------------------------------------------------------------------
class Recipe(Loop):
    """`FullFinetuneRecipe*` and `LoRAFinetuneRecipe*`."""

    peft = False

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The decoder, frozen but for its adapters where there are any.

        Raises:
            NotModelledError: another family; QLoRA; DoRA.
        """
        if config.get("model_type") not in FAMILIES:
            raise NotModelledError(f"torchtune's {config.get('model_type')}", where=f"{where}: model_type")
        if recipe.quantization is not None:
            raise NotModelledError("torchtune's QLoRA (torchao's NF4)", where="quantization")
        if recipe.compile and recipe.checkpoint_every > 1:
            raise NotModelledError("compiled layers of which some are checkpointed", where="compile")
        if recipe.loss == LINEAR_LOSS and recipe.compile:
            raise NotModelledError("torchtune's linear loss, compiled,", where="loss")
        if recipe.offload_activations and recipe.checkpointing is None:
            raise NotModelledError("offloaded activations without checkpoints", where="offload_activations")
        if recipe.lora is not None and recipe.lora.dora:
            raise NotModelledError("torchtune's DoRA", where="lora")
        positions = config.get("max_position_embeddings") or recipe.sequence
        model = TransformerDecoder(LlamaConfig.read(config, where), recipe, positions)
        name_modules(model)
        if recipe.lora is not None:
            for parameter in model.parameters():
                parameter.tensor.requires_grad = ".lora_" in parameter.names[0]
        return model

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """Checkpoints around the layers, then FSDP2 around both."""
        if recipe.checkpointing is not None:
            yield Checkpointing(recipe.checkpointing, every=recipe.checkpoint_every)
        elif recipe.compile:
            yield Compiled(blocks=True)
        yield from parallel(replace(recipe, compile=False, offload_activations=False))

    def kernels(self, recipe: Training, family: str) -> dict[str, Any]:
        """None but the device's: the losses are the decoder's."""
        return {}

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """`_loss_step`."""
        return model(input_ids, labels).loss  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Torchtune(Runtime):
    """The recipes, with the defaults of their configs."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        found.setdefault("dtype", "bf16")
        found.setdefault("loss", "chunked")
        if found.get("optimizer", "adamw") == "adamw":
            found.setdefault("implementation", "fused")
        return found


RUNTIME = Torchtune("torchtune", "30b8519 (September 2024), 1814feb (November 2024)", Recipe())
