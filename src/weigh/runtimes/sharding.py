"""Which part of a model a rank has: matrices are cut along the side that their names tell.

An unknown name is refused where there is more than one rank. Read: vLLM 0.6.4 to 0.25
(`model_executor/layers/linear.py`, `distributed/utils.py: get_pp_indices`, `fused_moe/config.py:
FusedMoEParallelConfig.make`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.runtimes.engine import ServeJob

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Matrices that become one."""
COLUMN = frozenset(
    """q_proj k_proj v_proj qkv_proj query_key_value c_attn Wqkv W_pack qkv gate_proj up_proj gate_up_proj w1 w3 wi
    c_fc fc1 fc_in dense_h_to_4h up_gate q_b_proj kv_b_proj in_proj in_proj_qkvz in_proj_ba in_proj_qkv in_proj_z
    in_proj_b in_proj_a linear_1 linear_fc1 ffn_up query key value q_lin k_lin v_lin lin1 q k v dt_proj mlp.0
    per_layer_model_projection linear_left output_gate g_proj input_linear f_b_proj g_b_proj b_proj
    patch_embedding.linear altup_projections.0 altup_projections.1 altup_projections.2 altup_unembed_projections.0
    altup_unembed_projections.1 altup_unembed_projections.2""".split()
)
"""Matrices whose outputs are divided; where the last part of a name says too little, the one before it stands too."""
ROW = frozenset(
    """o_proj out_proj down_proj dense c_proj dense_4h_to_h fc2 fc_out w2 wo linear_2 linear_fc2 ffn_down
    proj out_lin lin2 o x_proj mlp.2 linear_right output_linear""".split()
)
"""Matrices whose inputs are divided."""
WHOLE = frozenset(
    """gate router q_a_proj kv_a_proj_with_mqa shared_expert_gate patch_embedding position_embedding embed_positions
    wpe merger wk weights_proj wq_b project_in project_out vocab_transform pos_embed merging_layer linear classifier
    per_layer_input_gate per_layer_projection embedding_projection correction_coefs prediction_coefs modality_router
    f_a_proj g_a_proj audio_bos_eos_token""".split()
)
"""Matrices that every rank has."""
PER_HEAD = frozenset("sinks A_log D dt_bias conv1d".split())
"""Small tensors of which each rank has its heads' or channels' part."""
WHOLE_TOWERS = frozenset("gemma3n gemma4 qwen2_audio".split())
"""Models whose parts that see or hear run as transformers has them, whole on every rank (`gemma4_mm.py`)."""
KEYS_VALUES = ("k_proj", "v_proj")
PACKED = frozenset("qkv_proj query_key_value c_attn Wqkv W_pack qkv".split())
"""Queries, keys and values that a family keeps in one matrix."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Which part of the model a rank has."""

    tensor: int = 1
    """Ranks that share every layer."""
    experts_over: int = 1
    """Ranks that share the experts: those of all replicas too."""
    whole_experts: bool = False
    """They have whole experts."""
    stage: int = 0
    stages: int = 1
    redundant: int = 0
    """Experts of a layer that are there twice, for the ranks to be busy alike."""
    towers_whole: bool = False
    """Parts that see or hear are not shared."""
    dense_whole: bool = False
    """Feed-forwards without experts, in a model that has some, are not shared."""


def side(module: str) -> frozenset[str] | None:
    """Which of `COLUMN`, `ROW` and `WHOLE` a module's name is in; None where it is in none.

    >>> side("visual.merger.mlp.0") is COLUMN, side("visual.merger") is WHOLE, side("h.0.novel") is None
    (True, True, True)
    """
    parts = module.split(".")
    for name in (".".join(parts[-2:]), parts[-1]):
        for found in (WHOLE, ROW, COLUMN):
            if name in found:
                return found
    return None


def rank_of(job: ServeJob, stage: int = 0) -> Rank:
    """The part of one rank of a job."""
    return Rank(job.tensor, job.tensor * job.data, job.expert, stage, job.pipeline)


def stage_layers(layers: int, stages: int) -> list[range]:
    """Which blocks each pipeline stage has: what is left over goes to the last stages but the very last.

    >>> stage_layers(10, 4)
    [range(0, 2), range(2, 5), range(5, 8), range(8, 10)]
    """
    each, left = divmod(layers, stages)
    counts = [each] * stages
    for index in range(2, left + 2):
        counts[-index] += 1
    starts = [sum(counts[:index]) for index in range(stages)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]
