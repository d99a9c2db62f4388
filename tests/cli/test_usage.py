"""Words that make no sense: exit 2, and the nearest word that would have."""

import pytest

WRONG = {
    "trian gpt2": "there is no command 'trian'. Did you mean train",
    "gpt2": "there is no command 'gpt2'",
    "--jsn": "there is no option '--jsn'",
    "train": "the following arguments are required: MODEL",
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
    "dtypes fp8": "does not know what 'fp8' is for",
    "rules gpt2 --rule 12Ld3": "--rule: unknown rule '12Ld3'. Did you mean 12Ld2?",
    "rules --batch 2": "settings need a model",
    "rules gpt2 --batch 0": "--batch: is 0. It must be at least 1",
    "kv llama-3-8b --windows reserved": "windows: no layer has a window",
    "scaling --law chinchila": "--law: unknown law 'chinchila'. Did you mean chinchilla-",
    "scaling --flops 0": "--flops: is 0. It must be above 0",
    "scaling --flops nan": "--flops: is nan",
    "scaling --flops x": "--flops: 'x' is no number",
    "scaling --parameters 0 --tokens 1B": "the size is 0. It must be at least 1",
    "scaling --parameters 7G": "--parameters: '7G' has an unknown unit",
    "scaling gpt2 --parameters 7B": "a model has its own size",
    "scaling --gpu-hours 100": "hours of what, and how well used, is not said. Give --device",
    "scaling --gpu-hours 100 --device h100": "hours of what, and how well used, is not said",
    "scaling --gpu-hours 1 --flops 1e20 --device h100 --mfu 0.4": "hours are a budget too",
    "scaling --flops 1e20 --device h100": "--mfu: nobody said how much of the device's peak training reaches",
    "scaling --flops 1e20 --device h100 --mfu 40": "--mfu: is 40. It must be above 0, and at most 1",
    "scaling --flops 1e20 --device h1000 --mfu 0.4": "unknown device 'h1000'. Did you mean",
    "scaling --flops 1e20 --parameters 1B --tokens 1B": "a budget follows from parameters and tokens",
    "scaling --flops 1e20 --loss-change=-100": "--loss-change: is -100. It must be above -100",
    "scaling --flops 1e20 --picture iso-loss": "a picture needs a file",
    "scaling --flops 1e20 --picture iso-los --svg /dev/null": "there is no picture 'iso-los'. Did you mean iso-loss",
    "scaling --flops 1e20 --svg /dev/null --law kaplan-2020": "no law that was asked has a loss of N and D to draw",
    "scaling --picture iso-loss": "nothing is asked",
    "validate": "the following arguments are required: ROWS.jsonl",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage(weigh, words: str) -> None:  # type: ignore[no-untyped-def]
    result = weigh(*words.split())
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert WRONG[words] in result.stderr
    assert result.stderr.count("\n") == 1
