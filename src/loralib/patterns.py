"""Matching names of layers, and complaining about patterns that match nothing.

A pattern is a list of names, each of which must equal a layer's full name or end it at a dot (`"query"` matches
`encoder.layer.0.attention.self.query`, not `my_query`), or one regular expression that must match whole names.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import accumulate
from operator import itemgetter
from typing import TypeVar

from . import expressions
from .errors import ConfigError, TargetError

T = TypeVar("T")
_PLAIN = re.compile(r"[\w-]+(\.[\w-]+)*")
_LITERAL = re.compile(r"(\^?)((?:[\w-]|\\[^\w\s])+)\$?")  # every character that could mean something is escaped
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def ends_with(name: str, suffix: str) -> bool:
    """Whether `suffix` is `name` or its last dotted parts.

    >>> ends_with("encoder.0.query", "query"), ends_with("my_query", "query")
    (True, False)
    """
    return name == suffix or name.endswith("." + suffix)


def _endings(name: str) -> Iterator[str]:
    """The last dotted parts of `name`: one less each time."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _dots(name: str) -> list[int]:
    """The places of the dots in `name`."""
    return [place for place, char in enumerate(name) if char == "."]


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


def _named_by(key: str) -> str | None:
    """The name that `key` was made of by `exactly`; None for any other key."""
    if key[:1] != "^":
        return None
    name = _ESCAPED.sub(r"\1", key[1:])
    return name if re.escape(name) == key[1:] else None


@functools.lru_cache(maxsize=4096)
def _of_ending(key: str) -> re.Pattern[str]:
    """The expression for names, or what follows a dot in them, that `key` matches."""
    re.compile(key)  # a mistake in it may be none inside of the other one
    return re.compile(rf"(.*\.)?({key})")


class Patterns(Mapping[str, T]):
    """A rank or alpha pattern, read as PEFT reads it: a key is a name, its last dotted parts, or a regular expression for them.

    Names, keys made by `exactly` and expressions for one name (`a\\.b`) are looked up, not tried one after the other, so that a
    value for each of n layers costs n steps, not n². A dot in a name is that of regular expressions, any character: what counts
    are the parts around it.
    Raises `ConfigError`, with the name of the `field`, for a key that is not a regular expression.
    """

    def __init__(self, entries: Mapping[str, T], field: str = "pattern"):
        self._entries = dict(entries)
        self._exact: dict[str, tuple[int, T]] = {}
        self._plain: dict[tuple[int, ...], dict[str, tuple[int, T]]] = {}  # by the lengths of a name's parts
        self._endings: dict[str, tuple[int, T]] = {}
        self._others: list[tuple[int, re.Pattern[str], T]] = []
        for place, (key, value) in enumerate(self._entries.items()):
            try:
                if (name := _named_by(key)) is not None:
                    if self._exact.setdefault(name, (place, value))[0] != place:
                        self._others.append((place, _of_ending(key), value))
                elif _PLAIN.fullmatch(key):
                    parts = key.split(".")
                    self._plain.setdefault(tuple(map(len, parts)), {})["".join(parts)] = place, value
                elif not self._add_literal(key, place, value):
                    self._others.append((place, _of_ending(key), value))
            except (TypeError, re.error, OverflowError, RecursionError) as error:
                raise ConfigError(f"{field}: {key!r:.80} is neither a name nor a regular expression: {error}.") from None

    def _add_literal(self, key: str, place: int, value: T) -> bool:
        """Whether `key` is an expression for one name, and the first for it, which is then looked up from here on."""
        if (literal := _LITERAL.fullmatch(key)) is None:
            return False
        known, name = self._exact if literal[1] else self._endings, _ESCAPED.sub(r"\1", literal[2])
        return known.setdefault(name, (place, value))[0] == place

    @classmethod
    def exact(cls, values: Mapping[str, T]) -> "Patterns[T]":
        """The pattern that gives these values to the layers with these very names.

        >>> Patterns.exact({"0.query": 4})
        {'^0\\\\.query': 4}
        """
        found = cls({})
        found._entries = {exactly(name): value for name, value in values.items()}
        found._exact = {name: (place, value) for place, (name, value) in enumerate(values.items())}
        return found

    def __eq__(self, other: object) -> bool:
        return self._entries == (other._entries if isinstance(other, Patterns) else other)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, key: str) -> T:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return repr(self._entries)

    def of(self, name: str, default: T) -> T:
        """The value of the first entry that fits `name`.

        >>> Patterns({"query": 4, r"layer\\.1\\..*": 2}).of("layer.1.key", 8)
        2
        """
        last, found = min([self._exact.get(name, (len(self), default)), *self._plain_entries(name)], key=itemgetter(0))
        for place, expression, value in self._others:
            if place > last:
                break
            if expression.fullmatch(name):
                return value
        return found

    def unused(self, names: Sequence[str]) -> list[str]:
        """The keys that fit none of `names`."""
        keys, known = list(self._entries), set(names)
        used = {place for name, (place, _) in self._exact.items() if name in known}
        used |= {place for name in known for place, _ in self._plain_entries(name)}
        used |= {place for place, expression, _ in self._others if any(map(expression.fullmatch, names))}
        return [key for place, key in enumerate(keys) if place not in used]

    def check_cost(self, names: Sequence[str], field: str = "pattern") -> None:
        """`ConfigError` for a key that could take too long to match, with `names` or any: see `expressions`."""
        keys, steps = list(self._entries), 0
        longest, dots = max(map(len, names), default=0), max((name.count(".") for name in names), default=0)
        for place, _, _ in self._others:
            problem = expressions.problem(keys[place])
            if not problem:
                steps += (expressions.ways(keys[place], longest) or 0) * (dots + 1) * len(names)
                if steps > expressions.MOST_STEPS:
                    problem = (
                        f"and those before it may take too long to match with {len(names)} names of up to {longest} letters"
                    )
            if problem:
                raise ConfigError(f"{field}: {keys[place]!r:.80} {problem}; write names, or simpler expressions.")

    def _plain_entries(self, name: str) -> Iterator[tuple[int, T]]:
        """The entries whose keys are names that fit `name`, with their places."""
        if self._endings and "\n" not in name:
            yield from (self._endings[ending] for ending in (name, *_endings(name)) if ending in self._endings)
        for lengths, entries in self._plain.items() if "\n" not in name else ():
            start = len(name) - sum(lengths) - len(lengths) + 1
            if start == 0 or (start > 0 and name[start - 1] == "."):
                starts = accumulate(lengths[:-1], lambda at, length: at + length + 1, initial=start)
                parts = [name[at : at + length] for at, length in zip(starts, lengths, strict=True)]
                if (entry := entries.get("".join(parts))) is not None:
                    yield entry


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


def match(names: Sequence[str], pattern: str | Sequence[str], field: str, model: str, near: Sequence[str] = ()) -> list[str]:
    """The names that `pattern` matches, in their own order. near: those that a message suggests; all, where there are none.

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
            remedy = f"nearest names: {nearest(letters, near or names)}"
            if any(ends_with(name, pattern) for name in names):
                remedy = f"for names that end so, give a list: [{pattern!r}]"
            raise TargetError(
                f"{field}={pattern!r} is a regular expression that matches the whole name of no layer of {model}; {remedy}. "
                "Nothing was changed."
            )
        return found
    endings = {name: {name, *_endings(name)} for name in names}
    known = set[str]().union(*endings.values())
    for entry in pattern:
        if entry not in known:
            raise TargetError(
                f"{field}={list(pattern)!r}: {entry!r} matches no layer of {model}. "
                f"Nearest names: {nearest(entry, near or names)}. Nothing was changed."
            )
    entries = set(pattern)
    return [name for name in names if not entries.isdisjoint(endings[name])]


def lookup(patterns: Mapping[str, T], name: str, default: T) -> T:
    """The value of the first entry of a rank or alpha pattern that fits `name`: see `Patterns`.

    >>> lookup({"query": 4, r"layer\\.1\\..*": 2}, "layer.1.key", 8)
    2
    """
    if not patterns:
        return default
    return (patterns if isinstance(patterns, Patterns) else Patterns(patterns)).of(name, default)


def check_lookup(patterns: Mapping[str, object], names: Sequence[str], field: str) -> None:
    """`TargetError` when an entry of a rank or alpha pattern fits none of the adapted layers."""
    known = patterns if isinstance(patterns, Patterns) else Patterns(patterns)
    if unused := known.unused(names):
        raise TargetError(
            f"{field}: {unused[0]!r} fits none of the adapted layers. Nearest names: {nearest(unused[0], names)}. "
            "Nothing was changed."
        )


def renaming(names: Mapping[str, str], held: Sequence[str], what: str = "rename") -> Callable[[str], str]:
    """The function that renames modules and what lies in them by {module: new name}; the longest fitting entry counts, and ""
    stands for the model itself. `TargetError`, which begins with `what`, for an entry that fits none of the names in `held`.

    >>> renaming({"unet": "", "unet.mid": "middle"}, ["unet.mid.to_q"])("unet.mid.to_q")
    'middle.to_q'
    """
    for old in names:
        if old and not any(within(name, [old]) for name in held):
            modules = {name[:end] for name in held for end in (*_dots(name), len(name))}
            raise TargetError(
                f"{what}: {old!r} fits nothing in the adapter. Nearest names: {nearest_of(old, sorted(modules))}."
            )

    def new(name: str) -> str:
        fitting = [old for old in names if not old or within(name, [old])]
        if not fitting:
            return name
        old = max(fitting, key=len)
        rest = name[len(old) + 1 :] if old else name
        return ".".join(part for part in (names[old], rest) if part)

    return new
