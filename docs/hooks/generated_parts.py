"""Parts of pages that are made from the source: tables of model families and options, help texts, errors."""

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field
from importlib import import_module
from typing import Any
from unittest import mock

from error_examples import EXAMPLES, message_of
from loralib import architectures, cli, errors
from loralib.recipes.declaring import sections
from loralib.recipes.options import TrainOptions


def families() -> str:
    """Per model type, the names of the layers that play each role, as `--layers` finds them; equal ones share a row."""
    rows: dict[str, list[str]] = {}
    for model_type, roles in sorted({**architectures.ENCODERS, **architectures.DECODERS}.items()):
        fused, slices = architectures.FUSED.get(model_type, ("", ()))
        cells = [_names(roles.get(role, ())) or _slice(fused, slices, role) for role in architectures.ROLES]
        rows.setdefault(" | ".join(cells), []).append(model_type)
    head = [f"| model type | {' | '.join(architectures.ROLES)} |", "|---" * (len(architectures.ROLES) + 1) + "|"]
    return "\n".join([*head, *(f"| {_names(tuple(types))} | {cells} |" for cells, types in rows.items())])


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _slice(fused: str, slices: tuple[str, ...], role: str) -> str:
    return f"slice {slices.index(role) + 1} of {len(slices)} of `{fused}`" if role in slices else "(none)"


def commands() -> str:
    """The help of every command, with all options, as the command line prints it."""
    parts = []
    others = {name: what for name, what in cli.COMMANDS.items() if name not in cli.TRAINING | cli.ADAPTERS | cli.ANALYSES}
    groups = {
        "Train a model and use it": cli.TRAINING,
        "Work on adapter files": cli.ADAPTERS,
        "Understand what was learned": cli.ANALYSES,
        "Other commands": others,
    }
    for title, group in groups.items():
        parts.append(f"## {title}")
        parts += [_command(name, what) for name, what in group.items()]
    return "\n\n".join(parts)


def _command(name: str, what: str) -> str:
    return f"### loralib {name} {{ #{name} }}\n\n{_sentence(what)}\n\n{_fenced(_help(name))}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def _help(command: str) -> str:
    module, output = import_module(f"loralib.cli.{command}"), io.StringIO()
    word = "--help-all" if module.parser().common else "--help"
    plain = {"COLUMNS": "88", "NO_COLOR": "1", "LINES": "1000"}
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        module.run([word])
    return "".join(char for char in output.getvalue() if char.isprintable() or char == "\n")


def options() -> str:
    """The keys of a run's YAML file, in groups, with defaults."""
    head = "| key | default | |\n|---|---|---|\n"
    parts = []
    for title, declared in sections(TrainOptions).items():
        rows = [_row(field) for field in declared if "help" in field.metadata]  # `LoRAConfig` documents LoRA's own
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{head}" + "\n".join(rows))
    return "\n\n".join(parts)


def _row(field: Field[Any]) -> str:
    default = "" if field.default in (None, MISSING) else f"`{field.default}`".lower()
    return f"| `{field.name}` | {default} | {_cell(field.metadata['help'])} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def error_classes() -> str:
    """Every error class with what it means, what it derives from, and a message that the library gives."""
    return "\n\n".join(_error(name, example) for name, example in EXAMPLES.items())


def _error(name: str, example: str) -> str:
    error = getattr(errors, name)
    builtin = next(base.__name__ for base in error.__mro__ if base.__module__ == "builtins")
    said = message_of(example)
    what = f"{error.__doc__.splitlines()[0]} A subclass of `LoRAError` and `{builtin}`."
    fence = f'```{{ .text .output .wrap .no-copy title="raises {type(said).__name__}" }}'
    return f"## {name} {{ #{name} }}\n\n{what}\n\n```python\n{example.strip()}\n```\n\n{fence}\n{said}\n```"


PARTS: Mapping[str, Callable[[], str]] = {
    "families": families,
    "commands": commands,
    "options": options,
    "error_classes": error_classes,
}
