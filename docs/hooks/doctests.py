"""Doctests in docstrings as code blocks of the site, where they stand in the text or under the heading "Example:"."""

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^Example:$", re.MULTILINE)
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """The docstring with its doctests in a form that renders as code."""
    fenced = _DOCTEST.sub(lambda test: f"```pycon\n{test[0]}\n```", docstring)
    return _HEADING.sub("Examples:", fenced)  # the heading that griffe knows


class Doctests(griffe.Extension):
    """Applies `as_markdown` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
