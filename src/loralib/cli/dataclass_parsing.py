"""Parsers made from dataclasses, which also read YAML files; with jsonargparse, of the extra `train`."""

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ..errors import ConfigError
from ..recipes.run_folder import check_names
from ..storage.places import what_is_at
from ..storage.plain_yaml import read_yaml
from .wording import choices_of, expected, in_our_words, known_options, one_of


class OptionsParser(ArgumentParser):
    """A parser that knows of which type each of its options is. kinds: by the option's name in YAML."""

    kinds: dict[str, Any]

    def __init__(self, **kwargs: Any):
        self.kinds = {}
        super().__init__(**kwargs)

    @property
    def choices_of(self) -> dict[str, list[str]]:
        """The words that an option takes, where it takes one of some, by the option's name in YAML."""
        return {name: found for name, kind in self.kinds.items() if (found := choices_of(kind))}


def dataclass_parser(options: type, prog: str, description: str, without: Collection[str] = ()) -> OptionsParser:
    """A parser with one `--option` for each field of the dataclass `options` but those in `without`, and `--config FILE` to
    take them from YAML. A field that is a dataclass itself is nested in YAML; the options of its fields stand among the others.

    Words after `--config` override the file's. Types are checked as the fields are annotated.
    """
    parser = OptionsParser(
        prog=prog,
        description=description,
        formatter_class=argparse.HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,  # --dry-run prints what would be done
    )
    help_ = "YAML file with any of these options (paths in it are relative to the working directory)"
    parser.add_argument("--config", action="config", help=help_)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(o.metadata["group"] for o in fields(options))}
    for option, kind in _typed(options):
        group, help_ = groups[option.metadata["group"]], option.metadata["help"]
        if is_dataclass(kind):
            for inner, inner_kind in _typed(kind):
                usual, text = getattr(option.default, inner.name), help_.get(inner.name, "as in LoRAConfig")
                parser.kinds[f"{option.name}.{inner.name}"] = inner_kind
                _add(group, inner.name, inner_kind, usual, text, f"{option.name}.{inner.name}")
        elif option.name not in without:
            parser.kinds[option.name] = kind
            _add(group, option.name, kind, option.default, help_, option.name)
    return parser


def _typed(options: Any) -> list[tuple[Field[Any], Any]]:
    """The fields of a dataclass, each with its type."""
    return [(option, get_type_hints(options)[option.name]) for option in fields(options)]


def _add(group: Any, name: str, kind: Any, usual: Any, help_: str, dest: str) -> None:
    if isinstance(usual, Collection) and not usual:
        usual = None
    shown = "" if usual is None else f" (default: {str(usual).lower() if kind is bool else usual})"
    how: dict[str, Any] = {"metavar": name.upper()}
    if kind is bool:
        how = {"nargs": "?", "const": True}
    elif get_origin(kind) is Literal:
        how = {}  # the choices are shown
    if kind == Sequence[str]:
        kind = str | Sequence[str]  # names joined by commas
    flags = ["-o", _flag(name)] if name == "output" else [_flag(name)]
    group.add_argument(*flags, dest=dest, type=kind, default=usual, help=help_ + shown, **how)


def _flag(name: str) -> str:
    return "--" + name.rpartition(".")[2].replace("_", "-")


def given(parser: OptionsParser, words: Sequence[str]) -> dict[str, Any]:
    """What the words (and the YAML file that they name) say, by option and without defaults; `ConfigError`, in one sentence,
    for words that the parser does not take."""
    _check_config_files(words)
    try:
        parsed = parser.parse_args(list(words), defaults=False).as_dict()
    except ArgumentError as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{_problem(parser, message)}; see {parser.prog} --help.") from None
    nested: dict[str, Any] = parsed.pop("lora", {})
    return {name: value for name, value in {**parsed, **nested}.items() if name != "config"}


def _problem(parser: OptionsParser, message: str) -> str:
    """What jsonargparse says of words that it does not take, in our words."""
    key = re.match(r'Parser key "([\w.]+)":', message)
    if key is None:
        message = re.sub(r"^argument (--[\w-]+)/--[\w-]+\+:", r"argument \1:", message)
        return in_our_words(message, parser.prog, known_options(parser._actions))
    value = re.search(r"(?:Got|Given) value: (.*)$", message)
    plain = re.search(r"Expected a (?:<class ')?(\w+)", message)
    kind, flag = parser.kinds.get(key[1]) or _OF_PLAIN.get(plain[1] if plain else ""), _flag(key[1])
    if kind is None or value is None:
        return f"{flag}: {message[key.end() :].strip()}"
    choices = choices_of(kind)
    return one_of(flag, value[1], choices) if choices else f"{flag}: {value[1]!r} is not {expected(kind)}"


_OF_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


def _check_config_files(words: Sequence[str]) -> None:
    """`RunError` for a file of an earlier version, which the parser would take in part."""
    named = [after for word, after in pairwise(words) if word == "--config"]
    named += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    for path in map(Path, named):
        if not path.is_file():
            raise ConfigError(f"--config {path} {what_is_at(path)}; give a YAML file of options.")
        try:
            values = read_yaml(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"--config {path} cannot be read ({reason}); give a YAML file of options.") from None
        if isinstance(values, dict):
            check_names(path, values)
