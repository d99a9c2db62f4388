"""Reports as they are printed."""

import weigh
from weigh.report.chart import timeline
from weigh.report.series import Series
from weigh.report.text import Style

TINY = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}


PARAMETERS = """\
config has 29,184 parameters, 114.00 KiB in fp32

  embedding   3,712  12.7 %  ███████
  attention   8,448  28.9 %  ████████████████▏
  mlp        16,704  57.2 %  ████████████████████████████████
  norm          320   1.1 %  ▌

  tied, counted once: lm_head.weight is transformer.wte.weight
  2 layers of 12,704 each; 25.47 K without embeddings
  in bf16 57.00 KiB, int8 28.50 KiB, nf4 14.25 KiB

Assumed (--explain says why): parameters in fp32."""

BY_LAYER = """\
config has 29,184 parameters, 114.00 KiB in fp32

  outside of the layers   3,776  12.9 %
  layer 0                12,704  43.5 %
  layer 1                12,704  43.5 %"""

TRAINING = """\
Training config takes 16.90 MiB (17,717,248 bytes)
29.18 K parameters (29,184) · fp32 · batch 2 x 16 tokens · adamw (foreach) · sdpa
attention

  █▓░·················································································

  ·  workspaces        16.25 MiB  96.2 %
  ▓  optimizer state  239.00 KiB   1.4 %
  ░  activations      220.00 KiB   1.3 %
  █  weights          119.50 KiB   0.7 %
  ▚  temporaries       65.00 KiB   0.4 %
  ▒  gradients         17.50 KiB   0.1 %
  ·  inputs             1.00 KiB   0.0 %

Memory over step 2, the steady state: the peak is in the backward phase, when aten::mul
of transformer.h.1.mlp.act allocates 16.00 KiB
"""


def test_parameters() -> None:
    assert str(weigh.params(TINY)) == PARAMETERS


def test_parameters_by_layer() -> None:
    assert weigh.params(TINY).text(by="layer") == BY_LAYER


def test_training() -> None:
    assert str(weigh.train(TINY, batch=2)).startswith(TRAINING)


def test_the_working_of_parameters() -> None:
    text = weigh.params(TINY).text(explain=True)
    assert "transformer.wte.weight              vocab_size x n_embd   100 x 32               3,200" in text
    assert "transformer.h.*.attn.c_attn.weight  n_embd x 3 n_embd     32 x 96   2 of 3,072   6,144" in text
    assert "parameters in fp32\n      why: neither the config nor the command names one" in text


def test_the_working_of_grouped_heads() -> None:
    text = weigh.params("llama-3-8b").text(explain=True)
    assert "num_key_value_heads * head_dim x hidden_size" in text
    assert "intermediate_size x hidden_size" in text


SERIES = Series(
    columns=[
        {"weight": 4},
        {"weight": 4, "activation": 2},
        {"weight": 4, "activation": 4},
        {"weight": 4, "gradient": 1},
    ],
    phases=[("forward", 0), ("backward", 2)],
    peak_column=2,
    num_events=4,
    purposes=("weight", "gradient", "activation"),
)


def test_a_chart() -> None:
    assert timeline(SERIES, Style(), height=4) == [
        "peak 8 B ▼",
        " 8 B┤  ░",
        "    ┤ ░░▒",
        " 4 B┤████",
        " 0 B┤████",
        "    └────",
        "     │f│b",
    ]


def test_a_chart_in_colour() -> None:
    lines = timeline(SERIES, Style(colour=True), height=4)
    assert lines[1] == "\x1b[2m 8 B┤\x1b[0m  \x1b[38;5;36m█\x1b[0m"
    assert lines[2].endswith("\x1b[38;5;214m▄\x1b[0m")
