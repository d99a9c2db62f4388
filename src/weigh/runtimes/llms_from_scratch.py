"""The training of the book "Build a Large Language Model From Scratch": GPT-2's shapes in the book's own modules.

Read: rasbt/LLMs-from-scratch, ch05/10_llm-training-speed, `00_orig.py` and `01_opt_single_gpu.py` (2025), and the
changes between them that its README lists one by one.

- Queries, keys and values have no bias, the head is a matrix of its own.
- Eager attention scores every pair of tokens and masks the scores in place, by a mask of every layer (a buffer in the
  model's dtype) or, from the first change on, one made while it runs; with sdpa one layer makes queries, keys and
  values (`PyTorchMultiHeadAttention`).
- Norms and GELU are written out, or PyTorch's.
- `zero_grad` stands at the beginning of a step, so that gradients are there at its end.

Left out: the evaluation and the sample of text between epochs, which need less than a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import BOOL, DType
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, CausalOutput, token_loss
from weigh.models.config import Keys
from weigh.recipes.loop import Loop
from weigh.recipes.training import Training
from weigh.records import dataclass
from weigh.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class Config:
    """The book's `GPT_CONFIG_124M` under GPT-2's names, and which of its modules are used."""

    vocab_size: int
    context_length: int
    emb_dim: int
    n_layers: int
    n_heads: int
    drop_rate: float
    mask_buffers: bool
    """Every layer keeps its causal mask (`00_orig.py`)."""
    native_classes: bool
    """PyTorch's LayerNorm and GELU."""

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> Config:
        """From a GPT-2 `config.json` with the keys `mask_buffers` and `native_classes`."""
        keys = Keys(config, where)
        return cls(
            vocab_size=keys.size("vocab_size", default=50257),
            context_length=keys.size("n_positions", "max_position_embeddings", default=1024),
            emb_dim=keys.size("n_embd", "hidden_size", default=768),
            n_layers=keys.size("n_layer", "num_hidden_layers", default=12),
            n_heads=keys.size("n_head", "num_attention_heads", default=12),
            drop_rate=keys.fraction("resid_pdrop", default=0.1),
            mask_buffers=keys.flag("mask_buffers", default=False),
            native_classes=keys.flag("native_classes", default=True),
        )


class MultiHeadAttention(Module):
    """Attention of single ops, over all pairs of tokens."""

    role = nn.ATTENTION

    def __init__(self, config: Config, dtype: DType) -> None:
        super().__init__()
        self.d_out, self.num_heads = config.emb_dim, config.n_heads
        self.W_query = nn.Linear(config.emb_dim, config.emb_dim, dtype)
        self.W_key = nn.Linear(config.emb_dim, config.emb_dim, dtype)
        self.W_value = nn.Linear(config.emb_dim, config.emb_dim, dtype)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim, dtype, bias=True)
        self.dropout = nn.Dropout(config.drop_rate)
        square = (config.context_length, config.context_length)
        self.mask = nn.buffer(square, dtype) if config.mask_buffers else None

    def forward(self, x: Tensor) -> Tensor:
        b, num_tokens, _ = x.shape
        keys = self.W_key(x)
        queries = self.W_query(x)
        values = self.W_value(x)
        heads = (b, num_tokens, self.num_heads, self.d_out // self.num_heads)
        keys = keys.view(*heads).transpose(1, 2)
        values = values.view(*heads).transpose(1, 2)
        queries = queries.view(*heads).transpose(1, 2)
        attn_scores = queries.matmul(keys.transpose(2, 3))
        if self.mask is not None:
            mask_bool = self.mask.to(BOOL).narrow(0, num_tokens).narrow(1, num_tokens)
        else:
            mask_bool = ops.triu(ops.ones((num_tokens, num_tokens), BOOL))
        attn_scores = ops.masked_fill_(attn_scores, mask_bool)
        attn_weights = ops.softmax(attn_scores / 8.0)
        attn_weights = self.dropout(attn_weights)
        context_vec = attn_weights.matmul(values).transpose(1, 2)
        context_vec = context_vec.reshape(b, num_tokens, self.d_out)
        return self.out_proj(context_vec)  # type: ignore[no-any-return]


class PyTorchMultiHeadAttention(Module):
    """Attention by `scaled_dot_product_attention`."""

    role = nn.ATTENTION

    def __init__(self, config: Config, dtype: DType) -> None:
        super().__init__()
        self.d_out, self.num_heads, self.dropout = config.emb_dim, config.n_heads, config.drop_rate
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, dtype)
        self.proj = nn.Linear(config.emb_dim, config.emb_dim, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        batch_size, num_tokens, _ = x.shape
        qkv = self.qkv(x)
        qkv = qkv.view(batch_size, num_tokens, 3, self.num_heads, self.d_out // self.num_heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        queries, keys, values = ops.unbind(qkv)
        context_vec = ops.scaled_dot_product_attention(queries, keys, values, None, self.dropout, True, False)
        context_vec = context_vec.transpose(1, 2).contiguous().view(batch_size, num_tokens, self.d_out)
        return self.proj(context_vec)  # type: ignore[no-any-return]


class LayerNorm(Module):
    """A layer norm of single ops."""

    role = nn.NORM

    def __init__(self, emb_dim: int, dtype: DType) -> None:
        super().__init__()
        self.scale = nn.parameter((emb_dim,), dtype)
        self.shift = nn.parameter((emb_dim,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = ops.var(x, -1)
        norm_x = (x - mean) / ops.sqrt(var + 1e-5)
        return self.scale * norm_x + self.shift


class FeedForward(Module):
    """The MLP."""

    role = nn.MLP

    def __init__(self, config: Config, dtype: DType) -> None:
        super().__init__()
        self.first = nn.Linear(config.emb_dim, 4 * config.emb_dim, dtype, bias=True)
        self.gelu = nn.Activation("gelu" if config.native_classes else "gelu_new")
        self.second = nn.Linear(4 * config.emb_dim, config.emb_dim, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.gelu(x)
        x = self.second(x)
        return x


class TransformerBlock(Module):
    """Norms before attention and MLP, dropout behind them."""

    role = nn.BLOCK

    def __init__(self, config: Config, dtype: DType) -> None:
        super().__init__()
        attention = MultiHeadAttention if state.attention == "eager" else PyTorchMultiHeadAttention
        norm = nn.LayerNorm if config.native_classes else LayerNorm
        self.att: Module = attention(config, dtype)
        self.ff = FeedForward(config, dtype)
        self.norm1: Module = norm(config.emb_dim, dtype)
        self.norm2: Module = norm(config.emb_dim, dtype)
        self.drop_shortcut = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)
        x = self.drop_shortcut(x)
        x = x + shortcut
        return x


class GPTModel(CausalModel):
    """The whole model."""

    cache_layers = 0

    def __init__(self, config: Config, dtype: DType) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim, dtype)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim, dtype)
        self.drop_emb = nn.Dropout(config.drop_rate)
        self.trf_blocks = nn.Stack("trf_blocks", config.n_layers, lambda _: TransformerBlock(config, dtype))
        self.final_norm: Module = (nn.LayerNorm if config.native_classes else LayerNorm)(config.emb_dim, dtype)
        self.out_head = nn.Head(None, config.emb_dim, config.vocab_size, dtype)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *_: Any) -> CausalOutput:
        tok_embeds = self.tok_emb(input_ids)
        pos_embeds = self.pos_emb(ops.arange(input_ids.shape[1]))
        x = tok_embeds + pos_embeds
        x = self.drop_emb(x)
        for block in self.trf_blocks:
            x = block(x)
        x = self.final_norm(x)
        return CausalOutput(self.out_head(x))


class Book(Loop):
    """`train_model_simple_with_timing`."""

    zero_grad_first = True
    peft = False

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The book's `GPTModel`."""
        model = GPTModel(Config.read(config, where), recipe.dtype)
        name_modules(model)
        return model

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """`calc_loss_batch`, outside of what is compiled."""
        return token_loss(model(input_ids).logits, labels)


RUNTIME = Runtime("llms_from_scratch", "2025", Book(), software="the book's own model (2025) in PyTorch 2.13")
