"""Activation checkpointing: keep a block's inputs, run it again when its gradients are due.

Mirrors `torch/utils/checkpoint.py` (2.13), in both forms, wrapped around every block as transformers'
`GradientCheckpointingLayer` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from weigh.errors import NotModelledError, UnknownNameError, UsageError, WeighError
from weigh.ghost import nn
from weigh.ghost.autocast import autocast
from weigh.ghost.autograd import backward
from weigh.ghost.host import Host, host_of
from weigh.ghost.nn import Module
from weigh.ghost.ops.attention import FlashAttention
from weigh.ghost.ops.matmul import Mm
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import enable_grad, no_grad, recomputing, saved_tensors_hooks, state
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.trace.events import ACTIVATION

CHECKPOINTS = "checkpoints that wait on the host for the backward pass"
MODES = ("full", "reentrant", "selective", "offloaded")


@dataclass(frozen=True, slots=True)
class Checkpointing(Technique):
    """Checkpoint every block of the model."""

    mode: str = "full"
    """ "full": non-reentrant, PyTorch's recommendation and transformers' default. "reentrant": the older form.
    "selective": as "full", but what attention and every other matrix product return is kept (torchtitan). "offloaded":
    as "reentrant", but a block's input waits on the host (Unsloth's)."""
    compiled: bool = False
    """The blocks are compiled: what a block's last product returns, which nothing that goes back reads, is not kept."""
    every: int = 1
    """Only each so manieth block is checkpointed: the second, the fourth, ... for 2."""

    @property
    def uneven(self) -> bool:
        """Some blocks are checkpointed and others not."""
        return self.every > 1

    def apply(self, model: Module) -> None:
        """Wrap every block.

        Raises:
            UnknownNameError: `mode` is neither form.
            WeighError: the model has no blocks.
        """
        if self.mode not in MODES:
            raise UnknownNameError("checkpointing mode", self.mode, MODES)
        blocks = [m for m in model.modules() if m.role == nn.BLOCK]
        if not blocks:
            raise WeighError(
                "checkpointing found no blocks to wrap", hint="It looks for modules with the role 'block'."
            )
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):  # as `gradient_checkpointing_enable` tells the parts that ask
                module.gradient_checkpointing = True
        if not 1 <= self.every <= len(blocks):
            what = f"there are {len(blocks)} blocks, and no {self.every}th"
            raise UsageError(what, where="checkpoint_every", hint="Take a number of blocks.")
        for block in blocks[self.every - 1 :: self.every]:
            forms: dict[str, Callable[..., Any]] = {
                "full": checkpoint,
                "reentrant": reentrant_checkpoint,
                "selective": partial(selective_checkpoint, compiled=self.compiled),
                "offloaded": offloaded_checkpoint,
            }
            form = forms[self.mode]
            if self.mode == "offloaded":
                form = partial(form, host=host_of(model, CHECKPOINTS))
            block.wrap_in(partial(form, positional=block.positional))


class _StopRecomputation(Exception):
    """Everything that the backward pass asked for has been recomputed."""


class Packed:
    """What a hook leaves in place of an argument."""

    __slots__ = ()

    def unpack(self) -> Tensor:
        """The argument."""
        raise NotImplementedError


class _Holder(Packed):
    """What stands in a node for a tensor that was not saved."""

    __slots__ = ("__weakref__", "frame", "index")

    def __init__(self, frame: _Frame, index: int) -> None:
        self.frame = frame
        self.index = index

    def unpack(self) -> Tensor:
        """The tensor, out of the recomputation that the first unpacking starts."""
        return self.frame.take(self.index)


class _Frame:
    """One checkpointed call: how to run it again, and the tensors of the second run until they are taken.

    It holds the call's arguments until the last node of the block has run, as upstream's frame does.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.has_run = False
        self.holders: list[ref[_Holder]] = []
        self.repacked = 0
        self.recomputed: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> _Holder:
        """Leave a holder instead of the tensor."""
        holder = _Holder(self, len(self.holders))
        self.holders.append(ref(holder))
        return holder

    def take(self, index: int) -> Tensor:
        """Hand out a recomputed tensor, once."""
        if not self.has_run:
            self.has_run = True
            try:
                with recomputing(), saved_tensors_hooks(self._keep), enable_grad():
                    self.run()
            except _StopRecomputation:
                pass
        return self.recomputed.pop(index)

    def _keep(self, tensor: Tensor) -> Tensor:
        """What a node of the second run saves is kept for that of the first, unless that is gone already."""
        index = self.repacked
        self.repacked += 1
        if self.holders[index]() is not None:
            self.recomputed[index] = tensor.alias()
        if self.repacked == len(self.holders):
            raise _StopRecomputation
        return tensor.alias()


def checkpoint(function: Callable[..., Any], *args: Any, positional: int = 1) -> Any:
    """`checkpoint(function, *args, use_reentrant=False)`.

    The second run happens when the first saved tensor is unpacked, under the autocast of the first, and stops after the
    last tensor that is needed. Inside another checkpoint the first `positional` of the arguments are saved as nodes
    save theirs (`_NoopSaveInputs`): the outer one leaves holders in their place. The others hang on the function.
    """
    if not state.grad_enabled:
        return function(*args)
    dtype = state.autocast.dtype if state.autocast is not None else None
    outer = state.pack_hook
    held = [
        outer(a) if outer is not None and i < positional and a.__class__ is Tensor else a for i, a in enumerate(args)
    ]

    def run_again() -> None:
        before = state.ledger.path
        try:
            with autocast(dtype):
                function(*[a.unpack() if isinstance(a, Packed) else a for a in held])
        finally:
            state.ledger.path = before

    frame = _Frame(run_again)
    with saved_tensors_hooks(frame.pack):
        return function(*args)


class _Kept:
    """The outputs that one call keeps (`_CachingTorchDispatchMode`), until the second run takes them one by one."""

    def __init__(self, compiled: bool) -> None:
        self.outputs: list[list[Tensor]] = []
        self.products = 0
        self.again = False
        self.compiled = compiled

    @property
    def next_product_is_kept(self) -> bool:
        """All but every second one."""
        self.products += 1
        return self.products % 2 == 1

    def keep(self, outputs: list[Tensor]) -> None:
        """Detached, as upstream keeps them."""
        self.outputs.append([t.alias() for t in outputs])

    def finish(self) -> None:
        """The first run has ended; where it ended in a product that is kept, compiled code would not keep that."""
        if self.compiled and not self.again and self.products % 2 == 1:
            self.outputs.pop()
        self.again = True

    def take(self) -> list[Tensor]:
        """What the first run kept here."""
        return self.outputs.pop(0)


_keepers: list[_Kept] = []
"""Those of the calls that are running, the innermost last."""


class KeptMm(Mm):
    """A product whose output may be kept, and taken again."""

    @classmethod
    def forward(cls, ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        keeper = _keepers[-1]
        if not keeper.next_product_is_kept:
            return super().forward(ctx, a, b)
        if keeper.again:
            if ctx:
                cls.keep(ctx, a, b)
            return keeper.take()[0]
        out = super().forward(ctx, a, b)
        keeper.keep([out])
        return out


class KeptFlashAttention(FlashAttention):
    """Attention whose outputs are kept, and taken again."""

    @classmethod
    def forward(cls, ctx: Any, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> list[Tensor]:
        keeper = _keepers[-1]
        if keeper.again:
            outputs = keeper.take()
            if ctx:
                cls.keep(ctx, query, key, value, outputs, causal)
            return outputs
        outputs = super().forward(ctx, query, key, value, causal=causal)
        keeper.keep(outputs)
        return outputs


_KEPT_ROWS: dict[str, Any] = {Mm.name: KeptMm, FlashAttention.name: KeptFlashAttention}


def selective_checkpoint(function: Callable[..., Any], *args: Any, positional: int = 1, compiled: bool = False) -> Any:
    """`checkpoint` with `create_selective_checkpoint_contexts` and torchtitan's policy (`parallelize_llama.py`)."""
    kept = _Kept(compiled)
    running = partial(_keeping, function, kept)
    return checkpoint(running, *args, positional=positional)


def _keeping(function: Callable[..., Any], kept: _Kept, *args: Any) -> Any:
    before = state.overrides
    state.overrides = before | _KEPT_ROWS
    _keepers.append(kept)
    kept.products = 0
    try:
        return function(*args)
    finally:
        kept.finish()
        _keepers.pop()
        state.overrides = before


class CheckpointFunction(Op):
    """The reentrant form: a node that runs the block again and calls `backward` inside its own backward."""

    name = "CheckpointFunction"
    source = "torch/utils/checkpoint.py, class CheckpointFunction"
    view = True

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor, function: Callable[..., Any]) -> Tensor:
        with no_grad():
            out: Tensor = function(*tensors)
        if out.__class__ is not Tensor:
            raise NotModelledError("reentrant checkpointing of blocks that return more than one tensor")
        if ctx:
            ctx.save(*tensors)
            ctx.meta = partial(_run_again, function=function, dtype=state.autocast and state.autocast.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return ctx.meta(ctx.unpack(), grad, ctx.needs)  # type: ignore[no-any-return]


def _run_again(
    tensors: list[Tensor],
    grad: Tensor,
    needs: list[bool],
    function: Callable[..., Any],
    dtype: Any,
) -> list[Any]:
    detached = []
    for tensor, need in zip(tensors, needs, strict=True):
        alias = tensor.alias()
        alias.requires_grad = need
        detached.append(alias)
    with recomputing(), autocast(dtype), enable_grad():
        out = function(*detached)
    roots, seeds = [out], [grad]
    del out, grad
    backward(roots, seeds)  # type: ignore[arg-type]
    return [t.grad for t in detached]


def reentrant_checkpoint(function: Callable[..., Any], *args: Any, positional: int = 1) -> Any:
    """`checkpoint(function, *args, use_reentrant=True)`: saves the first `positional` of the arguments."""
    if not state.grad_enabled:
        return function(*args)
    places = [i for i, a in enumerate(args[:positional]) if a.__class__ is Tensor]
    given = [args[i] for i in places]
    rest = [None if i in places else a for i, a in enumerate(args)]

    def call(*tensors: Tensor) -> Any:
        filled = list(rest)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(*filled)

    return apply(CheckpointFunction, *given, function=call)


class OffloadedCheckpointFunction(Op):
    """The reentrant form whose input is copied to the host, and back before the block runs again."""

    name = "OffloadedCheckpointFunction"
    source = "unsloth_zoo/gradient_checkpointing.py, class Unsloth_Offloaded_Gradient_Checkpointer"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, function: Callable[..., Any], host: Host) -> Tensor:
        if ctx:
            ctx.save(host.empty(x.shape, x.dtype, ACTIVATION))
            ctx.meta = function, state.autocast and state.autocast.dtype
        with no_grad():
            out: Tensor = function(x)
        if out.__class__ is not Tensor:
            raise NotModelledError("offloaded checkpoints of blocks that return more than one tensor")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (on_host,), (function, dtype) = ctx.unpack(), ctx.meta
        x = empty(on_host.shape, on_host.dtype, "aten::_to_copy", purpose=ACTIVATION)
        with autocast(dtype):  # `custom_bwd`: the nested backward pass runs under it too
            return _run_again([x], grad, [True], function, dtype)


def offloaded_checkpoint(function: Callable[..., Any], x: Tensor, *args: Any, host: Host, positional: int = 1) -> Any:
    """Unsloth's checkpoint: the first argument is offloaded, the others hang on the function.

    Raises:
        NotModelledError: a block that is given more than one tensor by position.
    """
    if not state.grad_enabled:
        return function(x, *args)
    if positional > 1 and any(a.__class__ is Tensor for a in args[: positional - 1]):
        raise NotModelledError("offloaded checkpoints of blocks with several inputs", where="checkpointing")
    return apply(OffloadedCheckpointFunction, x, function=lambda x: function(x, *args), host=host)
