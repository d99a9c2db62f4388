"""Rules about weights, the states of training, sharding, and inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.rules.rule import REST, Rule, Term
from weigh.trace.events import GRADIENT, OPTIMIZER_STATE, WEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.rules.job import Job

_ARTICLES = "articles on the memory of language models"
_ZERO = "Rajbhandari et al. 2019, arXiv:1910.02054, section 3.1 and figure 1"
_EIGHT_BIT = "Dettmers et al. 2021, arXiv:2110.02861"
_QLORA = "Dettmers et al. 2023, arXiv:2305.14314, section 3"
_RECIPE = ("pure 16 bit", "autocast")


def model_bytes(job: Job) -> int:
    """The weights, in the job's dtype."""
    return job.N * job.weight_bytes


def served_bytes(job: Job) -> int:
    """The weights, in the dtype in which the model computes."""
    return job.N * job.cache_dtype.itemsize


def _per_parameter(num_bytes: float, share: Callable[[Job], int] = lambda job: 1) -> Callable[[Job], float]:
    return lambda job: num_bytes * job.N / share(job)


def _recipe(name: str, says: str, weight: float, gradient: float, states: float, source: str, valid: str) -> Rule:
    """A rule of so many bytes a parameter."""
    whole = weight + gradient + states
    return Rule(
        name,
        says,
        f"({weight:g} + {gradient:g} + {states:g})*N = {whole:g}*N",
        source,
        valid,
        "states",
        (
            Term("weights", _per_parameter(weight), (WEIGHT,)),
            Term("gradients", _per_parameter(gradient), (GRADIENT,)),
            Term("optimizer", _per_parameter(states), (OPTIMIZER_STATE,)),
        ),
        _RECIPE,
    )


_SHARING: dict[int, tuple[str, ...]] = {
    1: ("zero1", "distributed_optimizer"),
    2: ("zero2",),
    3: ("fsdp1", "fsdp2"),
}
"""What shares as each stage does, of the settings of `--shard`."""


def _sharded(stage: int, weight: bool, gradient: bool) -> Rule:
    parts = [f"2*N{'/n' if weight else ''}", f"2*N{'/n' if gradient else ''}", "12*N/n"]

    def share(sharded: bool) -> Callable[[Job], int]:
        return (lambda job: job.n) if sharded else (lambda job: 1)

    def unless(job: Job) -> str | None:
        if job.n == 1:
            return "one device shares nothing: give --gpus-per-node and --shard"
        return None if job.recipe.shard in _SHARING[stage] else f"this job does not share what stage {stage} shares"

    return Rule(
        f"zero-{stage}",
        f"states of one of n devices under ZeRO stage {stage}",
        " + ".join(parts),
        _ZERO,
        "16-bit weights and gradients, Adam with 32-bit copies; no buckets, no gathered layer",
        "states",
        (
            Term("weights", _per_parameter(2, share(weight)), (WEIGHT,)),
            Term("gradients", _per_parameter(2, share(gradient)), (GRADIENT,)),
            Term("optimizer", _per_parameter(12, share(True)), (OPTIMIZER_STATE,)),
        ),
        _RECIPE,
        unless,
    )


RULES = (
    Rule(
        "bytes-per-parameter",
        "memory of the weights",
        "N * bytes of the dtype (4 in 32 bit, 2 in 16 bit)",
        _ARTICLES,
        "plain dtypes; quantized ones have scales too",
        "weights",
        (Term("weights", model_bytes, (WEIGHT,)),),
    ),
    Rule(
        "inference-2x",
        "memory of inference",
        "2 * model memory",
        _ARTICLES,
        "no derivation is given: it depends on batch and length",
        "inference",
        (Term("weights", served_bytes, (WEIGHT,)), Term("everything else", served_bytes, (REST,))),
    ),
    Rule(
        "inference-1.2x",
        "memory of inference",
        "1.2 * model memory",
        "https://blog.eleuther.ai/transformer-math/",
        "an overhead of at most 20 %, before the cache of long contexts or large batches",
        "inference",
        (Term("weights", served_bytes, (WEIGHT,)), Term("overhead", lambda job: 0.2 * served_bytes(job), (REST,))),
    ),
    Rule(
        "training-4x",
        "memory of training",
        "4 * model memory",
        _ARTICLES,
        "weights, gradients and both states of Adam in one dtype, and no activations",
        "training",
        (
            Term("weights", model_bytes, (WEIGHT,)),
            Term("gradients", model_bytes, (GRADIENT,)),
            Term("optimizer", lambda job: 2 * model_bytes(job), (OPTIMIZER_STATE,)),
            Term("everything else", lambda job: 0, (REST,)),
        ),
        ("foreach",),
    ),
    Rule(
        "24GB-per-1B",
        "memory of training",
        "(4 + 8 + 4 + 8)*N = 24*N",
        "Hugging Face transformers, performance documentation: anatomy of a model's memory",
        "32-bit weights, gradients and Adam; the last 8 bytes stand for activations and temporaries, which do not "
        "depend on N",
        "training",
        (
            Term("weights", _per_parameter(4), (WEIGHT,)),
            Term("optimizer", _per_parameter(8), (OPTIMIZER_STATE,)),
            Term("gradients", _per_parameter(4), (GRADIENT,)),
            Term("activations and temporaries", _per_parameter(8), (REST,)),
        ),
        ("pure 16 bit", "foreach"),
    ),
    Rule(
        "16N+8BD",
        "memory that stays between steps",
        "16*N + 8*B*D",
        _ARTICLES,
        "32-bit weights, gradients and Adam, and a batch of B samples of D numbers of 8 bytes (int64 ids: D = S)",
        "resident",
        (
            Term("weights", _per_parameter(4), (WEIGHT,)),
            Term("gradients", _per_parameter(4), (GRADIENT,)),
            Term("optimizer", _per_parameter(8), (OPTIMIZER_STATE,)),
            Term("batch", lambda job: 8 * job.B * job.S, ("input",)),
        ),
        _RECIPE,
    ),
    _recipe(
        "mixed-16",
        "states of mixed-precision Adam",
        *(2, 2, 12, _ZERO),
        "16-bit weights and gradients; the optimizer keeps 32-bit weights and two states",
    ),
    _recipe(
        "mixed-18",
        "the same with 32-bit gradients",
        *(2, 4, 12),
        "Megatron-LM, megatron/training/theoretical_memory_usage.py; DeepSpeed, runtime/zero/stage3.py",
        "16-bit weights, gradients accumulated in 32 bit; the optimizer keeps 32-bit weights and two states",
    ),
    _recipe(
        "mixed-20",
        "the same with gradients in both",
        *(2, 6, 12),
        "DeepSpeed, runtime/zero/stage_1_and_2.py (4 + 16 bytes)",
        "16-bit weights, 16-bit gradients and a 32-bit copy of them; the optimizer keeps 32-bit weights and two states",
    ),
    _sharded(1, False, False),
    _sharded(2, False, True),
    _sharded(3, True, True),
    Rule(
        "adam-8bit",
        "states of 8-bit Adam",
        "2*N",
        _EIGHT_BIT,
        "two states of a byte; bitsandbytes adds a 32-bit scale for 256 elements, and tensors below 4,096 elements "
        "stay in 32 bit; the paper keeps embeddings so too",
        "optimizer_states",
        (
            Term("codes", _per_parameter(2), ("uint8",)),
            Term("scales, and tensors too small", lambda job: 0, ("fp32",)),
        ),
        settings={"optimizer": "adamw_8bit"},
    ),
    Rule(
        "adam-8bit-saves",
        "what 8-bit Adam saves",
        "(8 - 2)*N",
        _EIGHT_BIT,
        "as above; articles write 38 %: 6 of the 16 bytes of weights, gradients and states, 25 % of their own 24",
        "saved_by_8bit",
        (Term("states", _per_parameter(6), ("states",)),),
        settings={"optimizer": "adamw_8bit"},
    ),
    Rule(
        "qlora",
        "weights in NF4 with double quantization",
        "N * (4 + 8/64 + 32/(64*256)) / 8",
        _QLORA,
        "every parameter is quantized; bitsandbytes leaves embeddings, norms and the output layer alone",
        "qlora_weights",
        (
            Term("codes and scales", lambda job: job.N * (4 + 8 / 64 + 32 / (64 * 256)) / 8, ("nf4", "uint8", "fp32")),
            Term("what stays in 16 bit", lambda job: 0, (REST,)),
        ),
        ("untied", "positions"),
    ),
    Rule(
        "kv-cache",
        "keys and values of B sequences of S tokens",
        "2 * L * k*e * bytes * B*S",
        "Pope et al. 2022, arXiv:2211.05102; articles",
        "every layer keeps every token in heads of one width",
        "cache",
        (
            Term(
                "keys and values",
                lambda job: 2 * job.L * job.k * job.e * job.cache_dtype.itemsize * job.B * job.S,
                ("keys and values",),
            ),
        ),
        ("latent",),
    ),
    Rule(
        "kv-cache-mha",
        "the same without shared heads",
        "2 * L * d * bytes * B*S",
        "articles from before grouped-query attention",
        "as many key-value heads as heads, together as wide as the model",
        "cache",
        (
            Term(
                "keys and values",
                lambda job: 2 * job.L * job.d * job.cache_dtype.itemsize * job.B * job.S,
                ("keys and values",),
            ),
        ),
        ("grouped", "latent"),
    ),
)
"""In the order in which they are shown."""
