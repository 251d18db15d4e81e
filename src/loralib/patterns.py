"""Matching names of layers, and complaining about patterns that match nothing.

A pattern is a list of names, each of which must equal a layer's full name or end it at a dot (`"query"` matches
`encoder.layer.0.attention.self.query`, not `my_query`), or one regular expression that must match whole names.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from .errors import TargetError

T = TypeVar("T")


def ends_with(name: str, suffix: str) -> bool:
    """Whether `suffix` is `name` or its last dotted parts.

    >>> ends_with("encoder.0.query", "query"), ends_with("my_query", "query")
    (True, False)
    """
    return name == suffix or name.endswith("." + suffix)


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether `name` is one of `modules` or lies in one of them.

    >>> within("head.dense.weight", ["head"]), within("header.weight", ["head"])
    (True, False)
    """
    return any(name == module or name.startswith(module + ".") for module in modules)


def exactly(name: str) -> str:
    """The key of a rank or alpha pattern that fits `name` alone, and not names that end with it.

    >>> lookup({exactly("proj"): 4}, "encoder.proj", 8)
    8
    """
    return "^" + re.escape(name)


def nearest(entry: str, names: Iterable[str]) -> str:
    """The known names that look most like `entry`, with how many layers carry each.

    >>> nearest("q_porj", ["0.q_proj", "1.q_proj", "0.mlp"])
    'q_proj (2 layers)'
    """
    depth = entry.count(".") + 1
    endings = Counter(".".join(name.split(".")[-depth:]) for name in names)
    close = get_close_matches(entry, endings, n=3, cutoff=0.5) or [name for name, _ in endings.most_common(6)]
    return ", ".join(f"{name} ({endings[name]} layer{'s' if endings[name] > 1 else ''})" for name in close) or "none"


def nearest_of(entry: str, names: Iterable[str]) -> str:
    """The names that look most like `entry`.

    >>> nearest_of("sentense", ["sentence", "label"])
    'sentence'
    """
    return ", ".join(get_close_matches(entry, list(names), n=3, cutoff=0.5)) or "none"


def compile_pattern(expression: str, field: str) -> re.Pattern[str]:
    """The compiled expression; `TargetError` when it is none."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise TargetError(f"{field}={expression!r} is not a regular expression: {error}. Nothing was changed.") from None


def match(names: Sequence[str], pattern: str | Sequence[str], field: str, model: str) -> list[str]:
    """The names that `pattern` matches, in their own order.

    Raises `TargetError` when the expression, or any entry of the list, matches nothing. `field` and `model` are what the
    message calls the pattern and the place it was looked for in.

    >>> match(["0.query", "0.key", "1.query"], ["query"], "target_modules", "BertModel")
    ['0.query', '1.query']
    """
    if isinstance(pattern, str):
        expression = compile_pattern(pattern, field)
        found = [name for name in names if expression.fullmatch(name)]
        if not found:
            letters = re.sub(r"\W", "", pattern)
            remedy = f"nearest names: {nearest(letters, names)}"
            if any(ends_with(name, pattern) for name in names):
                remedy = f"for names that end so, give a list: [{pattern!r}]"
            raise TargetError(
                f"{field}={pattern!r} is a regular expression that matches the whole name of no layer of {model}; {remedy}. "
                "Nothing was changed."
            )
        return found
    endings = tuple("." + entry for entry in pattern)
    found = [name for name in names if ("." + name).endswith(endings)]
    for entry in pattern:
        if not any(ends_with(name, entry) for name in found):
            raise TargetError(
                f"{field}={list(pattern)!r}: {entry!r} matches no layer of {model}. "
                f"Nearest names: {nearest(entry, names)}. Nothing was changed."
            )
    return found


def lookup(patterns: Mapping[str, T], name: str, default: T) -> T:
    """The value of the first entry of a rank or alpha pattern that fits `name`, as PEFT reads such patterns: a key is
    the name itself, its last dotted parts, or a regular expression for them.

    >>> lookup({"query": 4, r"layer\\.1\\..*": 2}, "layer.1.key", 8)
    2
    """
    for key, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default


def check_lookup(patterns: Mapping[str, object], names: Sequence[str], field: str) -> None:
    """`TargetError` when an entry of a rank or alpha pattern fits none of the adapted layers."""
    for key in patterns:
        compile_pattern(key, field)
        if not any(lookup({key: True}, name, False) for name in names):
            raise TargetError(
                f"{field}: {key!r} fits none of the adapted layers. Nearest names: {nearest(key, names)}. Nothing was changed."
            )


def renaming(names: Mapping[str, str], held: Sequence[str]) -> Callable[[str], str]:
    """The function that renames modules and what lies in them by {module: new name}; the longest fitting entry counts, and ""
    stands for the model itself. `TargetError` for an entry that fits none of the names in `held`.

    >>> renaming({"unet": "", "unet.mid": "middle"}, ["unet.mid.to_q"])("unet.mid.to_q")
    'middle.to_q'
    """
    for old in names:
        if old and not any(within(name, [old]) for name in held):
            raise TargetError(f"rename: {old!r} fits nothing in the adapter. Nearest names: {nearest(old, held)}.")

    def new(name: str) -> str:
        fitting = [old for old in names if not old or within(name, [old])]
        if not fitting:
            return name
        old = max(fitting, key=len)
        rest = name[len(old) + 1 :] if old else name
        return ".".join(part for part in (names[old], rest) if part)

    return new
