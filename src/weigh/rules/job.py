"""The letters of the formulas, read off a model's config and tensors, and the job that they are asked about.

L layers, d width of the model, f width of the feed-forward layer, a heads, k key-value heads, e width of a head,
V vocabulary, B sequences in a batch, S tokens in a sequence, E = B*S*d, N parameters, D tokens,
t devices that share a layer, n devices that share the data
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from weigh import api, dtypes, runtimes
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models import language_config
from weigh.recipes.settings import make, read_words
from weigh.recipes.settings import settings as settings_of
from weigh.recipes.training import Training
from weigh.report.defaults import complete
from weigh.report.parts import layer

if TYPE_CHECKING:
    from weigh.report.parameters import ParametersReport, TensorRow

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "encoder_ffn_dim")


class Job:
    """A model, and how it is to be trained.

    >>> job = Job("gpt2", sequence=512)
    >>> job.L, job.d, job.f, job.a, job.V, job.N, job.S
    (12, 768, 3072, 12, 50257, 124439808, 512)
    """

    def __init__(self, model: Any, runtime: str | None = None, **settings: Any) -> None:
        self.source = api.model(model)
        self.settings = settings
        self.runtime = runtime or "pytorch"
        """The program that trains it, which decides what the settings do not say."""
        program, version = runtimes.named(self.runtime)
        given = read_words({s.name: s for s in settings_of(Training)}, settings)
        decided = program.settings(given, self.source.config, version)
        completed, self.assumptions = complete(self.source, decided, "sequence")
        self.recipe = make(Training, completed)
        self.config = language_config(self.source.config)
        self.dtype = self.recipe.dtype
        """Of the weights that are trained."""

    @cached_property
    def counted(self) -> ParametersReport:
        """The parameters, exactly."""
        return api.params(self.source, self.dtype)

    @cached_property
    def embedding(self) -> TensorRow:
        """The embedding of tokens."""
        found = next((row for row in self.counted.rows if row.component == nn.EMBEDDING and len(row.shape) == 2), None)
        if found is None:
            raise InputError("has no embedding of tokens", where=self.source.name)
        return found

    def _key(self, names: tuple[str, ...], what: str) -> int:
        found = next((self.config[name] for name in names if self.config.get(name) is not None), None)
        if not isinstance(found, int):
            raise InputError(f"its config has no single number of {what}", where=self.source.name)
        return found

    @property
    def N(self) -> int:  # noqa: N802  the literature's letters
        """Parameters."""
        return self.counted.total

    @property
    def L(self) -> int:  # noqa: N802
        """Layers."""
        return len({layer(name) for row in self.counted.rows for name in row.names} - {None})

    @cached_property
    def encoder_and_decoder(self) -> tuple[int, int]:
        """Layers of an encoder and of the decoder that reads what it says; zero where there is none."""
        names = [name for row in self.counted.rows for name in row.names]
        found = [
            {layer(name) for name in names if name.startswith((f"{part}.", f"model.{part}."))} - {None}
            for part in ("encoder", "decoder")
        ]
        return (len(found[0]), len(found[1])) if all(found) else (0, 0)

    @property
    def d(self) -> int:
        """Width of the model."""
        return self.embedding.shape[1]

    @property
    def V(self) -> int:  # noqa: N802
        """Vocabulary."""
        return self.embedding.shape[0]

    @property
    def f(self) -> int:
        """Width of the feed-forward layer, as the config says; four times the model's where it says nothing."""
        if all(self.config.get(name) is None for name in _FEED_FORWARD):
            return 4 * self.d
        return self._key(_FEED_FORWARD, "feed-forward widths")

    @property
    def a(self) -> int:
        """Heads."""
        return self._key(_HEADS, "heads")

    @property
    def k(self) -> int:
        """Key-value heads."""
        return self._key((*_KEY_VALUE_HEADS, *_HEADS), "heads")

    @property
    def e(self) -> int:
        """Width of a head."""
        found = self.config.get("head_dim")
        return found if isinstance(found, int) else self.d // self.a

    @property
    def B(self) -> int:  # noqa: N802
        """Sequences in a micro-batch on one device."""
        return int(self.recipe.batch)  # type: ignore[arg-type]

    @property
    def S(self) -> int:  # noqa: N802
        """Tokens in a sequence."""
        return int(self.recipe.sequence)  # type: ignore[arg-type]

    @property
    def E(self) -> int:  # noqa: N802
        """Elements of the hidden states: B*S*d."""
        return self.B * self.S * self.d

    @property
    def t(self) -> int:
        """Devices that share a layer."""
        return self.recipe.tensor

    @property
    def n(self) -> int:
        """Devices that share the data."""
        return self.recipe.mesh.data

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight."""
        return self.dtype.itemsize

    @property
    def cache_dtype(self) -> dtypes.DType:
        """What a model that was trained like this would be served in."""
        return self.recipe.autocast or self.dtype

    @cached_property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix, by the names of its tensors."""
        gates = ("gate_proj", "gate_up", ".w3.", "wi_1", "mlp.fc1_g")
        return any(gate in row.names[0] for row in self.counted.rows for gate in gates)

    @cached_property
    def experts(self) -> int:
        """Experts in a layer; 0 where there are none."""
        names = ("num_local_experts", "n_routed_experts", "num_experts")
        return next((self.config[name] for name in names if isinstance(self.config.get(name), int)), 0)

    @cached_property
    def traits(self) -> dict[str, str]:
        """What this job has that formulas may not know, a sentence each."""
        return {key: said for key, says in TRAITS.items() if (said := says(self)) is not None}


def _grouped(job: Job) -> str | None:
    if all(job.config.get(name) is None for name in _KEY_VALUE_HEADS) or job.k == job.a:
        return None
    return f"{job.k} key-value heads serve {job.a} heads"


def _latent(job: Job) -> str | None:
    rank = job.config.get("kv_lora_rank")
    return f"keys and values come from a latent vector of {rank}" if rank else None


def _gated(job: Job) -> str | None:
    return "the feed-forward layer is gated: three matrices instead of two" if job.gated else None


def _experts(job: Job) -> str | None:
    if not job.experts:
        return None
    active = job.counted.active
    return f"{job.experts} experts a layer; a token is computed with {active:,} of {job.N:,} parameters"


def _positions(job: Job) -> str | None:
    rows = [r for r in job.counted.rows if r.component == nn.EMBEDDING and r is not job.embedding]
    return f"{sum(r.total for r in rows):,} parameters of positions" if rows else None


def _biases(job: Job) -> str | None:
    found = any(name.endswith(".bias") for row in job.counted.rows for name in row.names)
    return None if found else "its layers have no biases, its norms a scale only"


def _untied(job: Job) -> str | None:
    own = sum(row.total for row in job.counted.rows if row.component == nn.HEAD)
    return f"an output layer of its own, {own:,} parameters" if own else None


def _tied(job: Job) -> str | None:
    return None if _untied(job) else "the output layer is the embedding, counted once"


def _fused(job: Job) -> str | None:
    if job.recipe.attention == "eager":
        return None
    return f"{job.recipe.attention} attention keeps no scores"


def _no_dropout(job: Job) -> str | None:
    keys = ("resid_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout", "dropout")
    return None if any(job.config.get(key) for key in keys) else "there is no dropout, so there are no masks"


def _autocast(job: Job) -> str | None:
    if job.recipe.autocast is None:
        return None
    return f"weights, gradients and states are {job.dtype.name}; casts to {job.recipe.autocast.name} come and go"


def _precision(job: Job) -> str | None:
    compute = job.cache_dtype
    return None if compute.itemsize == 2 else f"computes in {compute.name}, {compute.itemsize} bytes an element"


def _pure_16_bit(job: Job) -> str | None:
    if job.weight_bytes != 2:
        return None
    return f"weights, gradients and states are all {job.dtype.name}: 2 bytes each, no 32-bit copies"


def _foreach(job: Job) -> str | None:
    if job.recipe.implementation in ("fused", "forloop") or job.recipe.device != "cuda" or not job.recipe.optimizer:
        return None
    return "the optimizer's step makes temporaries as large as the weights (foreach)"


def _encoder(job: Job) -> str | None:
    count, _ = job.encoder_and_decoder
    return f"an encoder of {count} layers beside the decoder" if count else None


def _no_attention(job: Job) -> str | None:
    return "it has no heads of attention" if all(job.config.get(name) is None for name in _HEADS) else None


TRAITS = {
    "encoder": _encoder,
    "no attention": _no_attention,
    "grouped": _grouped,
    "latent": _latent,
    "gated": _gated,
    "experts": _experts,
    "positions": _positions,
    "no biases": _biases,
    "untied": _untied,
    "tied": _tied,
    "fused": _fused,
    "no dropout": _no_dropout,
    "autocast": _autocast,
    "precision": _precision,
    "pure 16 bit": _pure_16_bit,
    "foreach": _foreach,
}
"""What models and jobs have that formulas do not know: a sentence about a job, or None."""
EVERYWHERE = ("encoder", "no attention")
"""What no formula here knows."""
