"""Recipe files: what is written is what is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh import api
from weigh.dtypes import BFLOAT16, FLOAT32
from weigh.errors import UsageError, WeighError
from weigh.jobs.documents import load, write
from weigh.recipes.settings import make, words_of
from weigh.recipes.training import Training
from weigh.techniques.lora import Lora


@settings(deadline=None)
@given(
    st.integers(1, 64),
    st.sampled_from([None, BFLOAT16]),
    st.booleans() | st.none(),
    st.none()
    | st.builds(
        Lora, rank=st.integers(1, 64), targets=st.just(("q_proj", 'odd "name"')), dropout=st.sampled_from([0.0, 0.125])
    ),
    st.sampled_from([None, 0.25]),
    st.sampled_from(["toml", "json"]),
)
def test_a_recipe_that_is_written_and_read_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    batch: int,
    autocast: object,
    reshard: bool | None,
    lora: Lora | None,
    decay: float | None,
    extension: str,
) -> None:
    recipe = replace(
        Training(), batch=batch, autocast=autocast, reshard_after_forward=reshard, lora=lora, weight_decay=decay
    )
    path = tmp_path_factory.mktemp("recipe") / f"a.{extension}"
    path.write_text(write(str(path), words_of(recipe)))
    assert make(Training, load(str(path)).keys) == recipe


def test_options_win_over_a_recipe_and_what_ran_is_saved(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.toml").write_text(
        'model = "gpt2"\nbatch = 2\nsequence = "256"\ndtype = "bf16"\n[lora]\nrank = 2\ntargets = ["c_attn"]\n'
    )
    first = weigh(
        "train", "--recipe", tmp_path / "a.toml", "--batch", 3, "--save-recipe", tmp_path / "b.json", "--json"
    )
    assert first.returncode == 0, first.stderr
    again = weigh("train", "--recipe", tmp_path / "b.json", "--json")
    ours, theirs = json.loads(first.stdout), json.loads(again.stdout)
    assert ours["recipe"] == theirs["recipe"]
    assert ours["recipe"]["batch"] == 3
    assert ours["peak"] == theirs["peak"]
    assert ours["job"]["files"] == {str(tmp_path / "a.toml"): "weigh"}


def test_unknown_keys_are_named_with_near_misses(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('model = "gpt2"\nbatsh = 2\n')
    with pytest.raises(UsageError, match=r"a.toml: batsh: there is no setting 'batsh'. Did you mean batch"):
        api.train(job=api.job(tmp_path / "a.toml", form="weigh"))
    (tmp_path / "a.toml").write_text('model = "gpt2"\noptimizer = "adamv"\n')
    with pytest.raises(UsageError, match=r"a.toml: optimizer: there is no optimizer 'adamv'. Did you mean adam or"):
        api.train(job=api.job(tmp_path / "a.toml", form="weigh"))


def test_a_model_that_is_a_dict_is_saved_as_one() -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 10, "n_positions": 8}
    text = api.train(config, dtype=FLOAT32).saved("a.json")
    assert json.loads(json.loads(text)["model"]) == config


def test_a_recipe_is_written_as_toml_or_json() -> None:
    with pytest.raises(WeighError, match="TOML or JSON"):
        api.train("gpt2").saved("a.yaml")


def test_all_linear_adapts_what_peft_adapts() -> None:
    report = api.train("llama-3.2-1b", lora="4:all-linear", sequence=16)
    adapted = {p.names[0].split(".")[-3] for p in report.run.parameters if ".lora_A" in p.names[0]}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_no_model_is_an_error() -> None:
    with pytest.raises(UsageError, match="no model is named"):
        api.train()
