"""What docstrings say."""

import inspect
import re

_RAISES = re.compile(r"^Raises:\n((?: .*\n?|\n)*)", re.MULTILINE)


def raises(value: object) -> set[str]:
    """The names of the errors that the docstring of a function or a class lists."""
    section = _RAISES.search(inspect.getdoc(value) or "")
    return set(re.findall(r"^ {4}(\w+):", section[1], re.MULTILINE)) if section else set()
