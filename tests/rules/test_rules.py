"""Rules of thumb: what they answer against what others have printed, and how they are held against exact answers."""

from __future__ import annotations

import pytest

from weigh import api
from weigh.errors import InputError, UsageError
from weigh.rules import RULES, compare, rule
from weigh.rules.exact import Exact
from weigh.rules.job import TRAITS, Job
from weigh.rules.published import transformer_2017
from weigh.rules.rule import REST

GIB = 2**30
CALCULATORS = {  # what the programs themselves print for Llama-2-7B, one sequence of 2048 tokens, in GiB
    "deepspeed-zero3": 113.5,
    "deepspeed-zero2": 125.5,
    "megatron": 122.0,
    "cookbook": 141.6,
}
MIXED = {"dtype": "fp32", "autocast": "bf16"}


@pytest.mark.parametrize("name", CALCULATORS)
def test_calculators_answer_what_the_programs_print(name: str) -> None:
    answer = RULES[name].answer(Job("llama-2-7b", sequence=2048))
    assert answer / GIB == pytest.approx(CALCULATORS[name], abs=0.06)


def test_accelerate_and_llm_analysis_answer_what_the_programs_print() -> None:
    assert RULES["accelerate"].answer(Job("llama-2-7b", dtype="fp16")) / GIB == pytest.approx(49.2, abs=0.06)
    assert RULES["llm-analysis"].answer(Job("llama-2-7b")) / 1e9 == pytest.approx(6.57, abs=0.006)


def test_korthikanti_of_gpt3() -> None:
    gpt3 = {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 2048,
        "n_embd": 12288,
        "n_layer": 96,
        "n_head": 96,
    }
    job = Job(gpt3, sequence=2048)
    assert RULES["korthikanti"].answer(job) / 1e9 == pytest.approx(275.4, abs=0.05)
    assert 5 * job.a * job.S / job.d == 80
    assert RULES["korthikanti-tp"].answer(job) == RULES["korthikanti"].answer(job)


def test_tensor_and_sequence_parallel_shares() -> None:
    job = Job("llama-2-7b", sequence=2048, tensor=8, gpus_per_node=8)
    E, whole = job.E, RULES["korthikanti"].answer(job)
    assert RULES["korthikanti-sp"].answer(job) * 8 == whole
    assert RULES["korthikanti-tp"].answer(job) == (whole - 10 * 32 * E) // 8 + 10 * 32 * E
    assert RULES["korthikanti-selective"].answer(job) == 34 * 32 * E // 8


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_whole(name: str) -> None:
    r = RULES[name]
    assert rule(name) is r
    assert all((r.says, r.formula, r.source, r.valid, r.terms))
    assert set(r.blind) <= set(TRAITS)
    assert callable(getattr(Exact, r.quantity))
    covered = [part for term in r.terms for part in term.covers]
    assert len(covered) == len(set(covered)), "two terms cover the same part"
    assert covered.count(REST) <= 1


@pytest.mark.parametrize("model", ["gpt2", "llama-3.2-1b", "mixtral-8x7b"])
def test_terms_add_up_on_both_sides(model: str) -> None:
    for line in compare(model, sequence=128, **MIXED).lines:
        assert line.answer == sum(ours for ours, _ in line.terms.values())
        if line.refused is None:
            assert line.exact == sum(theirs for _, theirs in line.terms.values())
            assert line.exact > 0


def test_exact_answers_are_those_of_the_other_commands() -> None:
    job = Job("llama-3.2-1b", batch=2, sequence=256, **MIXED)
    exact = Exact(job)
    assert sum(exact.parameters().values()) == api.params("llama-3.2-1b").total
    assert sum(exact.training().values()) == api.train("llama-3.2-1b", batch=2, sequence=256, **MIXED).peak
    assert sum(exact.cache().values()) == api.kv("llama-3.2-1b", "bf16", context=256, concurrency=2).num_bytes
    assert sum(exact.states().values()) == 16 * job.N
    assert sum(exact.activations_of_layers().values()) < sum(exact.activations().values())
    assert sum(exact.activations_at_peak().values()) > sum(exact.activations().values())


def test_scores_are_seen_where_attention_is_eager() -> None:
    (line,) = compare("gpt2", ["korthikanti"], attention="eager", dtype="bf16", sequence=512).lines
    ours, theirs = line.terms["attention scores"]
    assert ours == 12 * 5 * 12 * 512**2
    assert theirs is not None
    assert theirs > 12 * 2 * 12 * 512**2, "at least the 16-bit probabilities of every head"


def test_what_a_rule_does_not_know_is_said() -> None:
    (line,) = compare("mixtral-8x7b", ["feed-forward"]).lines
    assert line.decisive == "matrices"
    assert any("8 experts a layer" in reason for reason in line.because)
    (line,) = compare("llama-3-8b", ["kv-cache-mha"], sequence=512).lines
    assert line.error == 3.0
    assert line.because == ("8 key-value heads serve 32 heads",)


def test_a_rule_for_many_devices_has_no_error_on_one() -> None:
    (line,) = compare("gpt2", ["zero-3"]).lines
    assert line.exact is None
    assert line.error is None
    assert "one device" in str(line.refused)
    (line,) = compare("gpt2", ["zero-3"], gpus_per_node=8, shard="fsdp2").lines
    assert line.answer == 2 * 124439808
    assert line.error == pytest.approx(0, abs=0.002), "fp32 weights, gradients and states are 16 bytes too"


def test_states_of_8bit_adam_are_those_of_the_tensors() -> None:
    """bitsandbytes' rule from the shapes: below 4,096 elements in 32 bit, else two codes and a scale for 256 each."""
    (line,) = compare("gpt2", ["adam-8bit"]).lines
    rows = api.params("gpt2").rows
    codes = sum(2 * -(-r.each // 512) * 512 * len(r.names) for r in rows if r.each >= 4096)  # CUDA rounds to 512
    assert line.terms["codes"] == (2 * 124439808, codes)
    small = sum(8 * r.total for r in rows if r.each < 4096)
    scales = sum(8 * -(-r.each // 256) * len(r.names) for r in rows if r.each >= 4096)
    assert line.terms["scales, and tensors too small"][1] == pytest.approx(small + scales, rel=2e-3), (
        "two tables beside"
    )


def test_states_of_8bit_adam_are_the_papers() -> None:
    saved = compare("gpt2-xl", ["adam-8bit-saves"]).lines[0].answer
    assert saved == 6 * 1557611200
    assert 8.5e9 < saved < 9.4e9, "the paper says 8.5 GB for its 1.5 B model, whose embeddings stay in 32 bit"


def test_the_transformer_of_2017_is_marian_without_its_biases() -> None:
    """Marian is that model; it adds biases to attention, an embedding of positions, and its padding token."""
    sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 37000}
    widths = {"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "max_position_embeddings": 512}
    config = {"model_type": "marian", **sizes, **widths, **heads, "pad_token_id": 0, "scale_embedding": True}
    report = api.params(config, "fp32")
    biases = 18 * 4 * 512
    positions = sum(r.total for r in report.rows if "positions" in r.names[0])
    assert report.total - biases - positions == transformer_2017(512, 2048)
    (line,) = compare(config, ["transformer-2017"]).lines
    assert line.answer == transformer_2017(512, 2048)
    off = {name: theirs - ours for name, (ours, theirs) in line.terms.items() if theirs is not None}
    assert off == {"embedding": 0, "attention": biases, "feed-forward": 0, "norms": 0, "position embedding": positions}
    (alone,) = compare("gpt2", ["transformer-2017"]).lines
    assert "no encoder" in str(alone.refused)


def test_zero_is_held_against_deepspeeds_own_stages() -> None:
    job = {"runtime": "deepspeed", "dtype": "bf16", "gpus_per_node": 8, "sequence": 256}
    (line,) = compare("gpt2-xl", ["zero-2"], shard="zero2", **job).lines
    assert line.error == pytest.approx(0, abs=0.005)
    (line,) = compare("gpt2-xl", ["zero-1"], shard="zero1", **job).lines
    assert line.decisive == "gradients", "DeepSpeed drops what it does not update before the step"
    assert line.terms["optimizer"][1] == pytest.approx(line.terms["optimizer"][0], rel=0.005)
    (line,) = compare("gpt2-xl", ["zero-2"], shard="zero1", **job).lines
    assert line.exact is None


GPT = {"model_type": "gpt2", "vocab_size": 51200, "n_positions": 2048, "n_embd": 2048, "n_layer": 4, "n_head": 16}
SHARED = {"tensor": 8, "gpus_per_node": 8}
UNFUSED = {
    "korthikanti": {},
    "korthikanti-tp": SHARED,
    "korthikanti-sp": {**SHARED, "sequence_parallel": True},
}


@pytest.mark.parametrize("name", UNFUSED)
def test_korthikanti_is_what_megatron_keeps_without_fused_attention(name: str) -> None:
    settings = {"runtime": "megatron", "local_layers": True, "dtype": "bf16", "sequence": 2048}
    config = {**GPT, "activation_function": "gelu"}
    (line,) = compare(config, [name], **settings, **UNFUSED[name]).lines
    assert line.error == pytest.approx(0, abs=0.001)


def test_selective_recomputation_is_held_where_scores_are_not_kept() -> None:
    config = {**GPT, "activation_function": "gelu"}
    job = {"runtime": "megatron", "dtype": "bf16", "sequence": 2048, **SHARED, "sequence_parallel": True}
    (line,) = compare(config, ["korthikanti-selective"], **job, checkpointing="selective").lines
    assert line.error == pytest.approx(0, abs=0.002)
    (line,) = compare(config, ["korthikanti-selective"], **job, local_layers=True, checkpointing="selective").lines
    assert line.error == pytest.approx(0, abs=0.002)
    (line,) = compare(config, ["korthikanti-selective"], **job, local_layers=True).lines
    assert "keeps its scores" in str(line.refused)


def test_a_model_without_heads_leaves_its_rules_unanswered() -> None:
    config = {"model_type": "mamba", "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}
    lines = {line.rule.name: line for line in compare(config, ["korthikanti", "embedding"], sequence=16).lines}
    assert lines["korthikanti"].answer is None
    assert "number of heads" in str(lines["korthikanti"].refused)
    assert lines["embedding"].error == 0
    assert lines["embedding"].because == ("it has no heads of attention",)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown rule '12Ld3'\. Did you mean 12Ld2"):
        compare("gpt2", ["12Ld3"])
    with pytest.raises(InputError, match="unknown model"):
        compare("gpt-2000")
