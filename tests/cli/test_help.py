"""The help of every command: plain words for every option, the common options first, within 80 columns."""

import argparse
import re
import shlex
import textwrap
from importlib import import_module
from typing import Any

import pytest

from loralib.cli import COMMANDS, completion, help, main

LARGE = ("train", "compare", "study")


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def parser_of(command: str) -> Any:
    return import_module(f"loralib.cli.{command}").parser()


def shown(command: str, word: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([command, word])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def name_of(action: argparse.Action) -> str:
    return (action.option_strings or [str(action.metavar)])[-1].rstrip("+")


def problems(action: argparse.Action) -> list[str]:
    """What a reader of the help of one option would miss, or read twice."""
    text = action.help or ""
    metavars = [action.metavar] if isinstance(action.metavar, str) else []
    own = name_of(action).lstrip("-").upper().replace("-", "_")
    entry = help.Formatter("loralib")
    entry.start_section("section")
    entry.add_argument(action)
    lines = entry.format_help().splitlines()[1:]
    choices = list(map(str, action.choices or ()))
    found = {
        "has no help text": not text,
        "takes more than two lines": len(textwrap.wrap(text, 78 - help._COLUMN)) > 2,
        "is more than one sentence": re.search(r"[.!?] [A-Z]", text) or text.endswith("."),
        "begins with a capital": re.match(r"[A-Z][a-z]+\b", text),
        "shows its default twice": text.count("default") > 1,
        "uses a private word": re.search(r"\b(told|tells?|aside|beside|anew|treatment|so many|is no|are no|as ever)\b", text),
        "repeats its name": action.option_strings and own in [metavar.upper() for metavar in metavars],
        "does not name its value": action.option_strings and takes_a_value(action) and not (metavars or choices),
        "does not show its choices": any(choice not in "\n".join(lines) for choice in choices),
    }
    return [f"{name_of(action)} {problem}" for problem, is_so in found.items() if is_so]


def takes_a_value(action: argparse.Action) -> bool:
    return action.nargs not in (0, "?")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_in_two_lines_what_it_does(command: str) -> None:
    assert [problem for action in parser_of(command)._actions for problem in problems(action)] == []


def test_problems_of_an_option_are_found() -> None:
    parser = argparse.ArgumentParser()
    texts = {
        "--none": {},
        "--long": {"metavar": "N", "help": "word " * 60},
        "--name": {"metavar": "NAME", "help": "a name"},
        "--bare": {"help": "a value"},
        "--twice": {"metavar": "N", "help": "a number (default: 3) (default: 3)"},
        "--chosen": {"choices": ["a", "bb"], "metavar": "X", "help": "a letter"},
        "--private": {"action": "store_true", "help": "is told so many times"},
        "--said": {"metavar": "N", "help": "One. Two."},
    }
    actions = [parser.add_argument(name, **how) for name, how in texts.items()]
    assert [bool(problems(action)) for action in actions] == [True] * len(actions)
    assert problems(parser.add_argument("-c", "--count", type=int, metavar="N", help="number of rows (default: 3)")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_fits_80_columns_and_begins_with_a_short_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", *([help.EVERYTHING] if command in LARGE else [])):
        lines = shown(command, word, capsys).splitlines()
        assert [line for line in lines if len(line) > 80] == []
        assert lines[0].startswith(f"usage: loralib {command} ")
        assert lines[1] == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_command_with_options_that_exist(command: str) -> None:
    examples = parser_of(command).examples
    assert 2 <= len(examples) <= 4
    known = completion.options_of(command)
    for example in examples:
        before, _, words = example.partition(f"loralib {command}")
        assert before in ("", "torchrun --nproc-per-node 4 -m -- ", "source <(")
        assert {word for word in shlex.split(words.rstrip(")")) if re.match("--?[a-z]", word)} <= known.keys()


def test_examples_are_taken_by_the_parsers() -> None:
    for command in set(COMMANDS) - {*LARGE, "completion"}:
        made = parser_of(command)
        for example in made.examples:
            words = shlex.split(example.partition(" < ")[0])[2:]
            (made.parse_intermixed_args if command in ("predict", "generate") else made.parse_args)(words)


def options_in(text: str) -> set[str]:
    """The options that a help text lists, at the beginnings of its lines."""
    return {option for line in text.splitlines() for option in re.findall(r"^  (?:-\w, )?(--[\w-]+)", line)}


def test_the_help_of_train_has_the_common_options_and_says_where_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("train", "--help", capsys)
    common = {
        *("--model", "--data", "--task", "--eval-data", "--output", "--method", "--r", "--lora-alpha", "--target-modules"),
        *("--learning-rate", "--num-train-epochs", "--batch-size", "--seed"),
    }
    assert options_in(text) == {*common, "--config", "--help", "--help-all"}
    assert "loralib train --help-all" in text
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("command", LARGE)
def test_help_all_shows_every_option_once_in_a_section(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(command, help.EVERYTHING, capsys)
    everything = {name_of(action) for action in parser_of(command)._actions if action.option_strings}
    assert options_in(text) == everything > options_in(shown(command, "--help", capsys))
    assert all(len(re.findall(rf"^  (?:-\w, )?{option}\b(?!-)", text, re.MULTILINE)) == 1 for option in everything)
    for title in ("run", "model", "data", "LoRA and other methods", "training", "evaluation", "output"):
        assert f"\n{title}:\n" in text


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(LARGE)))
def test_the_help_of_a_smaller_command_shows_all_of_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(command, "--help", capsys)
    assert all(name_of(action) in text for action in parser_of(command)._actions)


def test_defaults_are_those_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown("train", "--help-all", capsys).split())
    for part in (
        "LoRA rank; 16 for chat (default: 8)",
        "passes over the training data (default: 3)",
        "(default: 1e-08)",
        "dropout (default: 0)",
    ):
        assert part in text
    assert "default: false" not in text
    assert "false keeps the last (default: true)" in text


def test_a_wide_terminal_does_not_make_long_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, shown("train", "--help-all", capsys).splitlines())) <= 100


def test_help_all_belongs_to_commands_with_many_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "x", "--help-all"]) == 2
    assert "info has no option --help-all" in capsys.readouterr().err
