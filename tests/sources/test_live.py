"""Objects that look like torch's and transformers', without either."""

from typing import Any

import pytest

import weigh
from weigh.errors import InputError

CONFIG = {"model_type": "gpt2", "vocab_size": 10, "n_positions": 4, "n_embd": 8, "n_layer": 2, "n_head": 2}


class Config:
    def to_dict(self) -> dict[str, Any]:
        return CONFIG


class Tensor:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = "torch.bfloat16"


class Module:
    config = Config()

    def __init__(self) -> None:
        self.tensors = weigh.params(CONFIG).tensors()

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [(name, Tensor(shape)) for name, shape in self.tensors.items()]


def test_a_config() -> None:
    assert weigh.params(Config()).tensors() == weigh.params(CONFIG).tensors()


def test_a_module_has_its_own_dtype() -> None:
    report = weigh.params(Module())
    assert report.dtype.name == "bf16"
    assert report.assumptions == ()


def test_a_module_that_is_not_what_its_config_says() -> None:
    module = Module()
    module.tensors["transformer.ln_f.weight"] = (9,)
    with pytest.raises(InputError, match=r"ln_f.weight is \[9\], but its config makes \[8\]"):
        weigh.params(module)
    del module.tensors["transformer.ln_f.weight"]
    with pytest.raises(InputError, match=r"ln_f.weight is absent, but its config makes \[8\]"):
        weigh.params(module)


@pytest.mark.parametrize("thing", [None, 5, object(), [1]])
def test_anything_else_is_no_model(thing: object) -> None:
    with pytest.raises(InputError, match="is no model"):
        weigh.params(thing)
