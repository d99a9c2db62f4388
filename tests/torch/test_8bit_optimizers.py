"""The 8-bit optimizers: their arithmetic is PyTorch's, their codes are exact, their bytes are what was predicted."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "quant"))

from golden import cases

from weigh import api
from weigh.errors import UsageError
from weigh.quant import get
from weigh.quant.optimizers import Adam8bit, AdamW8bit, Lion8bit, SGD8bit, Table, embeddings

NAMES = {"Adam8bit": Adam8bit, "AdamW8bit": AdamW8bit, "PagedAdamW8bit": AdamW8bit, "Lion8bit": Lion8bit}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block", [256, 2048])
def test_codes_are_those_on_arrays(signed, block):
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32) ** 3
    values = values if signed else np.abs(values)
    quantizer, table = get("dynamic", signed=signed, block=block), Table(signed, block, torch.device("cpu"))
    packed = quantizer.quantize(values)
    codes, absmax = table.quantize(torch.from_numpy(values))
    assert (codes.numpy() == packed.parts["codes"]).all()
    assert (absmax.numpy() == packed.parts["absmax"]).all()
    assert (table.dequantize(codes, absmax).numpy() == quantizer.dequantize(packed)).all()


@pytest.mark.parametrize(
    "case", [c for c in cases("bnb_optim8bit") if c["optimizer"] in NAMES], ids=lambda c: c["optimizer"]
)
def test_steps_of_bitsandbytes(case):
    """From its states its weights follow; its codes are exact but where its CPU kernel is not."""
    kind = NAMES[case["optimizer"]]
    before, codes = case["p0"], None
    for step in case["steps"]:
        parameter = torch.nn.Parameter(torch.from_numpy(before.copy()))
        optimizer = kind([parameter], lr=1e-3 if kind is Lion8bit else 1e-2, least=0)
        state = optimizer.state[parameter]
        state["step"] = step["step"] - 1
        for i in (1, 2) if codes else ():
            if f"state{i}" in codes:
                state[f"state{i}"] = torch.from_numpy(codes[f"state{i}"].copy())
                state[f"absmax{i}"] = torch.from_numpy(codes[f"absmax{i}"].copy())
        parameter.grad = torch.from_numpy(step["grad"].copy())
        optimizer.step()
        found = parameter.detach().numpy()
        assert np.abs(found - step["p"]).max() <= 2e-7 * np.abs(step["p"]).max() + 1e-8
        for i in (1, 2):
            if f"state{i}" in step:
                assert np.allclose(state[f"absmax{i}"].numpy(), step[f"absmax{i}"], rtol=1e-6)
                wrong = state[f"state{i}"].numpy() != step[f"state{i}"]
                assert wrong.mean() < (0.05 if i == 1 else 0.3)
        before, codes = step["p"], step


def trained(optimizer, parameter, steps=20):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (Adam8bit, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
        (AdamW8bit, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (SGD8bit, torch.optim.SGD, {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9}),
    ],
)
def test_in_32_bits_they_are_pytorchs(ours, theirs, settings):
    start = torch.randn(64, 80, generator=torch.Generator().manual_seed(0))
    a, b, c = (torch.nn.Parameter(start.clone()) for _ in range(3))
    exact = trained(ours([a], **settings, in_32_bits=[a]), a)
    assert torch.allclose(exact, trained(theirs([b], **settings), b), rtol=1e-5, atol=1e-6)
    eight = trained(ours([c], **settings), c)
    assert 0 < (eight - exact).norm() < 0.1 * (exact - start).norm()


def test_saved_and_loaded_they_go_on():
    start = torch.randn(80, 64, generator=torch.Generator().manual_seed(0))
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    first, second = AdamW8bit([a]), AdamW8bit([b])
    trained(first, a, 3)
    b.data.copy_(a)
    second.load_state_dict(first.state_dict())
    assert second.state[b]["state1"].dtype == torch.uint8
    assert torch.equal(trained(first, a, 3), trained(second, b, 3))


@pytest.mark.parametrize(("name", "kind"), [("adamw_8bit", AdamW8bit), ("lion_8bit", Lion8bit), ("sgd_8bit", SGD8bit)])
def test_bytes_are_what_was_predicted(name, kind):
    config = {
        "model_type": "llama",
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    optimizer = kind(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, 256, (2, 16))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    report = api.train(config, optimizer=name, batch=2, sequence=16, kernels="cpu")  # CUDA rounds up to 512
    assert optimizer.state_bytes() == report.as_dict()["peak"]["by_purpose"]["optimizer state"]


def test_training_ends_where_it_does_in_32_bits():
    text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()

    def train(make):
        torch.manual_seed(0)
        hidden = (torch.nn.Linear(256, 64), torch.nn.GELU(), torch.nn.Linear(64, 256))
        model = torch.nn.Sequential(torch.nn.Embedding(256, 32), torch.nn.Flatten(), *hidden)
        optimizer, generator = make(model), torch.Generator().manual_seed(1)
        for _ in range(120):
            starts = torch.randint(0, len(text) - 9, (64, 1), generator=generator)
            tokens = text[starts + torch.arange(9)]
            loss = torch.nn.functional.cross_entropy(model(tokens[:, :8]), tokens[:, 8])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    wide = train(lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3))
    narrow = train(lambda model: AdamW8bit(model.parameters(), lr=3e-3, in_32_bits=embeddings(model)))
    assert narrow == pytest.approx(wide, rel=0.05)
    assert narrow < 3.5  # from 5.5


def test_embeddings_keep_32_bits():
    model = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256))
    optimizer = AdamW8bit(model.parameters(), in_32_bits=embeddings(model))
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    dtypes = [optimizer.state[p]["state2"].dtype for p in model.parameters()]
    assert dtypes == [torch.float32, torch.uint8, torch.float32]


def test_bad_settings():
    parameter = torch.nn.Parameter(torch.zeros(4))
    for settings in ({"lr": -1}, {"betas": (1.0, 0.9)}, {"block": 0}):
        with pytest.raises(UsageError):
            Adam8bit([parameter], **settings)
