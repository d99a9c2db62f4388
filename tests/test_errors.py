import pickle

import pytest

from weigh.errors import InputError, NotModelledError, UnknownNameError, UsageError, WeighError, suggest


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (WeighError("no such file"), "no such file"),
        (WeighError("no such file."), "no such file"),
        (WeighError("no such file", where="a.json"), "a.json: no such file"),
        (WeighError("no such file", hint="Check the path."), "no such file. Check the path."),
        (InputError("two values", where="rank", hint="Keep one."), "rank: two values. Keep one."),
        (NotModelledError("ring attention", where="--cp"), "--cp: ring attention is known but not modelled yet"),
        (UnknownNameError("device", "x", []), "unknown device 'x'. There is no device to choose from."),
        (UnknownNameError("device", "zzz", ["a100", "h100"]), "unknown device 'zzz'. Known: a100, h100."),
        (UnknownNameError("device", "l100", ["a100", "h100"]), "unknown device 'l100'. Did you mean h100 or a100?"),
    ],
)
def test_the_message_says_what_where_and_what_next(error: WeighError, text: str) -> None:
    assert str(error) == text


def test_long_lists_of_names_are_cut() -> None:
    message = str(UnknownNameError("model", "???", [f"m{i:02d}" for i in range(30)]))
    assert message.endswith("m10, m11 and 18 more.")


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("x"), 2), (InputError("x"), 3), (UnknownNameError("k", "x", []), 3), (NotModelledError("x"), 3)],
)
def test_exit_codes(error: WeighError, code: int) -> None:
    assert error.exit_code == code


@pytest.mark.parametrize(
    "error",
    [
        WeighError("w", where="here", hint="Go."),
        UnknownNameError("dtype", "bf61", ["bf16"], where="--dtype"),
        NotModelledError("ring attention", hint="Use another."),
    ],
)
def test_errors_cross_process_borders(error: WeighError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_suggestions_ignore_case_and_prefer_names_that_begin_so() -> None:
    assert suggest("Q4", ["q8_0", "iq4_nl", "q4_k", "q4_0"]) == ("q4_k", "q4_0")
    assert suggest("LORA", ["lora", "dora"])[0] == "lora"
    assert suggest("", ["a", "b"]) == ()
    assert len(suggest("a", [f"a{i}" for i in range(9)], limit=2)) == 2
