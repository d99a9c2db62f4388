"""Reading a command's words: argparse, with complaints that help on, and options made from a recipe's fields."""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from weigh.errors import UsageError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.recipes.settings import Setting

COMPARING = ("bare", "labels_are_inputs", "traced", "unchecked_attention", "warm")
"""Fields that say how a recording was made, not how a model is run."""

_VALUES = {"Size": "N", "int": "N", "float": "X", "Lora": "RANK[:LAYER,...]", "Adapter": "KIND[:LAYER,...]"}


class Parser(argparse.ArgumentParser):
    """A parser that raises `UsageError`, with the nearest option where one is misspelt."""

    def __init__(self, command: str, says: str) -> None:
        super().__init__(
            prog=f"weigh {command}", description=says, add_help=False, allow_abbrev=False, formatter_class=_formatter
        )
        self.command = command
        self.options = self._actions
        """What there is to give, as argparse keeps it."""
        self.add_argument("--json", action="store_true", help="the answer as JSON (see docs/schema)")
        self.add_argument("--offline", action="store_true", help="ask no server: take what is on this disk")
        self.add_argument("-h", "--help", action="store_true", help="this text")

    def error(self, message: str) -> NoReturn:
        """What argparse found wrong."""
        raise UsageError(message, where=self.command, hint=f"{self.prog} --help lists what there is.")

    def read(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The options by name; None where help is wanted.

        Raises:
            UsageError: an unknown option, a missing or superfluous word.
        """
        if "-h" in words or "--help" in words:
            return None
        found: argparse.Namespace
        found, extra = self.parse_known_args(words)
        if found.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        for word in extra:
            if word.startswith("--"):
                raise self._unknown_option(word.partition("=")[0])
            raise UsageError(f"does not know what {word!r} is for", where=self.command, hint="It takes one model.")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A misspelt option comes before the complaint that something is missing."""
        known = self._option_string_actions
        for word in args or ():
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                raise self._unknown_option(option)
        return super().parse_known_args(args, namespace)

    def _unknown_option(self, option: str) -> UsageError:
        near = suggest(option, [o for o in self._option_string_actions if o.startswith("--")])
        hint = f"Did you mean {' or '.join(near)}?" if near else f"{self.prog} --help lists what there is."
        return UsageError(f"there is no option {option!r}", where=self.command, hint=hint)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Of a fixed width: to ask the terminal for its own costs more than a whole answer (shutil and what it imports)."""
    return argparse.HelpFormatter(prog, width=100)


def add_settings(parser: Parser, settings: Sequence[Setting]) -> None:
    """An option for every setting of a recipe."""
    usual, rare = parser.add_argument_group("how it is run"), parser.add_argument_group("to compare with recorded runs")
    for setting in settings:
        group = rare if setting.field in COMPARING else usual
        flag = setting.name.replace("_", "-")
        if setting.type == "bool":
            name, value = (f"--no-{flag}", False) if setting.default else (f"--{flag}", True)
            group.add_argument(name, dest=setting.name, action="store_const", const=value, help=setting.field)
        elif setting.type == "bool | None":
            yes_or_no = argparse.BooleanOptionalAction
            group.add_argument(f"--{flag}", dest=setting.name, action=yes_or_no, default=None, help=setting.field)
        else:
            group.add_argument(f"--{flag}", dest=setting.name, metavar=_metavar(setting), help=setting.field)


def _metavar(setting: Setting) -> str:
    return _VALUES.get(setting.type.removesuffix(" | None"), "WORD")


def read_settings(found: argparse.Namespace, settings: Sequence[Setting]) -> dict[str, Any]:
    """The settings that were given, as values.

    Raises:
        UsageError: a value is wrong; it names the option.
    """
    given = ((setting, getattr(found, setting.name)) for setting in settings)
    return {s.name: s.read(value, f"--{s.name.replace('_', '-')}") for s, value in given if value is not None}


def explain_settings(parser: Parser, settings: Sequence[Setting], recipe: type) -> None:
    """Put into the help what the recipe's code says about each field, its choices and its default."""
    sentences = field_sentences(recipe)
    by_name = {setting.name: setting for setting in settings}
    for action in parser.options:
        setting = by_name.get(action.dest)
        if setting is not None:
            said = [sentences.get(setting.field, "").strip().replace("%", "%%")]
            if setting.type == "bool" and setting.default:  # the flag is --no-..., and the sentence says what goes
                said.insert(0, "Turns off the default:")
            if setting.type != "bool" and setting.default is not None:
                said.append(f"Default: {setting.default}.")
            if setting.choices and not isinstance(setting.default, bool):
                action.metavar = "|".join(setting.choices) if len(setting.choices) < 5 else None
                said.append(f"One of: {', '.join(setting.choices)}." if len(setting.choices) >= 5 else "")
            action.help = " ".join(s for s in said if s)


def field_sentences(recipe: type) -> dict[str, str]:
    """The text under every field of a dataclass, out of its source."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(recipe))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in pairwise(body):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found
