"""Gemma 3n, as `transformers/models/gemma3n/modeling_gemma3n.py` (5.23) writes its text model: counted, not run.

Gemma with several streams of hidden states (AltUp), a low-rank residual (LAuReL), an embedding of its own for every
layer, and last layers that read the keys and values of earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import FULL, SLIDING, CausalModel, LayerCache, ModuleList
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.gemma import GemmaConfig, GemmaTextScaledWordEmbedding
from weigh.models.gemma3_text import Gemma3RotaryEmbedding
from weigh.models.gemma4_text import REUSE, Gemma4RMSNorm, kv_sharing_modes
from weigh.models.llama import LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("gemma3n_text",)


@dataclass(frozen=True)
class Gemma3nTextConfig(GemmaConfig):
    """The settings of `Gemma3nTextConfig` that shape memory."""

    vocab_size: int = 262400
    hidden_size: int = 2048
    num_hidden_layers: int = 35
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    sliding_window: int = 512
    layer_types: tuple[str, ...] = DERIVED
    vocab_size_per_layer_input: int = 262144
    hidden_size_per_layer_input: int = 256
    altup_num_inputs: int = 4
    num_kv_shared_layers: Count = 15
    laurel_rank: int = 64
    intermediate_sizes: tuple[int, ...] = DERIVED
    """Of every layer."""
    kv_sharing_modes: tuple[str | None, ...] = DERIVED

    heads_divide_width = True

    @property
    def layer_pattern(self) -> Sequence[object]:
        """A layer may read another's keys and values."""
        modes = (mode == REUSE for mode in self.kv_sharing_modes)
        return tuple(zip(self.layer_types, self.intermediate_sizes, modes, strict=True))

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Gemma3nTextConfig:
        """From a `config.json`, where `intermediate_size` may be a number for every layer."""
        sizes = config.get("intermediate_size")
        if isinstance(sizes, list | tuple):
            config = {k: v for k, v in config.items() if k != "intermediate_size"}
            config |= {"intermediate_sizes": list(sizes)}
        return super().read(config, where)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The last of five layers has full attention."""
        found["hidden_act"] = keys.word("hidden_activation", default="gelu_pytorch_tanh")
        super().settle(keys, found)
        layers = found["num_hidden_layers"]
        if found["intermediate_sizes"] is None:
            found["intermediate_sizes"] = (keys.size("intermediate_size", default=16384),) * layers
        if len(found["intermediate_sizes"]) != layers:
            where = f"{keys.where}: intermediate_size"
            raise InputError(f"has {len(found['intermediate_sizes'])} entries", where=where, hint=f"Give {layers}.")
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if (i + 1) % 5 else FULL for i in range(layers))
        keys.check_layer_types(found)
        found["kv_sharing_modes"] = kv_sharing_modes(found["layer_types"], found["num_kv_shared_layers"], keys.where)


class Gemma3nTextLaurelBlock(nn.Module):
    """Learned augmented residual layer."""

    def __init__(self, config: Gemma3nTextConfig, dtype: DType) -> None:
        super().__init__()
        self.linear_left = nn.Linear(config.hidden_size, config.laurel_rank, dtype)
        self.linear_right = nn.Linear(config.laurel_rank, config.hidden_size, dtype)
        self.post_laurel_norm = Gemma4RMSNorm(config.hidden_size, dtype)


class Gemma3nTextMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: Gemma3nTextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_sizes[layer_idx]
        self.gate_proj = nn.Linear(width, inner, dtype)
        self.up_proj = nn.Linear(width, inner, dtype)
        self.down_proj = nn.Linear(inner, width, dtype)


class Gemma3nTextAltUp(nn.Module):
    """Alternating updates."""

    def __init__(self, config: Gemma3nTextConfig, dtype: DType) -> None:
        super().__init__()
        width, inputs = config.hidden_size, config.altup_num_inputs
        self.correct_output_scale = nn.parameter((width,), dtype)
        self.correction_coefs = nn.Linear(inputs, inputs, dtype)
        self.prediction_coefs = nn.Linear(inputs, inputs**2, dtype)
        self.modality_router = nn.Linear(width, inputs, dtype)
        self.router_norm = Gemma4RMSNorm(width, dtype)
        self.router_input_scale = nn.buffer((), dtype)


class Gemma3nTextAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: Gemma3nTextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        self.q_proj = nn.Linear(width, queries, dtype, bias)
        self.q_norm = Gemma4RMSNorm(head_dim, dtype)
        if config.kv_sharing_modes[layer_idx] != REUSE:
            self.k_proj = nn.Linear(width, keys, dtype, bias)
            self.v_proj = nn.Linear(width, keys, dtype, bias)
            self.k_norm = Gemma4RMSNorm(head_dim, dtype)
            self.v_norm = Gemma4RMSNorm(head_dim, dtype, with_scale=False)
        self.o_proj = nn.Linear(queries, width, dtype, bias)


class Gemma3nTextDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Gemma3nTextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.hidden_size_per_layer_input
        self.self_attn = Gemma3nTextAttention(config, dtype, layer_idx)
        self.mlp = Gemma3nTextMLP(config, dtype, layer_idx)
        self.input_layernorm = Gemma4RMSNorm(width, dtype)
        self.post_attention_layernorm = Gemma4RMSNorm(width, dtype)
        self.pre_feedforward_layernorm = Gemma4RMSNorm(width, dtype)
        self.post_feedforward_layernorm = Gemma4RMSNorm(width, dtype)
        self.altup = Gemma3nTextAltUp(config, dtype)
        self.laurel = Gemma3nTextLaurelBlock(config, dtype)
        self.per_layer_input_gate = nn.Linear(width, inner, dtype)
        self.per_layer_projection = nn.Linear(inner, width, dtype)
        self.post_per_layer_input_norm = Gemma4RMSNorm(width, dtype)


class Gemma3nTextModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = Gemma3nTextDecoderLayer
    norm_class: ClassVar[type[Any]] = Gemma4RMSNorm
    embedding_class = GemmaTextScaledWordEmbedding

    def __init__(self, config: Gemma3nTextConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        width, inner = config.hidden_size, config.hidden_size_per_layer_input
        each, others = config.num_hidden_layers * inner, config.altup_num_inputs - 1
        self.embed_tokens_per_layer = GemmaTextScaledWordEmbedding(config.vocab_size_per_layer_input, each, dtype)
        self.per_layer_model_projection = nn.Linear(width, each, dtype)
        self.per_layer_projection_norm = Gemma4RMSNorm(inner, dtype)
        self.altup_projections = ModuleList([nn.Linear(width, width, dtype) for _ in range(others)])
        self.altup_unembed_projections = ModuleList([nn.Linear(width, width, dtype) for _ in range(others)])
        self.per_layer_projection_scale = nn.buffer((), dtype)
        self.per_layer_input_scale = nn.buffer((), dtype)

    def rotary(self, config: Any) -> nn.Module:
        """One for each type of layer."""
        return Gemma3RotaryEmbedding(config)


class Gemma3nForCausalLM(CausalModel):
    def __init__(self, config: Gemma3nTextConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = sum(mode != REUSE for mode in config.kv_sharing_modes)
        self.model = Gemma3nTextModel(config, dtype)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads, width, window = config.num_key_value_heads, config.head_dim, config.sliding_window
        return tuple(
            LayerCache(layout.NOTHING)
            if mode == REUSE
            else LayerCache(layout.SLIDING, heads, width, width, window)
            if layer_type == SLIDING
            else LayerCache(layout.FULL, heads, width, width)
            for layer_type, mode in zip(config.layer_types, config.kv_sharing_modes, strict=True)
        )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Gemma3nForCausalLM(Gemma3nTextConfig.read(config, where), dtype)
