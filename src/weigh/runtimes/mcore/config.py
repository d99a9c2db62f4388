"""A model as Megatron Core is configured (`TransformerConfig`), read from a Hugging Face config.

`megatron_gpt` stands for models that no Hugging Face class has: every choice is a flag (`gated_mlp`, `norm_type`,
`attention_bias`, `attention_out_bias`, `mlp_bias`, `position_embedding_type`, `qk_layernorm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import round_up
from weigh.errors import NotModelledError
from weigh.models.config import Keys
from weigh.records import dataclass

ROTARY = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3")
"""RMSNorm, rotary positions and a gated MLP."""
QKV_BIAS = ("qwen2",)
QK_NORM = ("qwen3", "qwen3_moe")
EXPLICIT = ("gpt2", "megatron_gpt")
SQUARED_RELU = ("relu2", "squared_relu")
VOCAB_DIVISOR = 128
"""`--make-vocab-size-divisible-by`."""


@dataclass(frozen=True, slots=True)
class MegatronConfig:
    """The shape of a GPT model, in Megatron Core's words."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int = 0
    normalization: str = "RMSNorm"
    gated_linear_unit: bool = True
    squared_relu: bool = False
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    position_embedding_type: str = "rope"
    qk_layernorm: bool = False
    share_embeddings: bool = False
    num_moe_experts: int = 0
    moe_router_topk: int = 0
    moe_ffn_hidden_size: int = 0
    moe_shared_expert_intermediate_size: int = 0
    mtp_num_layers: int = 0
    """Layers that predict further tokens (`--mtp-num-layers`)."""
    first_dense: int = 0
    """Layers at the front with a dense MLP, in a model of experts."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    """Not 0: multi-latent attention."""
    qk_head_dim: int = 0
    qk_pos_emb_head_dim: int = 0
    v_head_dim: int = 0

    @property
    def activation(self) -> str:
        """Of the MLP."""
        return "swiglu" if self.gated_linear_unit else "squared_relu" if self.squared_relu else "gelu"

    def is_expert_layer(self, number: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return bool(self.num_moe_experts) and number >= self.first_dense

    def padded_vocab_size(self, tensor: int) -> int:
        """The vocabulary, filled up so that the tensor ranks have equal, even shares."""
        padded = round_up(self.vocab_size, VOCAB_DIVISOR * tensor)
        assert isinstance(padded, int)
        return padded

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> MegatronConfig:
        """From a config.

        Raises:
            NotModelledError: an architecture, or a part of it, that is not described for Megatron-LM.
            InputError: a key is missing or impossible.
        """
        kind = str(config.get("model_type"))
        if kind not in (*ROTARY, *EXPLICIT):
            raise NotModelledError(f"{kind} in Megatron-LM", where=where)
        if config.get("sliding_window") and config.get("use_sliding_window", True):
            raise NotModelledError("sliding_window in Megatron-LM", where=where)
        keys, plain = Keys(config, where), kind in EXPLICIT
        width = keys.size("hidden_size", "n_embd")
        heads = keys.size("num_attention_heads", "n_head")
        gated = keys.flag("gated_mlp", default=not plain)
        biased = keys.flag("mlp_bias", default=plain)
        found: dict[str, Any] = {
            "num_layers": keys.size("num_hidden_layers", "n_layer"),
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_query_groups": keys.size("num_key_value_heads", default=heads),
            "kv_channels": keys.size("head_dim", default=width // heads),
            "ffn_hidden_size": keys.optional_size("intermediate_size", "n_inner") or 4 * width,
            "vocab_size": keys.size("vocab_size"),
            "max_position_embeddings": keys.size("max_position_embeddings", "n_positions", default=1024),
            "normalization": keys.word("norm_type", default="LayerNorm" if plain else "RMSNorm"),
            "gated_linear_unit": gated,
            "squared_relu": config.get("hidden_act") in SQUARED_RELU,
            "add_bias_linear": biased,
            "add_qkv_bias": keys.flag("attention_bias", default=plain or kind in QKV_BIAS),
            "position_embedding_type": keys.word(
                "position_embedding_type", default="learned_absolute" if plain else "rope"
            ),
            "qk_layernorm": keys.flag("qk_layernorm", default=kind in QK_NORM),
            "mtp_num_layers": _count(keys, config, "num_nextn_predict_layers"),
            "share_embeddings": keys.flag("tie_word_embeddings", default=plain),
        }
        if biased and not found["add_qkv_bias"]:
            raise NotModelledError("biases in the MLP but not in attention, in Megatron-LM", where=where)
        experts = keys.optional_size("num_local_experts", "n_routed_experts", "num_experts")
        if experts:
            each = keys.size("moe_intermediate_size", default=found["ffn_hidden_size"])
            shared = keys.optional_size("shared_expert_intermediate_size")
            if shared is None:
                shared = each * _count(keys, config, "n_shared_experts")
            found |= {
                "num_moe_experts": experts,
                "moe_router_topk": keys.size("num_experts_per_tok"),
                "moe_ffn_hidden_size": each,
                "moe_shared_expert_intermediate_size": shared,
                "first_dense": _count(keys, config, "first_k_dense_replace"),
            }
        if config.get("kv_lora_rank"):
            found |= {
                "q_lora_rank": _count(keys, config, "q_lora_rank"),
                "kv_lora_rank": keys.size("kv_lora_rank"),
                "qk_head_dim": keys.size("qk_nope_head_dim"),
                "qk_pos_emb_head_dim": keys.size("qk_rope_head_dim"),
                "v_head_dim": keys.size("v_head_dim"),
            }
        return cls(**found)


def _count(keys: Keys, config: Mapping[str, Any], name: str) -> int:
    """A number that may be 0, or missing."""
    return (keys.optional_size(name) or 0) if config.get(name) else 0
