"""What makes PyTorch and transformers do on fake tensors what they do on real ones.

Each of these, left alone, changes the bytes without a word:

- `scaled_dot_product_attention` takes single ops, for lack of CUDA's rules (`weigh.measure.attention`);
- transformers takes fake tensors for a compilation, and builds masks that a plain run does without;
- optimizers and `clip_grad_norm_` take the for-loop, since a fake tensor is no `torch.Tensor` exactly;
- `torch.autocast("cuda")` switches itself off where there is no CUDA (`weigh.measure.fake_cuda`);
- `Module.to` swaps parameters, which fake ones refuse;
- `copy.deepcopy` copies the mode into a fake tensor, whose views are then storages of their own;
- `grouped_mm` is refused in anything but bf16, where CUDA multiplies group by group into the same output
  (GroupedBlas.cpp, `_grouped_mm_fallback`).

`check` asserts afterwards that none of it happened.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import transformers
from torch import _meta_registrations
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.optim import optimizer as optimizers
from torch.utils import _foreach_utils
from transformers import masking_utils
from transformers.utils import import_utils

from weigh.measure.attention import Attention

if TYPE_CHECKING:
    from weigh.measure.recorder import Recorder


@contextmanager
def as_real(attention: Attention) -> Iterator[FakeTensorMode]:
    """Fake tensors from here on, behaving as real ones."""
    with ExitStack() as stack:
        change: Callable[..., Any] = lambda *args: stack.enter_context(patch.object(*args))  # noqa: E731
        change(functional, "scaled_dot_product_attention", attention)
        change(torch.nn.Module, "_apply", _apply)
        stack.enter_context(patch.object(FakeTensor, "__deepcopy__", _deepcopy, create=True))
        change(_meta_registrations, "_meta_grouped_mm_common", _grouped_mm)
        change(masking_utils, "find_packed_sequence_indices", lambda _: None)
        change(masking_utils, "fast_all", lambda _: True)
        is_tracing = import_utils.is_tracing
        for module in [m for name, m in sys.modules.items() if name.startswith("transformers.")]:
            if module.__dict__.get("is_tracing") is is_tracing:
                change(module, "is_tracing", lambda *_: False)
        for types in (optimizers._foreach_supported_types, _foreach_utils._foreach_supported_types):
            if FakeTensor not in types:
                types.append(FakeTensor)
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


_grouped_mm_in_bf16 = _meta_registrations._meta_grouped_mm_common


def _grouped_mm(mat_a: torch.Tensor, mat_b: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    """The output of a grouped product, in any dtype that both factors have."""
    if mat_a.dtype is not mat_b.dtype or mat_a.dtype not in (torch.float16, torch.float32):
        return _grouped_mm_in_bf16(mat_a, mat_b, *rest, **options)
    offs = options["offs"] if "offs" in options else rest[2]
    dtype = options.get("out_dtype") or mat_a.dtype
    return _meta_registrations._create_grouped_mm_output_tensor(mat_a, mat_b, offs, dtype)


def _apply(module: torch.nn.Module, function: Callable[[Any], Any], _: bool = True) -> torch.nn.Module:
    """`Module._apply` that replaces parameters where the real one swaps their insides."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                changed = function(parameter)
            if changed is not parameter:
                module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _deepcopy(tensor: Any, memo: dict[int, Any]) -> Any:
    """A copy of a leaf, once for all who hold it, as `Tensor.__deepcopy__` makes it."""
    if id(tensor) not in memo:
        made: Any = tensor.detach().clone()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad) if is_parameter else made
    return memo[id(tensor)]


def check_run(recorder: Recorder, attention: Attention, autocast: bool, foreach: bool) -> None:
    """That none of the traps shut.

    Raises:
        AssertionError: one did, and the trace is not what a GPU would do.
    """
    recorder.check_sizes()
    seen = recorder.seen
    if recorder.device == "cuda":
        single_ops = seen["aten::_safe_softmax"]  # of `_scaled_dot_product_attention_math`
        assert not single_ops or attention.calls["math"], "attention was chosen by a build without CUDA"
        wrong = [op for op in seen if op.endswith("_for_cpu")]
        assert not wrong, f"a kernel of the CPU ran on fake CUDA tensors: {wrong[0]}"
    assert not autocast or seen["aten::_to_copy"], "autocast was asked for and cast nothing"
    looped = not any(op.startswith("aten::_foreach_") for op in seen)
    assert not foreach or not looped, "the optimizer took the for-loop where CUDA takes foreach"


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}
