"""Words that make no sense: exit 2, and the nearest word that would have."""

import pytest

WRONG = {
    "trian gpt2": "there is no command 'trian'. Did you mean train",
    "gpt2": "there is no command 'gpt2'",
    "--jsn": "there is no option '--jsn'",
    "train": "no model is named. Name one before the options",
    "train gpt2 llama": "does not know what 'llama' is for",
    "train gpt2 --bach 3": "there is no option '--bach'. Did you mean --batch",
    "train gpt2 --seq 3": "there is no option '--seq'. Did you mean --sequence",
    "train gpt2 --batch": "expected one argument",
    "train gpt2 --batch 0": "--batch: is 0. It must be at least 1",
    "train gpt2 --batch=-3": "--batch: '-3' is not an amount",
    "train gpt2 --batch two": "--batch: 'two' is not an amount",
    "train gpt2 --sequence 80G": "--sequence: '80G' has an unknown unit",
    "train gpt2 --dtype bf61": "--dtype: unknown dtype 'bf61'. Did you mean bf16?",
    "train gpt2 --dtype int8": "--dtype: PyTorch does not compute in int8 by itself",
    "train gpt2 --optimizer adamv": "--optimizer: there is no optimizer 'adamv'. Did you mean",
    "train gpt2 --attention flassh": "--attention: there is no attention 'flassh'",
    "train gpt2 --attention-kernel flsh": "Did you mean flash?",
    "train gpt2 --checkpointing ful": "Did you mean full?",
    "train gpt2 --freeze embedings": "Did you mean embeddings?",
    "train gpt2 --momentum x": "--momentum: 'x' is no number",
    "train gpt2 --momentum 0.9": "adamw takes no momentum",
    "train gpt2 --device h1000": "device: unknown device 'h1000'. Did you mean",
    "train gpt2 --device h100 --kernels cpu": "the CPU's kernels run on no GPU",
    "train gpt2 --by purpos": "--by: cannot divide by 'purpos'. Did you mean purpose?",
    "generate gpt2 --cache statik": "--cache: there is no cache 'statik'. Did you mean static?",
    "params gpt2 --dtype bf61": "dtype: unknown dtype 'bf61'. Did you mean bf16?",
    "params gpt2 --by layers": "Did you mean layer?",
    "dtypes fp8": "dtypes: unknown dtype 'fp8'. Did you mean fp8_",
    "rules gpt2 --rule 12Ld3": "--rule: unknown rule '12Ld3'. Did you mean 12Ld2?",
    "rules --batch 2": "settings need a model",
    "rules gpt2 --batch 0": "--batch: is 0. It must be at least 1",
    "validate": "the following arguments are required: ROWS.jsonl",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage(weigh, words: str) -> None:  # type: ignore[no-untyped-def]
    result = weigh(*words.split())
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert WRONG[words] in result.stderr
    assert result.stderr.count("\n") == 1
