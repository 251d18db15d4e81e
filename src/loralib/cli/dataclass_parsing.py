"""Parsers built from dataclasses, which also read YAML files; uses jsonargparse, from the extra `train`."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Union, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ..errors import ConfigError
from ..recipes.declaring import sections
from ..recipes.run_folder import check_names
from ..storage.places import what_is_at
from ..storage.plain_yaml import read_yaml
from .parsing import CommandParser
from .wording import choices_of, expected, in_our_words, known_options, one_of


class OptionsParser(CommandParser, ArgumentParser):
    """A parser that knows the types of its options. kinds: types by the option's name in YAML."""

    kinds: dict[str, Any]

    def __init__(self, **kwargs: Any):
        self.kinds = {}
        self._sections: dict[str, Any] = {}
        super().__init__(exit_on_error=False, print_config=None, **kwargs)  # --dry-run prints what would be done

    @property
    def choices_of(self) -> dict[str, list[str]]:
        """The choices of options that have some, by the option's name in YAML."""
        return {name: found for name, kind in self.kinds.items() if (found := choices_of(kind))}

    def section(self, title: str) -> Any:
        """The group of options with this title; made on first use."""
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)
        return self._sections[title]


def dataclass_parser(
    options: type, prog: str, without: Collection[str] = (), other_help: Mapping[str, str] = MappingProxyType({}), **how: Any
) -> OptionsParser:
    """A parser with one `--option` for each field of the dataclass `options` but those in `without`, and `--config FILE` to
    take them from YAML. A field that is a dataclass itself is nested in YAML; the options of its fields stand among the others.

    Options after `--config` override the file's. Types are checked as the fields are annotated. other_help: help
    texts by field, instead of its own. how: see `CommandParser`.
    """
    parser = OptionsParser(prog=prog, **how)
    config = "YAML file with any of these options (paths in it are relative to the working directory)"
    parser.section("run").add_argument("--config", action="config", metavar="FILE", help=config)
    kinds = get_type_hints(options)
    for title, declared in sections(options).items():
        for option in declared:
            if option.name not in without:
                _add_field(parser, title, option, kinds[option.name], other_help)
    return parser


def _add_field(parser: OptionsParser, title: str, option: Field[Any], kind: Any, other_help: Mapping[str, str]) -> None:
    """Add the option of a field, or those of the fields of the dataclass that it is."""
    if not is_dataclass(kind):
        help_ = other_help.get(option.name, option.metadata["help"])
        _add(parser, title, option.name, kind, option.default, option.metadata["metavar"], help_)
        return
    kinds = get_type_hints(kind)
    for inner in fields(kind):
        usual, (metavar, help_) = getattr(option.default, inner.name), option.metadata["inner"][inner.name]
        help_ = other_help.get(inner.name, help_)
        _add(parser, title, f"{option.name}.{inner.name}", kinds[inner.name], usual, metavar, help_)


def _add(parser: OptionsParser, title: str, dest: str, kind: Any, usual: Any, metavar: str, help_: str) -> None:
    parser.kinds[dest] = kind
    if isinstance(usual, Collection) and not usual:
        usual = None
    shown = "" if usual is None or usual is False or "default:" in help_ else f" (default: {_shown(usual)})"
    if choices := ["true", "false"] if usual is True else choices_of(kind):
        metavar = f"{{{','.join(choices)}}}"
    how: dict[str, Any] = {"nargs": "?", "const": True} if bool in (kind, *get_args(kind)) else {}
    if kind == Sequence[str]:
        kind = str | Sequence[str]  # names joined by commas
    flags = ["-o", _flag(dest)] if dest == "output" else [_flag(dest)]
    parser.section(title).add_argument(
        *flags, dest=dest, type=_given(kind), default=usual, metavar=metavar, help=help_ + shown, **how
    )


def _shown(usual: Any) -> str:
    return str(usual).lower() if isinstance(usual, bool) else f"{usual:g}" if isinstance(usual, float) else str(usual)


def _given(kind: Any) -> Any:
    """The type without None: on the command line `null` is a name; in a file it means no value."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return Union[tuple(parts)] if NoneType in get_args(kind) else kind  # noqa: UP007


def _flag(name: str) -> str:
    return "--" + name.rpartition(".")[2].replace("_", "-")


def given(parser: OptionsParser, words: Sequence[str]) -> dict[str, Any]:
    """The values on the command line (and in its YAML file) by option, without defaults. Raises `ConfigError`, in one sentence,
    for arguments that the parser does not accept."""
    _check_config_files(words)
    try:
        parsed = parser.parse_args(list(words), defaults=False).as_dict()
    except ArgumentError as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{_problem(parser, message)}; see {parser.all_help}.") from None
    nested: dict[str, Any] = parsed.pop("lora", {})
    return {name: value for name, value in {**parsed, **nested}.items() if name != "config"}


def _problem(parser: OptionsParser, message: str) -> str:
    """An error message of jsonargparse as one plain sentence."""
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
    """Raise an error for a file that cannot be read, or that is of an earlier version."""
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
