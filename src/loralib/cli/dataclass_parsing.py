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
from ..storage.plain_yaml import read_yaml


def dataclass_parser(options: type, prog: str, description: str, without: Collection[str] = ()) -> ArgumentParser:
    """A parser with one `--option` for each field of the dataclass `options` but those in `without`, and `--config FILE` to
    take them from YAML. A field that is a dataclass itself is nested in YAML; the options of its fields stand among the others.

    Words after `--config` override the file's. Types are checked as the fields are annotated.
    """
    parser = ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    help_ = "YAML file with any of these options (paths in it are relative to the working directory)"
    parser.add_argument("--config", action="config", help=help_)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(o.metadata["group"] for o in fields(options))}
    for option, kind in _typed(options):
        group, help_ = groups[option.metadata["group"]], option.metadata["help"]
        if is_dataclass(kind):
            for inner, inner_kind in _typed(kind):
                usual, text = getattr(option.default, inner.name), help_.get(inner.name, "as in LoRAConfig")
                _add(group, inner.name, inner_kind, usual, text, f"{option.name}.{inner.name}")
        elif option.name not in without:
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
    group.add_argument(_flag(name), dest=dest, type=kind, default=usual, help=help_ + shown, **how)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def given(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """What the words (and the YAML file that they name) say, by option and without defaults; `ConfigError`, in one sentence,
    for words that the parser does not take."""
    _check_config_files(words)
    try:
        parsed = parser.parse_args(list(words), defaults=False).as_dict()
    except ArgumentError as error:
        said = " ".join(str(error).split()).rstrip(".")
        said = re.sub(r'Parser key "(?:\w+\.)?(\w+)":', lambda m: _flag(m[1]) + ":", said)
        said = re.sub(r"<class '(\w+)'>", r"\1", said)
        raise ConfigError(f"{said}; see {parser.prog} --help.") from None
    nested: dict[str, Any] = parsed.pop("lora", {})
    return {name: value for name, value in {**parsed, **nested}.items() if name != "config"}


def _check_config_files(words: Sequence[str]) -> None:
    """`RunError` for a file of an earlier version, which the parser would take in part."""
    named = [after for word, after in pairwise(words) if word == "--config"]
    named += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    for path in map(Path, named):
        if not path.is_file():
            continue  # of which the parser speaks
        try:
            values = read_yaml(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"--config {path} cannot be read ({reason}); give a YAML file of options.") from None
        if isinstance(values, dict):
            check_names(path, values)
