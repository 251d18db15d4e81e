"""Docstrings of what is exported: arguments, results, errors and an example that runs wherever it is pasted."""

import ast
import builtins
import doctest
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

import loralib as lora
from loralib import star_0_1
from peers import library

MODULES = ("loralib", "loralib.train", "loralib.analysis", "loralib.layers", "loralib.utils")
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
NOTHING = (None, NoReturn, Iterator[None], AbstractContextManager[None])
ASSUMED = {"torch", "nn", "lora"}  # by the examples; docs/reference/index.md says so


def exported() -> dict[str, Any]:
    """The classes and functions that users import, each by the first of its names."""
    found: dict[int, tuple[str, Any]] = {}
    for module in map(importlib.import_module, MODULES):
        for name in sorted(set(module.__all__) - set(dir(star_0_1))):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


def ours(cls: type) -> list[type]:
    """The classes of this library that a class is made of."""
    return [base for base in cls.__mro__ if base.__module__.startswith("loralib.")]


def public_members(cls: type) -> dict[str, Any]:
    """Methods and properties, inherited ones included, by where the first of that name in the library is defined. Those that
    override it need say only what differs."""
    found: dict[str, tuple[str, Any]] = {}
    for base in reversed(ours(cls)):
        for name, value in vars(base).items():
            if not name.startswith("_") and isinstance(
                value, property | cached_property | classmethod | staticmethod | Callable
            ):
                found.setdefault(name, (f"{base.__module__}.{base.__qualname__}.{name}", getattr(value, "__func__", value)))
    return {path: value for path, value in found.values() if not inspect.isclass(value)}


def sections(value: Any) -> dict[str, set[str]]:
    """What the sections of a docstring name: {"parameters": {"model"}, "raises": {"LayerError"}, …}."""
    griffe = library("griffe")
    parsed = griffe.Docstring(inspect.getdoc(value) or "").parse("google", warnings=False, returns_named_value=False)
    found: dict[str, set[str]] = {"text": {str(section.value) for section in parsed if section.kind.value == "text"}}
    for section in parsed:
        items = section.value if isinstance(section.value, list) else []
        names = {str(getattr(item, "name", None) or getattr(item, "annotation", "")) for item in items}
        found.setdefault(section.kind.value, set()).update(name.lstrip("*") for name in names)
    return found


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def raised(function: Callable[..., Any]) -> set[str]:
    """The errors of this library that a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return {call.func.id for call in calls if isinstance(call.func, ast.Name) and call.func.id in dir(lora)}


def problems_of_function(value: Any) -> Iterator[str]:
    """What the docstring of a function lacks."""
    if not inspect.getdoc(value):
        yield "no docstring"
        return
    if isinstance(value, property | cached_property):
        return
    said = sections(value)
    if missing := parameters(value) - said.get("parameters", set()):
        yield f"no Args: for {', '.join(sorted(missing))}"
    if extra := said.get("parameters", set()) - parameters(value):
        yield f"Args: of no parameter: {', '.join(sorted(extra))}"
    returns = inspect.signature(value).return_annotation
    if returns not in (*NOTHING, "None", inspect.Signature.empty) and not said.keys() & {"returns", "yields"}:
        yield "no Returns:"
    if missing := raised(value) - said.get("raises", set()):
        yield f"no Raises: for {', '.join(sorted(missing))}"


def problems_of_class(cls: type) -> Iterator[str]:
    """What the docstring of a class lacks. A class built as its base is needs no list of arguments."""
    said = sections(cls)
    if "__init__" in vars(cls):
        given = parameters(cls.__init__) - said.get("parameters", set()) - said.get("attributes", set())
        if given:
            yield f"no Args: for {', '.join(sorted(given))}"


def example_of(value: Any) -> str:
    """The program under `Example:`; empty where there is none."""
    _, _, example = (inspect.getdoc(value) or "").partition("\nExample:\n")
    return "".join(test.source for test in doctest.DocTestParser().get_examples(example))


def problem_of_example(program: str) -> str | None:
    """Why a program under `Example:` would not run where it is pasted, or None."""
    if not program:
        return "no Example:"
    names = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)]
    made = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | {
        made
        for node in ast.walk(ast.parse(program))
        for made in (
            [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            if isinstance(node, ast.Import | ast.ImportFrom)
            else [node.name]
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            else [node.arg]
            if isinstance(node, ast.arg)
            else []
        )
    }
    unknown = {node.id for node in names} - made - ASSUMED - set(dir(builtins))
    return f"its example uses {', '.join(sorted(unknown))} from nowhere" if unknown else None


def problems() -> Iterator[str]:
    functions: dict[str, Any] = {}
    for name, value in exported().items():
        if inspect.isclass(value):
            functions |= public_members(value)
            yield from (f"{name}: {problem}" for problem in problems_of_class(value))
        else:
            functions[name] = value
        stands_for_all = inspect.isclass(value) and issubclass(value, lora.LoRAError) and value is not lora.LoRAError
        if not stands_for_all and (problem := problem_of_example(example_of(value))):
            yield f"{name}: {problem}"
    for name, value in functions.items():
        yield from (f"{name}: {problem}" for problem in problems_of_function(value))


def test_docstrings_of_exported_names_are_complete() -> None:
    assert len(exported()) > 55
    assert list(problems()) == []


# --- the test can fail ----------------------------------------------------------------------------------------------


def bad(model: nn.Module, r: int) -> int:
    """Count something.

    Args:
        model: The model.
        rank: No parameter of this name.
    """
    if r:
        raise lora.ConfigError("no")
    raise LayerError("no")


class LayerError(lora.LayerError):
    """Named as the library's."""


class Bad:
    """A class.

    Args:
        a: Something.
    """

    def __init__(self, a: int, b: int):
        self.a, self.b = a, b


def good(model: nn.Module, *args: int, **kwargs: int) -> int:
    """Count something.

    Args:
        model: The model.
        *args: Numbers.
        **kwargs: More of them.

    Returns:
        The count.

    Raises:
        LayerError: Always.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> lora.inject(model, lora.LoRAConfig(r=1))
        ['0']
    """
    raise LayerError("no")


def test_what_a_docstring_lacks_is_found() -> None:
    assert list(problems_of_function(bad)) == [
        "no Args: for r",
        "Args: of no parameter: rank",
        "no Returns:",
        "no Raises: for LayerError",
    ]
    assert list(problems_of_function(lambda: None)) == ["no docstring"]
    assert list(problems_of_class(Bad)) == ["no Args: for b"]
    assert problem_of_example(example_of(bad)) == "no Example:"
    assert problem_of_example("x = LoRAConfig()\nx.r") == "its example uses LoRAConfig from nowhere"


def test_a_complete_docstring_is() -> None:
    assert list(problems_of_function(good)) == []
    assert problem_of_example(example_of(good)) is None


# --- what functions raise -------------------------------------------------------------------------------------------


def injected() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    lora.inject(model, lora.LoRAConfig(r=2))
    return model
