"""Docstrings and signatures as the site shows them: doctests as code blocks, types and defaults as users write them."""

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^Example:$", re.MULTILINE)
_TAKEN = {"ConfigField": "LoRAConfig"}  # by a descriptor, when it is set
_MEANT = {"ALL_LINEAR": '"all-linear"', "dict()": "{}"}  # by a default
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """The docstring with its doctests in a form that renders as code."""
    fenced = _DOCTEST.sub(lambda test: f"```pycon\n{test[0]}\n```", docstring)
    return _HEADING.sub("Examples:", fenced)  # the heading that griffe knows


class Doctests(griffe.Extension):
    """Applies `as_markdown` to every docstring, and spells out types and defaults."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Give a field that is a descriptor the type of its values, and no default."""
        if str(attr.annotation) in _TAKEN:
            attr.annotation, attr.value = griffe.ExprName(_TAKEN[str(attr.annotation)], attr.parent), None

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Show defaults of `func` as their values, and our names of types as what they stand for."""
        for parameter in func.parameters:
            parameter.default = _MEANT.get(str(parameter.default), parameter.default)
            parameter.annotation = _spelled(parameter.annotation, func)


def _spelled(annotation: Any, where: griffe.Object) -> Any:
    """An annotation with every alias of a type that this library defines replaced by the type; itself where there is none."""
    if not isinstance(annotation, griffe.Expr):
        return annotation
    parts = [_meaning(part, where) for part in annotation.iterate(flat=True)]
    return annotation if "".join(parts) == str(annotation) else "".join(parts)


def _meaning(part: Any, where: griffe.Object) -> str:
    """What a part of an annotation stands for."""
    path = part.canonical_path if isinstance(part, griffe.ExprName) else ""
    if not path.startswith("loralib."):
        return str(part)
    found = where.modules_collection[path]
    return str(_spelled(found.value, found)) if found.is_attribute else str(part)
