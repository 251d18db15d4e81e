"""What a regular expression may cost to match, so that one from a stranger's file cannot take exponential time.

An expression without repeated groups matches a text of length n in at most as many ways as its quantifiers and alternatives
have choices: n + 1 for `*`, `+` and `{2,}`, two for `?`, one for each alternative, all multiplied.
"""

import re
from collections.abc import Iterator

MOST_WAYS = 2**22  # three unbounded quantifiers and sixteen alternatives, on a name of usual length
MOST_STEPS = 2**32  # for all expressions and all names of a file
_USUAL = 63

_TOKEN = re.compile(
    r"""
    (?P<comment> \(\?\#[^)]*\) )
  | (?P<flags> \(\?[a-zA-Z]*x[a-zA-Z-]*[:)] )                                   # blanks and comments would mean nothing
  | (?P<open> \( (?: \?P<\w+> | \?P=\w+ | \?\(\w+\) | \?<?[=!] | \?> | \?[a-zA-Z-]*: | \?[a-zA-Z]+(?=\)) )? )
  | (?P<close> \) )
  | (?P<bar> \| )
  | (?P<times> (?: [*+?] | \{ (?: \d+ | \d*,\d* ) \} ) [?+]? )
  | (?P<item> \\. | \[\^?\]?(?:\\.|[^\]\\])*\] | . )
    """,
    re.VERBOSE | re.DOTALL,
)


def _choices(times: str, length: int) -> int:
    """In how many ways an item with the quantifier `times` can match in a text of `length`."""
    if times[0] in "*+":
        return length + 1
    if times[0] == "?":
        return 2
    least, comma, most = times.rstrip("?+")[1:-1].partition(",")
    if not comma:
        return 1
    bound = min(int(most), length) if most.isdecimal() and len(most) < 7 else length
    return max(1, bound - min(int(least[:7] or 0), length) + 1)


def ways(expression: str, length: int = _USUAL) -> int | None:
    """In how many ways, at most, the expression can match a text of `length`; None where a group is repeated.

    >>> ways(r"layers\\.\\d+\\.(q|v)_proj", 63), ways("(a+)+", 63), ways("(a.)?b", 63)
    (128, None, 2)
    """
    product, alternatives, before = 1, [1], ""
    for kind, text in _tokens(expression):
        if kind == "flags":
            return None
        if kind == "open":
            alternatives.append(1)
        elif kind == "close" and len(alternatives) > 1:
            product *= alternatives.pop()
        elif kind == "bar":
            alternatives[-1] += 1
        elif kind == "times":
            choices = _choices(text, length)
            if before == "close" and text[0] != "?" and text.rstrip("?+") not in ("{1}", "{0,1}", "{,1}"):
                return None
            product *= choices
        before = kind
    for count in alternatives:
        product *= count
    return product


def problem(expression: str) -> str:
    """Why matching the expression may take too long, with a name of usual length; "" where it does not."""
    choices = ways(expression)
    if choices is None:
        return "repeats a group, which may take exponential time to match"
    if choices > MOST_WAYS:
        return "has more than three unbounded quantifiers, or as many choices, which may take too long to match"
    return ""


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    """The parts of an expression that matter here, each with its kind; comments are left out."""
    for match in _TOKEN.finditer(expression):
        if match.lastgroup != "comment":
            yield match.lastgroup or "item", match[0]
