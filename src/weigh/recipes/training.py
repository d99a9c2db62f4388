"""How a model is trained: the settings of a training, whatever program runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dims import Size
from weigh.dtypes import FLOAT32, DType
from weigh.errors import UsageError
from weigh.kernels.losses import LOSSES as PLAIN_LOSSES
from weigh.recipes.settings import Text
from weigh.records import dataclass
from weigh.techniques.mesh import Mesh

if TYPE_CHECKING:
    from weigh.techniques.adapters.base import Adapter
    from weigh.techniques.lora import Lora

DISPATCHERS = ("alltoall", "allgather")
"""Of Megatron-LM's tokens to their experts."""
VOCAB_PARALLEL_LOSSES = ("vocab_parallel", "vocab_parallel_copied", "fused", "te_fused")
"""Of Megatron-LM: over a cut vocabulary, plain (before Core 0.8 of a copy), compiled, or Transformer Engine's."""
STATE_DICTS = ("full", "sharded")
"""What FSDP's `state_dict_type` can be here."""
EVAL_KEEPS = ("loss", "logits", "argmax")
CHUNKED_LOSS = "chunked"
"""torchtune's, over the logits of eight pieces of the sequence."""
LINEAR_LOSS = "linear_chunked"
"""torchtune's since 2025: the output layer and the loss of an eighth of the tokens after the other."""
COMPILED_LOSS = "compiled"
"""torchtitan's since 2025: `torch.compile` of the cross entropy."""
PROGRAM_OF_LOSS = {
    **dict.fromkeys(VOCAB_PARALLEL_LOSSES, "megatron"),
    **dict.fromkeys((CHUNKED_LOSS, LINEAR_LOSS), "torchtune"),
    COMPILED_LOSS: "torchtitan",
}
"""The program that alone has a loss."""
LOSSES = (*PLAIN_LOSSES, *PROGRAM_OF_LOSS)


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
    0.5 "liger_fused_linear_early"), "cut" (with the head and without any logits: cut-cross-entropy); of Megatron-LM
    over a cut vocabulary: "vocab_parallel", "fused" (compiled), "te_fused", and before Core 0.8
    "vocab_parallel_copied"."""
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
    ema: bool = False
    """A copy of the model averages its parameters (`torch.optim.swa_utils.AveragedModel`), trained ones and others."""
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
    """GPTQ, AWQ: inputs that share a scale; 0 are all of a layer, None is 128. HQQ: weights that do; None is 64."""
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
    zero_hpz_partition_size: int = 1
    """ZeRO stage 3: devices of a machine that share a second copy of the parameters (ZeRO++); 1: none."""
    offload_optimizer: bool = False
    """ZeRO: fp32 weights, gradients and the optimizer's states on the host, where Adam steps."""
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
    """FSDP: shards, their gradients and the optimizer are on the host between their uses. ZeRO stage 3: partitions of
    the parameters are."""
    backward_prefetch: str | None = "pre"
    """FSDP1: on the way back the next unit is gathered before the current one runs ("pre"), behind it ("post"), or when
    it is due (None)."""
    forward_prefetch: bool = False
    """FSDP1: on the way forward the next unit is gathered while the current one runs."""
    limit_all_gathers: bool = True
    """FSDP1: the host waits until the device is no more than two gathered units behind."""
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
