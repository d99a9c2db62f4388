"""litgpt: its own GPT, fine-tuned with LoRA or adapters, on one device or under FSDP1.

Read: Lightning-AI/litgpt at 6178c7c (October 2023, then lit-gpt) and 3d36b6b (September 2024): `model.py`, `lora.py`,
`adapter_v2.py`, `finetune/*.py`, `utils.py`; lightning.fabric 2.1 (`wrappers.py`, `plugins/precision`).

- One projection makes queries, keys and values, interleaved by groups; keys and values are repeated for every head.
- The tables of the rotary embedding are in fp32, so that everything rotated is in fp32 for a while.
- The head is never the embedding. It runs on chunks of 128 positions, and so does the loss; fabric casts what a model
  returns to fp32, and the script holds the list of logits, and the loss with its graph, until the next ones are there.
- LoRA of queries and values writes its product into zeros for queries, keys and values.
- The first micro-batch is the longest sample of the data, and the only one that is as long.

Left out: full fine-tuning, mixtures of experts, the validation between steps; under FSDP1 every micro-batch is taken to
be as long as the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from weigh.dtypes import BOOL, FLOAT32, INT64, DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, CausalOutput
from weigh.models.config import Keys
from weigh.recipes.dividing import parallel
from weigh.recipes.loop import Loop
from weigh.recipes.training import Training
from weigh.records import dataclass, replace
from weigh.runtimes import Runtime
from weigh.techniques import Technique
from weigh.techniques.checkpointing import Checkpointing
from weigh.techniques.lora import Lora
from weigh.techniques.quantization import Quantization

CHUNK = 128
"""Positions that the head and the loss see at once."""
DROPOUT = 0.05
"""The scripts' of LoRA."""
ADAPTERS = ("llama_adapter", "llama_adapter_v2")
PROMPT, FIRST_ADAPTED = 10, 2
"""Tokens of an adapter's prompt, and the first layer that has one (`adapter.Config`)."""


@dataclass(frozen=True, slots=True)
class Config:
    """litgpt's `Config`, read from a `config.json` of transformers, and how it is fine-tuned."""

    dtype: DType
    padded_vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_query_groups: int
    head_size: int
    intermediate_size: int
    rotary_percentage: float
    norm: str
    mlp: str
    bias: bool
    lm_head_bias: bool
    parallel_residual: bool
    shared_attention_norm: bool
    scale_embeddings: bool
    gemma2: bool
    """Capped scores, norms behind attention and MLP, and a window in every other layer."""
    first: bool
    """The release of October 2023."""
    lora: Lora | None
    adapter: str | None
    """One of `ADAPTERS`."""

    @classmethod
    def read(cls, config: Mapping[str, Any], recipe: Training, where: str) -> Config:
        """Raises `NotModelledError` for a family that is not read here."""
        family = str(config.get("model_type"))
        if family not in FAMILIES:
            raise NotModelledError(f"litgpt's {family}", where=f"{where}: model_type")
        keys = Keys(config, where)
        width, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
        found: dict[str, Any] = {
            "rotary_percentage": 1.0,
            "norm": "RMSNorm",
            "mlp": "LLaMAMLP",
            "bias": False,
            "lm_head_bias": False,
            "parallel_residual": False,
            "shared_attention_norm": False,
            "scale_embeddings": False,
            "gemma2": False,
            "n_query_groups": keys.size("num_key_value_heads", default=heads),
            "intermediate_size": keys.size("intermediate_size", default=4 * width),
        } | FAMILIES[family](keys)
        return cls(
            dtype=recipe.dtype,
            padded_vocab_size=keys.size("vocab_size"),
            n_embd=width,
            n_layer=keys.size("num_hidden_layers"),
            n_head=heads,
            head_size=keys.size("head_dim", default=width // heads),
            first=keys.flag("litgpt_2023", default=False),
            lora=recipe.lora,
            adapter=config.get("litgpt_adapter"),
            **found,
        )

    @property
    def rope_n_elem(self) -> int:
        """How much of a head is rotated."""
        return int(self.rotary_percentage * self.head_size)


def _neox(keys: Keys) -> dict[str, Any]:
    return {
        "rotary_percentage": keys.fraction("rotary_pct", "partial_rotary_factor", default=0.25),
        "norm": "LayerNorm",
        "mlp": "GptNeoxMLP",
        "bias": True,
        "parallel_residual": keys.flag("use_parallel_residual", default=True),
    }


def _phi(keys: Keys) -> dict[str, Any]:
    rotary = keys.fraction("partial_rotary_factor", default=0.5)
    return _neox(keys) | {
        "rotary_percentage": rotary,
        "parallel_residual": True,
        "shared_attention_norm": True,
        "lm_head_bias": True,
    }


def _falcon(keys: Keys) -> dict[str, Any]:
    multi_query = keys.flag("multi_query", default=True) and not keys.flag("new_decoder_architecture", default=False)
    if not multi_query:
        raise NotModelledError("litgpt's Falcon with groups of heads", where=f"{keys.where}: multi_query")
    return {
        "norm": "LayerNorm",
        "mlp": "GptNeoxMLP",
        "n_query_groups": 1,
        "parallel_residual": True,
        "shared_attention_norm": True,
    }


def _gemma(_: Keys) -> dict[str, Any]:
    return {"norm": "GemmaRMSNorm", "mlp": "GemmaMLP", "scale_embeddings": True}


FAMILIES: dict[str, Callable[[Keys], dict[str, Any]]] = {
    "llama": lambda _: {},
    "mistral": lambda _: {},
    "gpt_neox": _neox,
    "phi": _phi,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": lambda keys: _gemma(keys) | {"gemma2": True},
}
"""What differs from Llama in litgpt's `config.py`."""


# -- layers ----------------------------------------------------------------------------------------
class LoRALinear(Module):
    """`LoRALinear`."""

    def __init__(self, config: Config, lora: Lora, width_in: int, width_out: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, config.dtype, bias)
        self.lora_A = nn.parameter((lora.rank, width_in), config.dtype)
        self.lora_B = nn.parameter((width_out, lora.rank), config.dtype)
        self.lora_dropout = nn.Dropout(lora.dropout)

    def forward(self, x: Tensor) -> Tensor:
        pretrained = self.linear(x)
        lora = self.lora_dropout(x).matmul(self.lora_A.transpose(0, 1)).matmul(self.lora_B.transpose(0, 1)) * 2.0
        return pretrained + lora  # type: ignore[no-any-return]


class LoRAQKVLinear(Module):
    """`LoRAQKVLinear`: products of a part of queries, keys and values, beside zeros for the rest."""

    def __init__(self, config: Config, lora: Lora, width_out: int, enabled: tuple[bool, bool, bool]) -> None:
        super().__init__()
        self.linear = nn.Linear(config.n_embd, width_out, config.dtype, config.bias)
        size, groups = config.head_size, config.n_query_groups
        widths = (size * config.n_head, size * groups, size * groups)
        self.qkv_shapes: list[Any] = [width for width, on in zip(widths, enabled, strict=True) if on]
        self.enable_lora, self.first = enabled, config.first
        self.out_features, self.grouped = width_out, config.n_head != groups
        self.lora_A = nn.parameter((lora.rank * sum(enabled), config.n_embd), config.dtype)
        self.lora_B = nn.parameter((sum(self.qkv_shapes), lora.rank), config.dtype)
        self.lora_dropout = nn.Dropout(lora.dropout)
        self.lora_ind = None if self.first or all(enabled) else nn.buffer((sum(self.qkv_shapes),), INT64)

    def zero_pad(self, x: Tensor) -> Tensor:
        """(B, T, some) -> (B, T, all)."""
        if all(self.enable_lora):
            return x
        if not self.first:
            result = ops.zeros((*x.shape[:-1], self.out_features), x.dtype)
            assert self.lora_ind is not None
            return ops.index_copy_last_(result, self.lora_ind, x)
        x = x.transpose(0, 1)
        result = ops.zeros((*x.shape[:-1], self.out_features), x.dtype)
        result = result.view(-1, self.out_features)
        lora_ind = ops.input_tensor((sum(self.qkv_shapes),), INT64)
        result = ops.index_copy(result, lora_ind, x.reshape(-1, sum(self.qkv_shapes)))
        return result.view(*x.shape[:-1], self.out_features).transpose(0, 1)

    def conv1d(self, x: Tensor, weight: Tensor) -> Tensor:
        """One convolution a part, or all in one by groups."""
        if not self.grouped:
            return ops.conv1d(x, weight, None)
        count = len(self.qkv_shapes)
        parts = x.split([x.shape[1] // count] * count, dim=1)
        weights = weight.split(self.qkv_shapes)
        return ops.cat([ops.conv1d(a, b, None) for a, b in zip(parts, weights, strict=True)], 1)

    def forward(self, x: Tensor) -> Tensor:
        pretrained = self.linear(x)
        after_A = ops.linear(self.lora_dropout(x), self.lora_A)
        after_B = self.conv1d(after_A.transpose(-2, -1), self.lora_B.unsqueeze(-1)).transpose(-2, -1)
        lora = self.zero_pad(after_B) * 2.0
        return pretrained + lora  # type: ignore[no-any-return]


class AdapterV2Linear(Module):
    """`AdapterV2Linear`: a trained bias and scale of every output."""

    def __init__(self, config: Config, width_in: int, width_out: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, config.dtype, bias)
        self.adapter_bias = nn.parameter((width_out,), config.dtype)
        self.adapter_scale = nn.parameter((width_out,), config.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter_scale * (self.linear(x) + self.adapter_bias)  # type: ignore[no-any-return]


def linear(config: Config, name: str, width_in: int, width_out: int, bias: bool) -> Module:
    """A linear layer with what is fine-tuned beside it; `name` is a target of LoRA."""
    if config.adapter == "llama_adapter_v2":
        return AdapterV2Linear(config, width_in, width_out, bias)
    if config.lora is not None and name in config.lora.targets:
        return LoRALinear(config, config.lora, width_in, width_out, bias)
    return nn.Linear(width_in, width_out, config.dtype, bias)


class RMSNorm(Module):
    """`RMSNorm`: in fp32; Gemma adds one to the weight."""

    role = nn.NORM

    def __init__(self, width: int, dtype: DType, add_unit_offset: bool) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)
        self.add_unit_offset = add_unit_offset

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.float()
        norm_x = (x * x).mean(-1, keepdim=True)
        x_normed = x * ops.rsqrt(norm_x + 1e-5)
        weight = 1 + self.weight if self.add_unit_offset else self.weight
        return (x_normed * weight.float()).to(dtype)


def norm(config: Config) -> Module:
    """A norm of the model's width."""
    if config.norm == "LayerNorm":
        return nn.LayerNorm(config.n_embd, config.dtype)
    return RMSNorm(config.n_embd, config.dtype, config.norm == "GemmaRMSNorm")


class GptNeoxMLP(Module):
    """Two linear layers."""

    role = nn.MLP

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc = linear(config, "mlp", config.n_embd, config.intermediate_size, config.bias)
        self.proj = linear(config, "mlp", config.intermediate_size, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = ops.gelu(x)
        return self.proj(x)  # type: ignore[no-any-return]


class LLaMAMLP(Module):
    """Three linear layers; Gemma's has GELU for SiLU."""

    role = nn.MLP

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc_1 = linear(config, "mlp", config.n_embd, config.intermediate_size, config.bias)
        self.fc_2 = linear(config, "mlp", config.n_embd, config.intermediate_size, config.bias)
        self.proj = linear(config, "mlp", config.intermediate_size, config.n_embd, config.bias)
        self.activation = ops.gelu if config.mlp == "GemmaMLP" else ops.silu

    def forward(self, x: Tensor) -> Tensor:
        x_fc_1 = self.fc_1(x)
        x_fc_2 = self.fc_2(x)
        x = self.activation(x_fc_1) * x_fc_2
        return self.proj(x)  # type: ignore[no-any-return]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """In the dtype that `x` and the tables make together."""
    half = x.shape[-1] // 2
    x1 = x.narrow(-1, half)
    x2 = x.narrow(-1, half, half)
    rotated = ops.cat([ops.neg(x2), x1], -1)
    roped = (x * cos) + (rotated * sin)
    return roped.to(x.dtype)


class CausalSelfAttention(Module):
    """`CausalSelfAttention`, with the prompt of an adapter where there is one."""

    role = nn.ATTENTION

    def __init__(self, config: Config, block_idx: int) -> None:
        super().__init__()
        self.config = config
        width = (config.n_head + 2 * config.n_query_groups) * config.head_size
        self.attn = self._projection(config, width)
        self.proj = linear(config, "o_proj", config.head_size * config.n_head, config.n_embd, config.bias)
        self.windowed = block_idx % 2 == 0
        self.adapted = config.adapter is not None and block_idx >= FIRST_ADAPTED
        if self.adapted:
            self.adapter_wte = nn.Embedding(PROMPT, config.n_embd, config.dtype)
            self.gating_factor = nn.parameter((1, 1, config.n_head, 1), config.dtype)

    @staticmethod
    def _projection(config: Config, width: int) -> Module:
        if config.lora is not None:
            q, k, v = (name in config.lora.targets for name in ("q_proj", "k_proj", "v_proj"))
            if q or k or v:
                return LoRAQKVLinear(config, config.lora, width, (q, k, v))
        return linear(config, "qkv", config.n_embd, width, config.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        config = self.config
        B, T, _ = x.shape
        q, k, v = self.heads(self.attn(x), B, T)
        n = config.rope_n_elem
        q_roped = apply_rope(q.narrow(-1, n), cos, sin)
        k_roped = apply_rope(k.narrow(-1, n), cos, sin)
        rest = config.head_size - n
        q = ops.cat((q_roped, q.narrow(-1, rest, n)) if rest else (q_roped,), -1)
        k = ops.cat((k_roped, k.narrow(-1, rest, n)) if rest else (k_roped,), -1)
        y = self.attend(q, k, v)
        y = y.reshape(B, T, config.head_size * config.n_head)
        return self.proj(y)  # type: ignore[no-any-return]

    def heads(self, qkv: Tensor, batch: Any, length: Any, repeat: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, T, size)."""
        config = self.config
        size, groups = config.head_size, config.n_query_groups
        q_per_kv = config.n_head // groups
        qkv = qkv.view(batch, length, groups, q_per_kv + 2, size)
        qkv = qkv.permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split([q_per_kv, 1, 1], dim=2)
        if repeat and config.n_head != groups:
            k = k.expand(batch, groups, q_per_kv, length, size)
            v = v.expand(batch, groups, q_per_kv, length, size)
        return tuple(t.reshape(batch, -1, length, size) for t in (q, k, v))  # type: ignore[return-value]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`scaled_dot_product_attention`: (B, T, heads, size)."""
        if self.config.gemma2:
            return self.capped(q, k, v)
        y = ops.scaled_dot_product_attention(q, k, v, None, 0.0, True, False).transpose(1, 2)
        if not self.adapted:
            return y
        prefix = self.adapter_wte.weight.reshape(1, PROMPT, self.config.n_embd)
        aqkv = self.attn(prefix)
        _, ak, av = self.heads(aqkv, 1, PROMPT)
        amask = ops.ones((q.shape[2], PROMPT), BOOL)
        ay = ops.scaled_dot_product_attention(q, ak, av, amask, 0.0, False, False).transpose(1, 2)
        return y + self.gating_factor * ay

    def capped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of single ops, which can cap the scores."""
        square = (q.shape[2], q.shape[2])
        mask = ops.triu(ops.ones(square, q.dtype))
        mask = ops.masked_fill_(mask, mask.to(BOOL))
        if self.windowed:
            sliding_window_bias = ops.tril(ops.ones_like(mask))
            ops.masked_fill_(sliding_window_bias, sliding_window_bias.to(BOOL))
        scores = q.matmul(k.transpose(-2, -1)) * 0.0625
        scores = ops.tanh(scores / 50.0) * 50.0
        scores = scores + mask
        scores = ops.softmax(scores, FLOAT32).to(q.dtype)
        y = scores.matmul(v)
        return y.transpose(1, 2)


class Block(Module):
    """`Block`."""

    role = nn.BLOCK

    def __init__(self, config: Config, block_idx: int) -> None:
        super().__init__()
        self.config = config
        self.norm_1 = norm(config)
        self.attn = CausalSelfAttention(config, block_idx)
        self.norm_2 = None if config.shared_attention_norm else norm(config)
        self.post_attention_norm = norm(config) if config.gemma2 else None
        self.post_mlp_norm = norm(config) if config.gemma2 else None
        self.mlp: Module = (GptNeoxMLP if config.mlp == "GptNeoxMLP" else LLaMAMLP)(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n_1 = self.norm_1(x)
        h = self.attn(n_1, cos, sin)
        if self.post_attention_norm is not None:
            h = self.post_attention_norm(h)
        if self.config.parallel_residual:
            n_2 = n_1 if self.norm_2 is None else self.norm_2(x)
            return self.mlp(n_2) + h + x  # type: ignore[no-any-return]
        assert self.norm_2 is not None
        x = h + x
        out: Tensor = self.mlp(self.norm_2(x))
        if self.post_mlp_norm is not None:
            out = self.post_mlp_norm(out)
        return out + x


class GPT(CausalModel):
    """`GPT`, whose output is the fp32 logits in chunks."""

    cache_layers = 0

    def __init__(self, config: Config, length: Any) -> None:
        super().__init__()
        self.config = config
        self.lm_head = linear(config, "lm_head", config.n_embd, config.padded_vocab_size, config.lm_head_bias)
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd, config.dtype)
        lead = FIRST_ADAPTED if config.adapter else 0
        self.h = nn.Stack("h", config.n_layer, lambda index: Block(config, index), lead=lead)
        self.ln_f = norm(config)
        self.cos = nn.buffer((length, config.rope_n_elem), FLOAT32)
        self.sin = nn.buffer((length, config.rope_n_elem), FLOAT32)
        self.logits: list[Tensor] = []
        """The script's variables of the last micro-batch."""
        self.loss: Tensor | None = None

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *_: Any) -> CausalOutput:
        logits = [x.float() for x in self.chunks(input_ids)]
        self.logits = logits
        assert labels is not None
        logits[-1] = logits[-1].narrow(1, logits[-1].shape[1] - 1)
        self.loss = chunked_cross_entropy(logits, labels.narrow(1, labels.shape[1] - 1))
        return CausalOutput(logits[-1], self.loss)

    def chunks(self, idx: Tensor) -> list[Tensor]:
        """The logits of every chunk, in the model's dtype."""
        x = self.wte(idx)
        if self.config.scale_embeddings:
            x = x * 8.0
        for block in self.h:
            x = block(x, self.cos, self.sin)
        x = self.ln_f(x)
        return [self.lm_head(x_i) for x_i in x.split(CHUNK, dim=1)]


def chunked_cross_entropy(logits: list[Tensor], targets: Tensor) -> Tensor:
    """A loss a chunk (upstream: a loss a token, of which the last sum is made)."""
    logit_chunks = [chunk.reshape(-1, chunk.shape[-1]) for chunk in logits]
    target_chunks = [chunk.reshape(-1) for chunk in targets.split(CHUNK, dim=1)]
    losses = [ops.cross_entropy(x, y).view(1) for x, y in zip(logit_chunks, target_chunks, strict=True)]
    return ops.cat(losses, 0).mean(0)


# -- the program -----------------------------------------------------------------------------------
class Finetune(Loop):
    """`finetune/lora.py`, `adapter.py`, `adapter_v2.py` and `full.py`."""

    offloads = False

    no_sync = True
    peft = False

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The GPT, with its adapters, everything else frozen."""
        found = Config.read(config, recipe, where)
        if found.lora is None and found.adapter is None:
            raise NotModelledError("litgpt's full fine-tuning", where="lora", hint="Give a LoRA.")
        model = GPT(found, recipe.sequence)
        name_modules(model)
        if found.lora is not None or found.adapter is not None:
            for parameter in model.parameters():
                parameter.tensor.requires_grad = _trained(parameter.names[0], found)
        return model

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """Lightning puts checkpoints inside of FSDP's units."""
        if recipe.quantization is not None:
            yield Quantization(recipe.quantization, recipe.double_quantization, early=True)
        if recipe.checkpointing is not None:
            yield Checkpointing(recipe.checkpointing, every=recipe.checkpoint_every)
        yield from parallel(replace(recipe, lora=None))


TRAINED = {
    None: ("lora_",),
    "llama_adapter": ("adapter_wte", "gating_factor"),
    "llama_adapter_v2": ("adapter_", "gating_factor", "norm_1", "norm_2", "ln_f"),
}
"""Parts of the names of what is trained (`lora_filter`, `adapter_filter`)."""


def _trained(name: str, config: Config) -> bool:
    return any(part in name for part in TRAINED[config.adapter])


@dataclass(frozen=True, slots=True)
class Litgpt(Runtime):
    """The scripts of litgpt."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        found = dict(words)
        if config.get("model_type") == "gemma2":
            found["attention"] = "eager"  # whatever is asked for
        if found.get("optimizer") == "paged_adamw":
            found["optimizer"] = "paged_adamw_32bit"
        found.setdefault("steps", 1 if config.get("litgpt_2023") else 2)
        # the third is the first to find gradients of all others, and there are none to be summed without shards
        found["accumulation"] = 1 if found.get("shard") is None else min(found.get("accumulation", 1), 3)
        return found


RUNTIME = Litgpt(
    "litgpt", "2023-10, 2024-09", Finetune(), software="litgpt's own model (2023-10, 2024-09) in eager PyTorch 2.13"
)
