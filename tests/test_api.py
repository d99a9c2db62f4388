import pytest

import weigh
from weigh.errors import InputError, UnknownNameError, UsageError

ROTARY = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
TINY = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 4, "n_head": 2}


def test_the_names_are_there() -> None:
    assert set(weigh.__all__) <= set(dir(weigh))
    assert weigh.dtypes.get("bf16").itemsize == 2
    with pytest.raises(AttributeError, match="no attribute 'wiegh'"):
        weigh.wiegh  # noqa: B018


def test_a_source_is_taken_as_it_is() -> None:
    source = weigh.model("gpt2")
    assert weigh.model(source) is source
    assert "n_embd: 768" in str(source)


def test_settings_in_words_and_in_values_are_one() -> None:
    words = weigh.train(TINY, batch="2", sequence="16", dtype="bfloat16", optimizer="SGD", freeze="all-but-head")
    values = weigh.train(
        TINY, batch=2, sequence=16, dtype=weigh.dtypes.BFLOAT16, optimizer="sgd", freeze="all_but_head"
    )
    assert words.run.recipe == values.run.recipe
    assert words.as_dict() == values.as_dict()


def test_misspelt_settings_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"no setting 'bach'\. Did you mean batch"):
        weigh.train(TINY, bach=2)
    with pytest.raises(UsageError, match="Did you mean adamw"):
        weigh.train(TINY, optimizer="adamww")
    with pytest.raises(UsageError, match="unknown device"):
        weigh.train(TINY, device="h1000")
    with pytest.raises(UnknownNameError, match="Did you mean gpt2"):
        weigh.params("gpt-two2")


def test_the_sequence_is_at_most_the_context() -> None:
    report = weigh.train(TINY)
    assert report.run.recipe.sequence == 32
    assert "32 tokens" in [a.what for a in report.assumptions]
    assert not any("tokens" in a.what for a in weigh.train(TINY, sequence=8).assumptions)


def test_a_length_beyond_the_context_is_said() -> None:
    assert any("context of 32" in a.what for a in weigh.train(ROTARY, sequence=64).assumptions)
    assert any("context of 32" in a.what for a in weigh.generate(ROTARY, prompt=30, new_tokens=3).assumptions)
    assert not any("context of" in a.what for a in weigh.train(ROTARY, sequence=32).assumptions)


def test_a_length_beyond_learned_positions_is_refused() -> None:
    with pytest.raises(UsageError, match="32 learned positions"):
        weigh.train(TINY, sequence=64)


def test_a_report_is_of_one_setting() -> None:
    with pytest.raises(UsageError, match="is no whole number"):
        weigh.train(TINY, batch=[1, 2])


def test_a_device_by_name_and_by_value() -> None:
    from weigh.hardware import get_device

    by_name, by_value = weigh.train(TINY, device="h100"), weigh.train(TINY, device=get_device("h100"))
    assert by_name.fit is not None
    assert by_value.fit is not None
    assert by_name.fit.device is by_value.fit.device
    assert weigh.train(TINY).fit is None


def test_an_assistant_is_a_model() -> None:
    alone, assisted = (
        weigh.generate(TINY, prompt=4, new_tokens=4),
        weigh.generate(TINY, assistant=TINY, prompt=4, new_tokens=4),
    )
    assert assisted.peak > alone.peak
    with pytest.raises(InputError):
        weigh.generate(TINY, assistant={"model_type": "gpt5"})


def test_quantized_configs_are_weighed_with_a_warning() -> None:
    report = weigh.params({**TINY, "quantization_config": {"quant_method": "aqlm"}})
    assert any("not quantized" in a.what for a in report.assumptions)


def test_reports_print_well() -> None:
    for report in (weigh.params(TINY), weigh.train(TINY), weigh.generate(TINY, prompt=8, new_tokens=8)):
        html = report._repr_html_()
        assert html.startswith("<div><pre")
        assert str(report).splitlines()[0] in html
        assert "\x1b" not in str(report)
        assert "\n" not in repr(report)
