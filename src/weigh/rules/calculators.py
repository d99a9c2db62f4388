"""What well-known calculators compute, as their sources have it. Their formulas are restated, not copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.ghost import nn
from weigh.rules.exact import BIASES, POSITIONS, TOKENS
from weigh.rules.rule import REST, Rule, Term
from weigh.trace.events import ACTIVATION, GRADIENT, OPTIMIZER_STATE, WEIGHT

if TYPE_CHECKING:
    from weigh.rules.job import Job


def _without_head(job: Job) -> int:
    """Accelerate counts the model that `AutoModel` makes, which has no output layer."""
    return job.N - sum(row.total for row in job.counted.rows if row.component == nn.HEAD)


def _largest_layer(job: Job) -> int:
    """The most parameters that one module holds by itself."""
    return max(row.each for row in job.counted.rows)


def _megatron_activations(job: Job) -> float:
    """Without sequence parallelism: 34 bytes an element and layer, the embedding, the logits, and 5 % for the rest."""
    layers = job.L * job.E * (10 + 24 / job.t)
    return 1.05 * (layers + 8 * job.B * job.S + job.E + 2 * (job.B * job.S * job.V / job.t + job.E))


def _matrices(job: Job) -> int:
    """Of a feed-forward layer: what a user of the cookbook gives as `--num-mlp-linears`."""
    return 3 if job.gated else 2


def _cookbook_parameters(job: Job) -> int:
    """Two embeddings, positions as long as the sequence, 4*d^2 and M matrices a layer, norms of 8*d."""
    layers = job.L * (8 * job.d + 4 * job.d**2 + _matrices(job) * job.d * job.f)
    return 2 * job.V * job.d + job.d * job.S + 2 * job.d + layers


def _cookbook_activations(job: Job) -> int:
    """ZeRO's table 2 in 16 bit, with attention's scores."""
    per_element = 34 * job.E + 5 * job.B * job.a * job.S**2
    if job.recipe.checkpointing is not None:
        per_element = 34 * job.E
    return job.L * per_element


RULES = (
    Rule(
        "accelerate",
        "accelerate estimate-memory: training with Adam",
        "4 * weights without the output layer",
        "accelerate 1.15, commands/estimate.py",
        "no activations; the model that AutoModel makes",
        "training",
        (
            Term("weights", lambda job: job.weight_bytes * _without_head(job), (WEIGHT,)),
            Term("gradients", lambda job: job.weight_bytes * _without_head(job), (GRADIENT,)),
            Term("optimizer", lambda job: 2 * job.weight_bytes * _without_head(job), (OPTIMIZER_STATE,)),
            Term("everything else", lambda job: 0, (REST,)),
        ),
        ("untied", "foreach"),
    ),
    Rule(
        "deepspeed-zero2",
        "DeepSpeed's estimate for ZeRO-2",
        "4*N + 16*N/n",
        "DeepSpeed, runtime/zero/stage_1_and_2.py",
        "states alone, without offload",
        "states",
        (
            Term("weights and gradients", lambda job: 4 * job.N, (WEIGHT, GRADIENT)),
            Term("shared", lambda job: 16 * job.N / job.n, (OPTIMIZER_STATE,)),
        ),
        ("pure 16 bit", "autocast"),
    ),
    Rule(
        "deepspeed-zero3",
        "DeepSpeed's estimate for ZeRO-3",
        "4 * largest layer + 18*N/n",
        "DeepSpeed, runtime/zero/stage3.py",
        "states alone, without offload",
        "states",
        (
            Term("largest layer", lambda job: 4 * _largest_layer(job)),
            Term("shared", lambda job: 18 * job.N / job.n, (REST,)),
        ),
        ("pure 16 bit", "autocast"),
    ),
    Rule(
        "megatron",
        "Megatron-LM's theoretical memory",
        "18*N/t + 1.05 * (L*B*S*d*(10 + 24/t) + 8*B*S + B*S*d + 2*(B*S*V/t + B*S*d))",
        "Megatron-LM, megatron/training/theoretical_memory_usage.py, without sequence parallelism",
        "dense layers with f = 4*d; activations of a mixture of experts are taken for dense ones",
        "training",
        (
            Term("states", lambda job: 18 * job.N / job.t, (WEIGHT, GRADIENT, OPTIMIZER_STATE)),
            Term("activations", _megatron_activations, (REST,)),
        ),
        ("experts", "gated", "foreach", "pure 16 bit", "autocast"),
    ),
    Rule(
        "llm-analysis",
        "llm-analysis: parameters",
        "V*d + d + L * (2*d^2 + 2*d^2*k/a + 2*d*f + 2*d), f = 4*d",
        "llm-analysis, analysis.py; its bundled Llama 2 says f = 4*d",
        "dense models: tied embeddings, feed-forward layers of two matrices, norms without biases",
        "parameters",
        (
            Term("embedding", lambda job: job.V * job.d, (TOKENS, POSITIONS)),
            Term(
                "attention",
                lambda job: job.L * (2 + 2 * job.k / job.a) * job.d**2,
                (nn.ATTENTION, BIASES[nn.ATTENTION]),
            ),
            Term(
                "feed-forward",
                lambda job: job.L * 8 * job.d**2,
                (nn.MLP, BIASES[nn.MLP]),
            ),
            Term("norms", lambda job: job.L * 2 * job.d + job.d, (nn.NORM,)),
            Term("output", lambda job: 0, (nn.HEAD,)),
        ),
        ("untied", "gated", "experts", "positions", "latent"),
    ),
    Rule(
        "cookbook",
        "EleutherAI's cookbook: memory of training",
        "18*P + L*(34*B*S*d + 5*B*a*S^2), P = 2*V*d + d*S + 2*d + L*(4*d^2 + M*d*f + 8*d), M matrices",
        "cookbook, calc/calc_transformer_mem.py, with --num-mlp-linears M",
        "dense layers; positions as many as the sequence is long; one device",
        "training",
        (
            Term("weights", lambda job: 2 * _cookbook_parameters(job), (WEIGHT,)),
            Term("gradients", lambda job: 4 * _cookbook_parameters(job), (GRADIENT,)),
            Term("optimizer", lambda job: 12 * _cookbook_parameters(job), (OPTIMIZER_STATE,)),
            Term("activations", _cookbook_activations, (ACTIVATION,)),
            Term("everything else", lambda job: 0, (REST,)),
        ),
        ("experts", "fused", "foreach", "pure 16 bit", "autocast"),
    ),
)
