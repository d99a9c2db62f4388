"""Training steps: forward, loss, backward, clipping, optimizer step, as a plain PyTorch loop does them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from weigh import models
from weigh.dims import Size
from weigh.dtypes import FLOAT16, FLOAT32, INT32, INT64, UINT8, DType
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.ledger import Ledger, NotSteady
from weigh.ghost.nn import Parameter
from weigh.ghost.repeat import unrolled
from weigh.ghost.state import by_owner, no_grad, recording, state
from weigh.ghost.tensor import Tensor
from weigh.kernels import fused_kernels, kernels
from weigh.kernels.losses import LOSSES as PLAIN_LOSSES
from weigh.kernels.losses import loss_kernel
from weigh.kernels.workspaces import Workspaces
from weigh.models.common import CausalModel
from weigh.models.experts import LOOPED
from weigh.optimizers import Choice, Optimizer, implementation_of, kind_of, optimizer
from weigh.optimizers.base import clip_grad_norm
from weigh.optimizers.in_backward import InBackward
from weigh.optimizers.scaler import GradScaler
from weigh.recipes.settings import Text
from weigh.records import dataclass, field, replace
from weigh.techniques.host import hosts_of
from weigh.techniques.mesh import Mesh
from weigh.trace.events import BACKWARD, CLIP, EVALUATE, FORWARD, GRADIENT, STEP, Trace

if TYPE_CHECKING:
    from weigh.techniques import Technique
    from weigh.techniques.adapters.base import Adapter
    from weigh.techniques.lora import Lora
    from weigh.trace.replay import Streams

DISPATCHERS = ("alltoall", "allgather")
"""Of Megatron-LM's tokens to their experts."""
VOCAB_PARALLEL_LOSSES = ("vocab_parallel", "vocab_parallel_copied", "fused", "te_fused")
"""Of Megatron-LM: over a cut vocabulary, plain (before Core 0.8 of a copy), compiled, or Transformer Engine's."""
STATE_DICTS = ("full", "sharded")
"""What FSDP's `state_dict_type` can be here."""
EVAL_KEEPS = ("loss", "logits", "argmax")
OFFLOADED = "shards, their gradients and the optimizer of FSDP, pinned on the host, at their peak"
CHUNKED_LOSS = "chunked"
"""torchtune's, over the logits of eight pieces of the sequence."""
LINEAR_LOSS = "linear_chunked"
"""torchtune's since 2025: the output layer and the loss of an eighth of the tokens after the other."""
COMPILED_LOSS = "compiled"
"""torchtitan's since 2025: `torch.compile` of the cross entropy."""
LOSSES = (*PLAIN_LOSSES, *VOCAB_PARALLEL_LOSSES, CHUNKED_LOSS, LINEAR_LOSS, COMPILED_LOSS)


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained. Sizes may be arrays' dimensions (see `weigh.dims`)."""

    batch: Size = 1
    """Sequences in a micro-batch on one device."""
    sequence: Size = 1024
    """Tokens in a sequence."""
    target: Size | None = None
    """Tokens in a target, where a decoder reads one beside the sequence; None is as many as in the sequence."""
    dtype: DType = FLOAT32
    """Of all parameters."""
    autocast: DType | None = None
    """The lower precision of `torch.autocast`, or None."""
    attention: str = "sdpa"
    """transformers' attention implementation: "sdpa", "flash_attention_2", or "eager", all that some families have."""
    attention_kernel: str | None = None
    """Forces the kernel behind sdpa: "flash", "efficient", "cudnn" or "math"."""
    repeat_kv: bool = False
    """flash_attention_2 copies keys and values for every query head first (some families of transformers before
    4.48)."""
    looped_experts: bool = False
    """Frozen experts are run one by one (Mixtral in transformers before 5), with as many tokens for each."""
    loss: str = "upcast"
    """How the loss is made of the logits: "upcast" (in fp32), "shifted" (in fp32, of a shifted copy: transformers
    before 4.50), "rebound" (likewise, and the model drops the logits of its own dtype: before 4.46), "native" (of a
    shifted copy in the logits' own dtype), "liger_fused_linear" (with the head, chunk by chunk: Liger's kernel; before
    0.5 "liger_fused_linear_early"); of Megatron-LM over a cut vocabulary: "vocab_parallel", "fused" (compiled),
    "te_fused", and before Core 0.8 "vocab_parallel_copied"."""
    fused_kernels: str | None = None
    """Triton kernels in place of the RMS norms, the rotary embedding and the gated MLPs: "liger"; of the first two and
    the cross entropy: "unsloth"."""
    checkpointing: str | None = None
    """None, "full" (every block, non-reentrant), "reentrant", or "selective" (torchtitan's choice of ops whose outputs
    are kept; under Megatron-LM the core of attention is run again)."""
    checkpoint_every: int = 1
    """Only each so manieth block is checkpointed."""
    compile: bool = False
    """`torch.compile` of the model; torchtune and torchtitan compile each layer, and the chunked loss."""
    offload_activations: bool = False
    """What the forward pass saves waits on the host, by the program's own means; in a plain script by PyTorch's
    `save_on_cpu`."""
    optimizer: str | None = "adamw"
    """ "adamw", "adam", "sgd", "adagrad", "adadelta", "adamax", "nadam", "radam", "rmsprop", "adafactor", "muon",
    "lion", "lamb", "sophia", "shampoo", "soap", "adan", "adopt", "came", "prodigy", "lomo", "adalomo", "grokadamw",
    "stable_adamw", "schedule_free_adamw" (radam, sgd), "adamw_anyprecision", "torch_adafactor", "adamw_apex",
    "galore", "galore_adafactor", "galore_adamw_8bit", "apollo", "apollo_mini", bitsandbytes' "adamw_8bit",
    "paged_adamw_8bit" and the like (adam, ademamix, lion, rmsprop, sgd; 32bit), "torchao_adamw_8bit", "_4bit", "_fp8",
    "torchao_cpu_offload", "torchao_cpu_offload_gradients"; or None for a step without one."""
    implementation: str | None = None
    """ "foreach", "fused" or "forloop"; None is the optimizer's default on the device."""
    momentum: float = 0.0
    """Of SGD and RMSprop."""
    weight_decay: float | None = None
    """None is the optimizer's own default."""
    projection_rank: int = 128
    """Of the projected gradients, where the optimizer projects them (GaLore, APOLLO)."""
    projection_targets: tuple[str, ...] = ("attn", "mlp", "attention")
    """Parts of the names of linear layers whose gradients are projected; or "all-linear"."""
    optimizer_block: int | None = None
    """Values that share a scale, where the optimizer's states are quantized; None is its own choice."""
    optimizer_in_backward: bool = False
    """Each parameter has an optimizer of its own, which updates it as soon as its gradient has come and drops that."""
    loss_scaling: bool = False
    """The loss is scaled by a `torch.amp.GradScaler`, as fp16 needs it."""
    clip: bool = False
    """Clip the norm of the gradients."""
    accumulation: int = 1
    """Micro-batches in a step."""
    set_to_none: bool = True
    """`zero_grad` drops the gradients; False keeps them."""
    freeze: str | None = None
    """A part to freeze (see `weigh.techniques.freezing`)."""
    quantization: str | None = None
    """Linear layers in four bits, as bitsandbytes stores them: "nf4" or "fp4"; everything else can be trained."""
    group_size: int | None = None
    """GPTQ: inputs that share a scale; 0 are all of a layer, None is 128."""
    double_quantization: bool = False
    """Their scales are quantized too."""
    upcast: str | None = None
    """What is made fp32 before training: "all" (peft's `prepare_model_for_kbit_training`), "norms" (TRL)."""
    lora: Lora | None = None
    """Adapters beside frozen layers (see `weigh.techniques.lora`)."""
    adapter: Adapter | None = None
    """Another of peft's methods: its name ("ia3", "vera", "prompt_tuning", ...) or that and its settings (see
    `weigh.techniques.adapters`)."""
    compute_capability: str = "8.0"
    """Of the CUDA device: it decides how large the matrix library's workspaces are."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 1
    """Devices in each machine."""
    shard: str | None = None
    """What the devices that share the data also share: "fsdp2", "fsdp1" (parameters, gradients and states),
    DeepSpeed's "zero1" (states), "zero2" (gradients too) and "zero3" (all three), Megatron-LM's
    "distributed_optimizer" (main parameters and states)."""
    zero_reduce_bucket_size: int = 500_000_000
    """ZeRO: elements of the bucket in which gradients are reduced."""
    zero_allgather_bucket_size: int = 500_000_000
    """ZeRO: elements that are gathered at once. Without effect: PyTorch's `all_gather_into_tensor` works in place."""
    zero_overlap_comm: bool = False
    """ZeRO: gradients are reduced while others are computed, from a second bucket."""
    zero_prefetch_bucket_size: int = 50_000_000
    """ZeRO stage 3: elements that are gathered ahead at once."""
    zero_param_persistence_threshold: int = 100_000
    """ZeRO stage 3: elements up to which a parameter stays whole."""
    zero_max_live_parameters: int = 1_000_000_000
    """ZeRO stage 3: elements that are whole at once, beyond which nothing is gathered ahead."""
    zero_max_reuse_distance: int = 1_000_000_000
    """ZeRO stage 3: a parameter that is used again before so many other elements stays whole."""
    zero_sub_group_size: int = 1_000_000_000
    """ZeRO stage 3: elements that are updated at once."""
    offload_optimizer: bool = False
    """ZeRO: fp32 weights, gradients and the optimizer's states on the host."""
    replicas: int = 1
    """Groups of devices that each hold everything once (hybrid sharding)."""
    reshard_after_forward: bool | None = None
    """FSDP: drop the gathered parameters after the forward pass; None is its default, all but the root's."""
    param_dtype: DType | None = None
    """FSDP's mixed precision: parameters are gathered, and the model runs, in this dtype."""
    reduce_dtype: DType | None = None
    """FSDP's mixed precision: gradients are reduced in this dtype; None is that of the gradients."""
    fp32_shards: bool = False
    """FSDP1: flat parameters that are trained are held in fp32 (accelerate under mixed precision)."""
    sync_module_states: bool = False
    """FSDP1: the first rank loads the model and sends it, unit by unit."""
    offload_parameters: bool = False
    """FSDP1: shards, their gradients and the optimizer are on the host between their uses."""
    use_orig_params: bool = True
    """FSDP1: the optimizer sees the original parameters."""
    tensor: int = 1
    """Devices that share each layer."""
    pipeline: int = 1
    """Stages that share the layers."""
    pipeline_schedule: str | None = None
    """Of a plain script: "1f1b" or "gpipe", and with several stages on each device "interleaved_1f1b" or "looped_bfs";
    None is the first that goes with them."""
    context: int = 1
    """Devices that share each sequence."""
    expert: int = 1
    """Devices that share the experts."""
    sequence_parallel: bool = False
    """Megatron-LM: what tensor ranks do alike outside of the linear layers is shared along the sequence."""
    virtual_pipeline: int = 1
    """Chunks of layers on each device, run in turn (the interleaved schedules)."""
    recompute_modules: tuple[str, ...] = ("core_attn",)
    """Megatron-LM: what selective checkpointing recomputes, as `--recompute-modules` says it."""
    pipeline_layout: Text | None = None
    """Megatron-LM: the layers of each stage, as `--pipeline-model-parallel-layout` writes them ("Et*2|(tt|)*2tL")."""
    virtual_pipeline_group: int | None = None
    """Megatron-LM: micro-batches that go through one chunk before the next one's turn; None is as many as stages."""
    defer_embedding_wgrad: int | None = None
    """Megatron-LM: for how many micro-batches the output layer's weight waits for its gradients; 0 is all of them."""
    context_method: str = "allgather"
    """How attention sees a shared sequence outside of Megatron-LM: PyTorch's ring, for which keys and values are
    gathered once ("allgather") or go round ("alltoall"), or DeepSpeed's "ulysses", which shares heads instead."""
    context_exchange: str = "p2p"
    """Megatron-LM: how attention sees a shared sequence: "p2p" (a ring), "a2a" (heads are shared instead) or "a2a+p2p"
    (a ring of groups that share heads)."""
    context_heads: int = 1
    """Megatron-LM: devices of a group that shares heads, with "a2a+p2p"."""
    expert_tensor: int | None = None
    """Megatron-LM: devices that share each expert; None is as many as share other layers."""
    capacity_factor: float | None = None
    """Megatron-LM: every expert takes so many times its even share of the tokens; None: what comes, taken as even."""
    token_dispatcher: str = "alltoall"
    """Megatron-LM: how tokens come to experts on other devices: "alltoall" or "allgather"."""
    overlap_expert_communication: bool = False
    """Megatron-LM: tokens travel to experts while those of another micro-batch go back, run one pass more ahead."""
    grouped_experts: bool = True
    """Megatron-LM: all experts of a device in one grouped product; False runs them one by one."""
    router_dtype: DType | None = None
    """Megatron-LM: of the experts' weights for each token; None is the model's."""
    permute_fusion: bool = False
    """Megatron-LM: Transformer Engine puts tokens in the order of their experts."""
    activation_fusion: bool = True
    """Megatron-LM: an activation is one kernel with its bias and its weights, where there is one."""
    masked_softmax_fusion: bool = True
    """Megatron-LM: its own attention scales, masks and normalises in one kernel."""
    softmax_in_fp32: bool = False
    """Megatron-LM: without that kernel, the softmax is computed in fp32."""
    hidden_dropout: float = 0.1
    """Megatron-LM: after the embedding, attention and the MLP."""
    attention_dropout: float = 0.1
    """Megatron-LM: of the attention's probabilities."""
    deterministic: bool = False
    """Megatron-LM: `--deterministic-mode`."""
    gradient_accumulation_fusion: bool = True
    """Megatron-LM: products for the gradients of weights are added to the gradient buffer as they are made."""
    own_stand_ins: bool = True
    """Megatron-LM: its own output layer keeps a stand-in for its gradient, as Transformer Engine's layers do (from Core
    0.14 on)."""
    overlap_grad_reduce: bool = False
    """Megatron-LM: gradients are reduced bucket by bucket while the backward pass runs."""
    fp8: str | None = None
    """Megatron-LM: linear layers of blocks compute in FP8, scaled by this recipe of Transformer Engine."""
    fp8_params: bool = False
    """Megatron-LM: their weights are FP8 themselves (`--fp8-param-gather`)."""
    fp8_amax_history: int = 1
    """Megatron-LM: steps whose largest values the recipe "delayed" remembers."""
    overlap_tensor_communication: bool = False
    """Megatron-LM: what tensor ranks exchange goes through user buffers while products run (`--tp-comm-overlap`)."""
    grad_reduce_in_bf16: bool = False
    """Megatron-LM: the gradient buffer is bf16, and the optimizer makes fp32 copies of its share."""
    sharding_strategy: str = "optim_grads_params"
    """Megatron-LM: what Megatron-FSDP shares: the optimizer's states, gradients too, or parameters as well."""
    precision_aware_optimizer: bool = False
    """Megatron-LM: 16 bits beside a bf16 parameter instead of an fp32 copy, and moments in dtypes of their own."""
    exp_avg_dtype: DType = FLOAT32
    """Megatron-LM: of the first moment, with `precision_aware_optimizer`."""
    exp_avg_sq_dtype: DType = FLOAT32
    """Megatron-LM: of the second moment."""
    mask_in_batch: bool = True
    """Megatron-LM: batches have an attention mask; False is `--no-create-attention-mask-in-dataloader`."""
    local_layers: bool = False
    """Megatron-LM: its own layers and unfused attention instead of Transformer Engine's."""
    rank: int = 0
    """Which device is weighed."""
    meta_init: bool = True
    """A sharded model is never whole on the device: it is built on the meta device or on the host, and its shards are
    put on the device unit by unit."""
    state_dict: str | None = None
    """What a sharded training saves: "full" (whole tensors, on the first rank) or "sharded"; None is the program's
    default."""
    eval_batch: int | None = None
    """Sequences in a batch of an evaluation on one device; None is the program's default."""
    eval_batches: int | None = None
    """Batches of an evaluation on one device, where it keeps predictions."""
    eval_keeps: str = "loss"
    """What the Trainer gathers of every batch: "loss", "logits" (`compute_metrics` takes them), or "argmax" (of what
    `preprocess_logits_for_metrics` makes token ids)."""
    eval_accumulation: int | None = None
    """Batches after which what was gathered goes to the host (`eval_accumulation_steps`); None: at the end."""
    device: str = "cuda"
    """Whose kernels run: "cuda" or "cpu"."""
    steps: int = 2
    """Steps to run: the first makes the optimizer's state, the second is the steady state."""
    warm: bool = False
    """The optimizer's state (and gradients that are kept) are there from the start: the first step is a steady one."""
    labels_are_inputs: bool = False
    """The labels are the input ids themselves, not a tensor of their own."""
    traced: bool = False
    """Run as a dispatch mode over fake tensors sees it (for comparison with recorded witnesses)."""
    unchecked_attention: bool = False
    """CUDA's choice of the attention kernel without its checks of heads and widths (as the recorded rows have it)."""

    @property
    def tuned(self) -> Adapter | None:
        """What alone is trained. Raises `UsageError` where two things are."""
        if self.lora is not None and self.adapter is not None:
            raise UsageError("a LoRA is an adapter too", where="adapter", hint="Give one of the two.")
        return self.lora or self.adapter

    @property
    def mesh(self) -> Mesh:
        """The devices. Raises `UsageError` where they do not divide."""
        world = self.nodes * self.gpus_per_node
        shares = self.expert, self.expert_tensor, self.replicas
        return Mesh(world, self.tensor, self.pipeline, self.context, *shares)


@dataclass(frozen=True, slots=True)
class Counted:
    """How many parameters there are, adapters among them and packed ones unpacked."""

    total: Size
    trainable: Size
    here: bool = False
    """On this rank alone: nobody built the whole model."""

    @classmethod
    def of(cls, model: CausalModel, here: bool) -> Counted:
        """Those of a model."""
        parameters = model.parameters()
        trained = (p.count * p.numel for p in parameters if p.tensor.requires_grad)
        return cls(sum(p.count * p.numel for p in parameters), sum(trained), here)


@dataclass(slots=True)
class TrainingRun:
    """The trace of a training, and what was trained."""

    recipe: Training
    trace: Trace
    parameters: list[Parameter]
    """What the rank holds."""
    counted: Counted
    """The model's parameters, all ranks together."""
    attention: str
    """How it attends, in the program's words."""
    elsewhere: Mapping[str, Size] = field(default_factory=dict)
    """Bytes outside of the device's allocator, by what and where."""
    waits_after: tuple[str, ...] = ()
    """Phases after which the host waits for the device."""

    @property
    def streams(self) -> Streams | None:
        """The CUDA streams of what is not computed on the usual one, for a replay of the trace."""
        if self.recipe.shard == "fsdp1":
            from weigh.techniques.fsdp1 import STREAMS
        elif self.recipe.shard == "fsdp2":
            from weigh.techniques.fsdp2 import STREAMS
        else:
            return None
        return replace(STREAMS, waits_after=self.waits_after)


class StagePeak(NamedTuple):
    """A steady step of one pipeline stage."""

    stage: int
    rank: int
    """The first of the stage's."""
    in_flight: int
    """Passes forward that wait for theirs back, at most."""
    peak: int
    """Bytes, in blocks of 512."""


class Loop:
    """A training as a plain PyTorch script writes it. Runtimes override what they do otherwise."""

    zero_grad_first: ClassVar[bool] = False
    """`zero_grad` stands before the forward pass, so that a step leaves its gradients; else after the update."""

    waits_after: ClassVar[tuple[str, ...]] = ()
    """Phases after which the script reads a value, so that the host waits for the device."""

    offloads: ClassVar[bool] = True
    """Activations can wait on the host."""

    no_sync: ClassVar[bool] = False
    """Under FSDP1 the gradients of all micro-batches but the last are summed whole, on every rank."""

    own_parallelism: ClassVar[bool] = False
    """Stages, and batches and attention where devices share a sequence, are the program's own."""

    unpacked_gptq: ClassVar[bool] = False
    """GPTQ's layers unpack their weights by single operations (see `weigh.techniques.gptq`)."""
    peft: ClassVar[bool] = True
    """Adapters are peft's; programs that bring their own have LoRA alone."""
    early_bitsandbytes: ClassVar[bool] = False
    """Four-bit layers are those of bitsandbytes before 0.43."""

    def stages(self, config: Mapping[str, Any], recipe: Training, where: str) -> tuple[StagePeak, ...]:
        """A steady step on each pipeline stage, where the program has some."""
        return ()

    def build(self, config: Mapping[str, Any], recipe: Training, where: str) -> CausalModel:
        """The model, before any technique."""
        if recipe.pipeline > 1:
            from weigh.recipes.pipelining import build_stages

            return build_stages(config, recipe, where)
        return models.build(config, recipe.dtype, where, to_run=True)

    def attention(self, recipe: Training) -> str:
        """Which implementation of attention runs."""
        return recipe.attention + (f" ({recipe.attention_kernel})" if recipe.attention_kernel else "")

    def builds_share(self, recipe: Training) -> bool:
        """`build` makes the part of the model that one rank has."""
        return recipe.pipeline > 1

    def techniques(self, recipe: Training) -> Iterator[Technique]:
        """The techniques of a recipe, in the order in which they are applied.

        Raises:
            WeighError: one of them is not known here.
        """
        if recipe.quantization is not None and recipe.looped_experts:
            from weigh.techniques.looped_experts import LoopedExperts

            yield LoopedExperts()
        if recipe.double_quantization and recipe.quantization not in ("nf4", "fp4"):
            hint = "Leave it out, or quantize to nf4 or fp4."
            raise UsageError("only four-bit scales can be quantized too", where="double_quantization", hint=hint)
        if recipe.quantization == "gptq":
            from weigh.techniques.gptq import Gptq

            if recipe.upcast:
                raise UsageError("beside GPTQ's layers nothing is upcast", where="upcast", hint="Leave it out.")
            group_size = 128 if recipe.group_size is None else recipe.group_size
            storage = recipe.dtype if recipe.shard is not None else INT32
            yield Gptq(group_size, storage, self.unpacked_gptq)
        elif recipe.quantization is not None:
            from weigh.techniques.quantization import Quantization

            storage = recipe.dtype if recipe.shard is not None else UINT8
            early = self.early_bitsandbytes
            yield Quantization(recipe.quantization, recipe.double_quantization, storage, recipe.upcast, early)
        if recipe.freeze is not None:
            from weigh.techniques.freezing import Freezing

            yield Freezing(recipe.freeze)
        if recipe.tuned is not None:
            yield recipe.tuned
        if fuses_adapters(recipe):
            from weigh.techniques.fused_lora import FusedLora

            yield FusedLora()
        yield from parallel(recipe)
        yield from self._of_activations(recipe)

    def _of_activations(self, recipe: Training) -> Iterator[Technique]:
        """Which activations are kept, and where."""
        if recipe.checkpointing is not None:
            from weigh.techniques.checkpointing import Checkpointing

            yield Checkpointing(recipe.checkpointing, every=recipe.checkpoint_every)
        elif recipe.checkpoint_every > 1:
            raise UsageError("nothing is checkpointed", where="checkpoint_every", hint="Give checkpointing too.")
        if recipe.compile and recipe.offload_activations:
            raise NotModelledError("compiled models whose activations wait on the host", where="compile")
        if recipe.compile:
            yield _compiled(recipe)
        if recipe.offload_activations:
            yield self.offloading(recipe)

    def offloading(self, recipe: Training) -> Technique:
        """How activations are taken to the host and back."""
        from weigh.techniques.offloading import SaveOnHost

        return SaveOnHost()

    def optimizer(self, recipe: Training) -> Optimizer:
        """The optimizer, before it owns parameters."""
        if recipe.optimizer is None:
            return _NoOptimizer(Choice("none"))
        if recipe.shard is not None and (recipe.optimizer_in_backward or not kind_of(recipe.optimizer).shardable):
            what = "an optimizer in the backward pass" if recipe.optimizer_in_backward else recipe.optimizer
            raise NotModelledError(f"{what} over shards", where="optimizer", hint="Leave out shard.")
        implementation = recipe.implementation or implementation_of(recipe.optimizer, recipe.device)
        choice = Choice(
            recipe.optimizer,
            implementation,
            recipe.momentum,
            recipe.weight_decay,
            recipe.projection_rank,
            recipe.projection_targets,
            recipe.optimizer_block,
        )
        if recipe.optimizer_in_backward:
            if kind_of(recipe.optimizer).hooks:
                hint = "Leave it out."
                raise UsageError(f"{recipe.optimizer} has hooks of its own", where="optimizer_in_backward", hint=hint)
            return InBackward(choice)
        return _sharded(recipe, choice) if recipe.shard in ZERO else optimizer(choice)

    def scaler(self, recipe: Training) -> GradScaler | None:
        """What scales the loss, if anything does."""
        if not recipe.loss_scaling:
            return None
        if recipe.dtype is FLOAT16 and not (recipe.tuned is not None and recipe.tuned.autocast_adapter):
            raise UsageError(
                "a GradScaler refuses gradients in fp16",
                where="loss_scaling",
                hint="Keep the parameters in fp32 under fp16 autocast.",
            )
        return GradScaler()

    def kernels(self, recipe: Training, family: str) -> dict[str, Any]:
        """The kernels that differ from the device's usual ones."""
        fused = fused_kernels(recipe.fused_kernels, family)
        experts = {"experts": LOOPED} if recipe.looped_experts else {}
        return (
            {"compute_capability": recipe.compute_capability}
            | loss_kernel(recipe.loss)
            | fused
            | {"repeat_kv": recipe.repeat_kv}
            | experts
        )

    def workspaces(self, recipe: Training, model: CausalModel) -> Workspaces:
        """What libraries take of the allocator's memory as phases begin."""
        return Workspaces(recipe.compute_capability)

    def loss(self, model: CausalModel, recipe: Training, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss of a micro-batch; the logits die with the output."""
        with autocast(recipe.autocast) if recipe.autocast is not None else nullcontext():
            out = model(input_ids, labels)
            loss: Tensor = out.loss
        return loss

    def micro_batches(
        self,
        model: CausalModel,
        recipe: Training,
        chosen: Optimizer,
        input_ids: Tensor,
        labels: Tensor,
        number: int,
        scaler: GradScaler | None,
    ) -> None:
        """One after the other, each forward and back."""
        ledger = state.ledger
        flat = getattr(model, "fsdp1", None)
        for micro_batch in range(recipe.accumulation):
            if flat is not None and self.no_sync:
                flat.sync_gradients = micro_batch == recipe.accumulation - 1
            ledger.mark(FORWARD, number)
            if self.zero_grad_first and micro_batch == 0:
                with by_owner():
                    chosen.zero_grad(recipe.set_to_none)
            loss = self.loss(model, recipe, input_ids, labels)
            if recipe.accumulation > 1:
                loss = loss / recipe.accumulation
            if loss.node is None:
                raise UsageError(
                    "the loss depends on nothing that wants a gradient",
                    hint="A reentrant checkpoint needs inputs that do: use full checkpointing, or freeze less.",
                )
            ledger.mark(BACKWARD, number)
            if scaler is not None:
                scaler.scale(loss).backward()
            else:
                loss.backward()
            del loss

    def step(
        self,
        model: CausalModel,
        recipe: Training,
        chosen: Optimizer,
        input_ids: Tensor,
        labels: Tensor,
        number: int,
        scaler: GradScaler | None = None,
    ) -> None:
        """One step: every micro-batch forward and back, then the update."""
        ledger = state.ledger
        flat = getattr(model, "fsdp1", None)
        schedule = getattr(model, "schedule", None)
        if schedule is not None:
            schedule.step(chosen, input_ids, labels, number, self.zero_grad_first)
        else:
            self.micro_batches(model, recipe, chosen, input_ids, labels, number, scaler)
        with flat.where_updates_are() if flat is not None else nullcontext(), by_owner():
            if recipe.clip and not chosen.clips:
                ledger.mark(CLIP, number)
                if scaler is not None:
                    scaler.unscale(chosen)
                clip_grad_norm(chosen.parameters)
            ledger.mark(STEP, number)
            if scaler is not None:
                scaler.unscale(chosen)
            chosen.step()
            if scaler is not None:
                scaler.update()
            if not self.zero_grad_first:
                chosen.zero_grad(recipe.set_to_none)

    def evaluate(self, model: CausalModel, recipe: Training) -> None:
        """An evaluation: batches without a graph, of each of which the loss is read.

        Raises:
            NotModelledError: predictions are kept, and how the program does so was not read.
        """
        if recipe.eval_keeps != "loss":
            raise NotModelledError("predictions that are kept, outside of the Trainer,", where="eval_keeps")
        model.train(False)
        with no_grad():
            for number in range(2):  # a second batch does what all others do
                state.ledger.mark(EVALUATE, number)
                input_ids, labels = batch_of(model, recipe, recipe.eval_batch or recipe.batch)
                self.loss(model, recipe, input_ids, labels)


PLAIN = Loop()

ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}
"""Stages of DeepSpeed's ZeRO: optimizers around the optimizer."""


def _sharded(recipe: Training, choice: Choice) -> Optimizer:
    from weigh.optimizers.zero import Zero

    if recipe.offload_optimizer and recipe.accumulation > 1:
        raise NotModelledError("gradients accumulated on the host", where="offload_optimizer")
    if recipe.loss_scaling or not recipe.set_to_none:
        raise NotModelledError("a GradScaler or gradients that are kept, under ZeRO,", where="shard")
    if recipe.shard == "zero3":
        from weigh.optimizers.zero3 import Zero3

        if recipe.offload_optimizer:
            raise NotModelledError("ZeRO stage 3 with states on the host", where="offload_optimizer")
        return Zero3(choice, recipe.zero_reduce_bucket_size, recipe.zero_sub_group_size)
    return Zero(
        choice,
        optimizer(choice),
        ZERO[recipe.shard or ""],
        recipe.mesh.shard,
        recipe.rank,
        recipe.accumulation,
        recipe.zero_reduce_bucket_size,
        recipe.zero_overlap_comm,
        recipe.offload_optimizer,
    )


def run(
    config: Mapping[str, Any],
    recipe: Training,
    where: str = "config",
    unroll: bool = False,
    loop: Loop = PLAIN,
    evaluate: bool = False,
) -> TrainingRun:
    """Train the model of a config for `recipe.steps` steps on ghost tensors, and then `evaluate` it.

    Blocks that are alike are run once (`unroll` runs them all); where they turn out not to be alike, they are all run.

    Raises:
        InputError: the config cannot be read.
        UnknownNameError: an unknown optimizer, kernel, ...
    """
    unroll = unroll or recipe.shard in ZERO  # buckets end where they are full, whatever the block
    if unroll or any(technique.uneven for technique in loop.techniques(recipe)):
        with unrolled():
            return _run(config, recipe, where, loop, evaluate)
    try:
        return _run(config, recipe, where, loop, evaluate)
    except NotSteady:
        with unrolled():
            return _run(config, recipe, where, loop, evaluate)


MEGATRON = (
    *("sequence_parallel", "context_exchange", "expert_tensor", "capacity_factor"),
    *("recompute_modules", "pipeline_layout", "virtual_pipeline_group", "defer_embedding_wgrad", "context_heads"),
    *(
        "overlap_expert_communication",
        "token_dispatcher",
        "grouped_experts",
        "router_dtype",
        "permute_fusion",
        "activation_fusion",
    ),
    *("hidden_dropout", "attention_dropout", "deterministic", "gradient_accumulation_fusion", "overlap_grad_reduce"),
    *("masked_softmax_fusion", "softmax_in_fp32"),
    *("precision_aware_optimizer", "exp_avg_dtype", "exp_avg_sq_dtype"),
    *("fp8", "fp8_params", "fp8_amax_history", "overlap_tensor_communication"),
    *("sharding_strategy", "grad_reduce_in_bf16", "mask_in_batch", "local_layers", "own_stand_ins"),
)
"""Settings that only Megatron-LM's loop reads."""


def fuses_adapters(recipe: Training) -> bool:
    """Unsloth's kernels take the place of peft's adapters beside four-bit layers."""
    return recipe.fused_kernels == "unsloth" and recipe.quantization is not None and recipe.lora is not None


def _refuse_settings_of_others(recipe: Training) -> None:
    default = Training()
    for name in MEGATRON:
        if getattr(recipe, name) != getattr(default, name):
            raise NotModelledError(f"{name.replace('_', ' ')} outside of Megatron-LM", where=name)


def parallel(recipe: Training) -> Iterator[Technique]:
    """What a mesh of devices makes of the model."""
    mesh = recipe.mesh
    _refuse_settings_of_others(recipe)
    if mesh.expert > 1:
        raise NotModelledError("expert parallelism", where="expert")
    if mesh.pipeline > 1 or recipe.virtual_pipeline > 1:
        _check_pipeline(recipe)
    if recipe.offload_parameters and recipe.shard != "fsdp1":
        raise NotModelledError("offloaded parameters outside of FSDP1", where="offload_parameters")
    if mesh.tensor > 1:
        from weigh.techniques.tensor_parallel import TensorParallel

        yield TensorParallel(mesh.tensor)
    if recipe.shard == "fsdp1":
        from weigh.techniques.fsdp1 import FlatShard

        if recipe.adapter is not None:
            raise NotModelledError(f"{recipe.adapter.kind} under FSDP1", where="adapter", hint="Shard by FSDP2.")
        if mesh.replicas > 1:
            raise NotModelledError("hybrid sharding with FSDP1", where="replicas")
        adapters = (".lora_A", ".lora_B") if recipe.lora is not None else ()
        yield FlatShard(
            mesh.shard,
            recipe.param_dtype,
            recipe.reduce_dtype,
            recipe.use_orig_params,
            recipe.reshard_after_forward is not False,
            recipe.rank,
            adapters if not fuses_adapters(recipe) else (),
            recipe.fp32_shards,
            adapters if fuses_adapters(recipe) else (),
            recipe.sync_module_states,
            recipe.offload_parameters,
        )
    elif recipe.shard == "distributed_optimizer":
        raise NotModelledError("the distributed optimizer outside of Megatron-LM", where="shard")
    elif recipe.shard == "zero3":
        yield _zero3(recipe)
    elif recipe.shard is not None and recipe.shard not in ZERO:
        from weigh.techniques.fsdp2 import FullyShard

        yield FullyShard(
            mesh.shard,
            mesh.replicas,
            recipe.reshard_after_forward,
            recipe.param_dtype,
            recipe.reduce_dtype,
            recipe.rank,
        )
    elif recipe.shard is None and mesh.shard * mesh.replicas > 1:
        from weigh.techniques.ddp import DataParallel

        yield DataParallel()


def _check_pipeline(recipe: Training) -> None:
    if recipe.pipeline == 1:
        raise UsageError("there is one stage", where="virtual_pipeline", hint="Give pipeline too.")
    for name, there in (
        ("shard", recipe.shard is not None),
        ("context", recipe.context > 1),
        ("compile", recipe.compile),
        ("loss_scaling", recipe.loss_scaling),
        ("optimizer_in_backward", recipe.optimizer_in_backward),
    ):
        if there:
            raise NotModelledError(f"{name} beside a pipeline, outside of Megatron-LM,", where=name)


def _compiled(recipe: Training) -> Technique:
    from weigh.techniques.compiling import Compiled

    if recipe.checkpointing is not None:
        raise NotModelledError("compiled code around checkpoints", where="compile")
    if recipe.mesh.world > 1:
        raise NotModelledError("one compiled function on several devices", where="compile")
    return Compiled()


def _zero3(recipe: Training) -> Technique:
    from weigh.techniques.zero3 import PartitionedParameters

    if recipe.optimizer is None:
        raise UsageError("ZeRO stage 3 is an optimizer, and there is none", where="optimizer", hint="Choose one.")
    if recipe.quantization is not None:
        raise NotModelledError("ZeRO stage 3 of quantized layers", where="quantization")
    if recipe.mesh.replicas > 1 or recipe.mesh.tensor > 1:
        raise NotModelledError("ZeRO stage 3 with another division of the devices", where="shard")
    return PartitionedParameters(
        recipe.mesh.shard,
        recipe.rank,
        recipe.zero_prefetch_bucket_size,
        recipe.zero_param_persistence_threshold,
        recipe.zero_max_live_parameters,
        recipe.zero_max_reuse_distance,
    )


def _run(config: Mapping[str, Any], recipe: Training, where: str, loop: Loop, evaluate: bool) -> TrainingRun:
    models.check_attention(config, recipe.attention)
    if recipe.adapter is not None and not loop.peft:
        raise NotModelledError(f"{recipe.adapter.kind} in a program that brings its own modules", where="adapter")
    if recipe.offload_activations and not loop.offloads:
        raise NotModelledError("activations on the host in this program", where="offload_activations")
    chosen = kernels(recipe.device, recipe.attention_kernel, recipe.traced, recipe.unchecked_attention)
    chosen |= loop.kernels(recipe, str(config.get("model_type")))
    if recipe.context > 1 and not loop.own_parallelism:
        from weigh.kernels.ring import shared_attention

        chosen |= shared_attention(recipe.context_method, recipe.context, _context_rank(recipe), chosen)
    with recording(chosen, traced=recipe.traced, attention=recipe.attention) as ledger:
        techniques = tuple(loop.techniques(recipe))
        state.trailing = max((t.trailing for t in techniques), default=0)
        model, counted = _build(config, recipe, where, loop, techniques)
        parameters = _held(model)
        trainable = [p for p in parameters if p.tensor.requires_grad]
        pipelined = recipe.pipeline > 1 and not loop.own_parallelism
        batch = recipe.batch * (recipe.accumulation if pipelined else 1)
        input_ids, labels = batch_of(model, replace(recipe, context=1) if loop.own_parallelism else recipe, batch)
        if pipelined:
            from weigh.recipes.pipelining import Pipeline, Stages

            if not isinstance(model, Stages):
                raise NotModelledError(
                    "pipeline parallelism of a program that brings its own modules", where="pipeline"
                )
            model.schedule = Pipeline(model, recipe)
        chosen_optimizer = loop.optimizer(recipe)
        if (chosen_optimizer.hooks and (recipe.accumulation > 1 or recipe.loss_scaling)) or (
            recipe.optimizer_in_backward and recipe.clip
        ):
            raise UsageError(
                "an optimizer in the backward pass sees each gradient once and alone",
                where="optimizer_in_backward" if recipe.optimizer_in_backward else "optimizer",
                hint="Leave out accumulation, clip and loss_scaling.",
            )
        chosen_optimizer.own(trainable)
        scaler = loop.scaler(recipe)
        if recipe.warm:
            _warm_up(chosen_optimizer, recipe)
        if recipe.device == "cuda" and not recipe.traced:
            ledger.on_phase = loop.workspaces(recipe, model).begin
        for number in range(recipe.steps):
            loop.step(model, recipe, chosen_optimizer, input_ids, labels, number, scaler)
        if evaluate:
            loop.evaluate(model, recipe)
        elsewhere: dict[str, Size] = dict(chosen_optimizer.elsewhere)
        elsewhere |= {what: host.peak() for what, host in hosts_of(model).items()}
        if recipe.offload_parameters:
            elsewhere[OFFLOADED] = model.fsdp1.on_host()  # type: ignore[attr-defined]
        return TrainingRun(
            recipe, ledger.trace(), parameters, counted, loop.attention(recipe), elsewhere, loop.waits_after
        )


def _build(
    config: Mapping[str, Any], recipe: Training, where: str, loop: Loop, techniques: tuple[Technique, ...]
) -> tuple[CausalModel, Counted]:
    """The model with its techniques; where one shards it, the rest is built beside the device (`meta_init`).

    Parameters are counted before they are divided.
    """
    ledger = state.ledger
    beside = Ledger() if recipe.meta_init and any(t.materialises for t in techniques) else None
    if beside is not None:
        state.ledger = beside
    model = loop.build(config, recipe, where)
    if recipe.target is not None and not model.encoder_decoder:
        raise UsageError("the model has no decoder that reads a target", where="target", hint="Leave it out.")
    counted = None
    last = max((t for t in techniques if t.materialises), key=techniques.index, default=None)
    for technique in techniques:
        if technique is last and beside is not None:
            ledger.repeats.extend(state.ledger.repeats)
            state.ledger = ledger
        if technique.divides and counted is None:
            counted = Counted.of(model, loop.builds_share(recipe))
        technique.apply(model)
    if beside is not None:
        for module in model.modules():
            for _, tensor in module.own_tensors():
                if tensor.storage.ledger is beside:
                    tensor.storage.move_to(ledger)
    return model, counted or Counted.of(model, loop.builds_share(recipe))


def batch_of(model: CausalModel, recipe: Training, batch: Size) -> tuple[Tensor, Tensor]:
    """What a model reads, and the labels (batch, length)."""
    whole = model.inputs(batch, recipe.sequence, recipe.dtype)
    if recipe.target is None and recipe.labels_are_inputs and model.features is None:
        labels = whole
    else:
        labels = ops.input_tensor((batch, recipe.target or recipe.sequence), INT64)
    if recipe.context == 1:
        return whole, labels
    if model.features is not None or recipe.target is not None:
        raise NotModelledError("an encoder and a decoder that share their sequences", where="context")
    return _piece(whole, recipe), _piece(labels, recipe)


def _context_rank(recipe: Training) -> int:
    """Ranks that share a sequence stand next to each other, around those that share layers (torchtitan's mesh)."""
    return recipe.rank // recipe.tensor % recipe.context


def _piece(whole: Tensor, recipe: Training) -> Tensor:
    """A rank's piece of the tokens, for which the batch is resized in place: its storage stays as large as it was."""
    if recipe.sequence % (2 * recipe.context):
        what = f"{recipe.context} devices do not share {recipe.sequence} tokens, two pieces each"
        raise UsageError(what, where="context", hint=f"Take a multiple of {2 * recipe.context}.")
    shape = whole.shape[0], recipe.sequence // recipe.context
    return Tensor(whole.storage, shape, None, whole.dtype, shape[0] * shape[1])


def _held(model: CausalModel) -> list[Parameter]:
    """The parameters of this rank."""
    zero3 = getattr(model, "zero3", None)
    found: list[Parameter] = model.parameters() if zero3 is None else zero3.held
    return found


def _warm_up(chosen: Optimizer, recipe: Training) -> None:
    chosen.prepare()
    if not recipe.set_to_none:
        for parameter in chosen.parameters:
            parameter.tensor.grad = ops.zeros_like(parameter.tensor, GRADIENT)


class _NoOptimizer(Optimizer):
    """Gradients are made and dropped."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """Nothing."""
        return []

    def step(self) -> None:
        """Nothing."""
