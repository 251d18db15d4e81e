"""Docstrings of what is exported: arguments, results, errors and an example that runs wherever it is pasted."""

import ast
import builtins
import doctest
import importlib
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pytest
from torch import nn

import loralib as lora
from docstrings import raises
from error_examples import EXAMPLES
from loralib import star_0_1, train
from peers import library

MODULES = ("loralib", "loralib.analysis", "loralib.layers", "loralib.utils")
WITH_TRANSFORMERS = ("loralib.train",)
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
NOTHING = (None, NoReturn, Iterator[None], AbstractContextManager[None])
ASSUMED = {"torch", "nn", "lora"}  # by the examples; docs/reference/index.md says so


def exported(modules: tuple[str, ...] = MODULES) -> dict[str, Any]:
    """The classes and functions that users import, each by the first of its names."""
    found: dict[int, tuple[str, Any]] = {}
    for module in map(importlib.import_module, modules):
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
        names = {str(getattr(item, "name", None) or getattr(item, "annotation", None) or "") for item in items}
        found.setdefault(section.kind.value, set()).update(name.lstrip("*") for name in names if name)
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
    if types := said.get("returns", set()) | said.get("yields", set()):
        yield f"types in Returns: {', '.join(sorted(types))}"
    if missing := raised(value) - raises(value):
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


def names_made(program: ast.AST) -> Iterator[str]:
    """The names that a program imports, defines or assigns."""
    for node in ast.walk(program):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name


def problem_of_example(text: str) -> str | None:
    """Why a program under `Example:` would not run where it is pasted, or None."""
    if not text:
        return "no Example:"
    program = ast.parse(text)
    used = {node.id for node in ast.walk(program) if isinstance(node, ast.Name)}
    unknown = used - set(names_made(program)) - ASSUMED - set(dir(builtins))
    return f"its example uses {', '.join(sorted(unknown))} from nowhere" if unknown else None


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    functions: dict[str, Any] = {}
    for name, value in values.items():
        if inspect.isclass(value):
            functions |= public_members(value)
            yield from (f"{name}: {problem}" for problem in (*problems_of_class(value), *stale(value)))
        else:
            functions[name] = value
        stands_for_all = inspect.isclass(value) and issubclass(value, lora.LoRAError) and value is not lora.LoRAError
        if not stands_for_all and (problem := problem_of_example(example_of(value))):
            yield f"{name}: {problem}"
    for name, value in functions.items():
        yield from (f"{name}: {problem}" for problem in problems_of_function(value))


def stale(cls: type) -> Iterator[str]:
    """Arguments that docstrings of methods of a class name, overriding ones included, and that the methods do not have."""
    for name, value in vars(cls).items():
        method = getattr(value, "__func__", value)
        if inspect.isfunction(method) and (extra := sections(method).get("parameters", set()) - parameters(method)):
            yield f"Args: of {name} that it does not have: {', '.join(sorted(extra))}"


def test_docstrings_of_exported_names_are_complete() -> None:
    assert len(exported()) > 55
    assert list(problems(exported())) == []


@pytest.mark.slow
def test_docstrings_of_trainers_are_complete() -> None:
    assert list(problems(exported(WITH_TRANSFORMERS))) == []


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

    def method(self, c: int) -> None:
        """Do nothing.

        Args:
            d: Something else.
        """


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
    assert list(stale(Bad)) == ["Args: of method that it does not have: d"]
    assert problem_of_example(example_of(bad)) == "no Example:"
    assert problem_of_example("x = LoRAConfig()\nx.r") == "its example uses LoRAConfig from nowhere"


def test_a_complete_docstring_is() -> None:
    assert list(problems_of_function(good)) == []
    assert problem_of_example(example_of(good)) is None


# --- the reference --------------------------------------------------------------------------------------------------


def on_pages() -> list[str]:
    """The names that the pages of the reference document, with those of the part that lists all errors."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.rglob("*.md"))
    errors = [f"loralib.{name}" for name in EXAMPLES] if "<!-- generated: error_classes -->" in pages else []
    return re.findall(r"^::: (\S+)$", pages, re.MULTILINE) + errors


def test_every_exported_name_is_on_one_page_of_the_reference() -> None:
    counted = Counter(on_pages())
    names = {*exported(), *(f"loralib.train.{name}" for name in train.__all__)}
    assert {name for name in names if counted[name] != 1} == set()


def test_what_else_the_reference_documents_is_complete() -> None:
    names = {name for name in on_pages() if not name.startswith("loralib.train.")} - set(exported())
    assert {name.rpartition(".")[2] for name in names} == {"Bound", "Handler", "use"}
    assert list(problems({name: resolved(name) for name in names - {"loralib.layers.handler.Handler"}})) == []


def resolved(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
