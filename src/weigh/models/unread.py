"""Keys of a config that a family does not read, where they could mean something for memory.

Everybody adds keys to a `config.json`. Most are about tokens, generation, initialization or labels, and change no
tensor: those are listed here. Any other key that the family did not ask for, with a value that switches something on,
is named in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORDS = frozenset(
    (
        # what the file is, and which code reads it
        "model_type architectures auto_map transformers_version torch_dtype dtype torchscript tokenizer_class "
        "tokenizer_type processor_class _name_or_path _commit_hash name_or_path finetuning_task "
        "task_specific_params problem_type prefix quantization_config compression_config quantization adapters "
        "unsloth_version unsloth_fixed license tf_legacy_loss _attn_implementation _attn_implementation_autoset "
        "attn_implementation use_flash_attn use_cache use_cache_quantization use_cache_kernel use_mamba_kernels "
        "use_associative_scan use_bfloat16 fp16 bf16 fp32 is_decoder is_encoder_decoder is_composition "
        "pretraining_tp tie_encoder_decoder output_attentions output_hidden_states return_dict "
        "output_router_logits return_last_states chunk_size_feed_forward num_logits_to_keep init_device mode "
        "pruned_heads masked_softmax_fusion bias_dropout_fusion slow_but_exact gradient_checkpointing "
        "remove_invalid_values typical_p "
        # numbers that scale, clip, normalize or mask, and shape nothing
        "max_position_embeddings max_sequence_length model_max_length seq_length context_length "
        "original_max_position_embeddings n_ctx relative_attention_max_distance query_pre_attn_scalar "
        "gate_soft_cap use_dynamic_ntk use_logn_attn rotary_pct partial_rotary_factor scale_attn_weights "
        "scale_embedding swiglu_limit swiglu_alpha logit_scale routed_scaling_factor attention_softmax_in_fp32 "
        "scale_attention_softmax_in_fp32 lower_case vocab_file rescale_prenorm_residual mamba_ssm_dtype "
        "mamba_ssm_cache_dtype alibi_bias_max altup_coef_clip activation_sparsity_pattern "
        # what follows from other keys
        "qk_head_dim _sliding_window_pattern "
        # what generation_config.json took over
        "max_length min_length num_beams num_beam_groups diversity_penalty length_penalty repetition_penalty top_k "
        "top_p do_sample early_stopping num_return_sequences bad_words_ids badwordsids suppress_tokens "
        "begin_suppress_tokens return_dict_in_generate output_scores id2label label2id num_labels sep_token "
        "cls_token pad_token eos_token bos_token "
    ).split()
)
"""Keys that change no tensor, whatever the family."""
PARTS = (
    *("_eps", "epsilon", "initializer", "init_std", "init_scheme", "variance_scale", "dropout", "token_id", "summary_"),
    *("_multiplier", "_scaling", "softcap", "soft_cap", "_loss", "loss_", "_coef", "time_step_m", "time_step_floor"),
    *("time_step_limit", "time_step_scale", "rope_", "rotary_emb_base", "ngram", "temperature", "alpha_factor"),
    *("beta_factor", "_kernel", "special_tokens", "prompt", "pdrop"),
)
"""Parts of such keys."""
NESTED = frozenset({"text_config", "vision_config", "audio_config", "llm_config", "thinker_config"})
"""Keys of configs in a config."""
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values that switch nothing on."""


def unread(config: Mapping[str, Any], read: frozenset[str]) -> tuple[str, ...]:
    """The keys of a config, and of the configs in it, that were not `read` and are not known to be harmless."""
    found = []
    for key, value in config.items():
        if isinstance(value, Mapping) and key in NESTED and key in read:
            found += [f"{key}.{name}" for name in unread(value, read)]
        elif key not in read and value not in _OFF and not _is_harmless(key):
            found.append(key)
    return tuple(found)


def _is_harmless(key: str) -> bool:
    return key in WORDS or key == "eps" or any(part in key for part in PARTS)
