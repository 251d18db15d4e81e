"""Inputs, each with all the texts that people wrote for it.

What a model is trained on is one row per text; what it is scored on is one output per input, against all of that input's texts.
Nothing here is cut, lower-cased or tokenised, and no special token is added.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...errors import DataError
from ..records import listed


@dataclass(frozen=True)
class Example:
    """One input.

    context: the input written as a line of text. references: its texts, at least one. category: the part of the data that it is
    scored in, such as "seen" or "unseen"; None where there are no parts.
    """

    context: str
    references: tuple[str, ...]
    category: str | None = None


@dataclass(frozen=True)
class GenerationData:
    """Inputs and their texts, in the order of the data; `source` names them in messages.

    >>> data = grouped("x", [("a : 1", "One."), ("b : 2", "Two."), ("a : 1", "It is one.")])
    >>> len(data), data.contexts, data.texts
    (2, ['a : 1', 'b : 2'], ['One.', 'It is one.', 'Two.'])
    """

    source: str
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def contexts(self) -> list[str]:
        """The inputs."""
        return [example.context for example in self.examples]

    @property
    def references(self) -> list[tuple[str, ...]]:
        """All texts of each input."""
        return [example.references for example in self.examples]

    @property
    def texts(self) -> list[str]:
        """All texts, those of an input one after the other."""
        return [text for example in self.examples for text in example.references]

    def pairs(self) -> list[tuple[str, str]]:
        """The rows to train on: each text with its input.

        >>> grouped("x", [("a : 1", "One."), ("a : 1", "It is one.")]).pairs()
        [('a : 1', 'One.'), ('a : 1', 'It is one.')]
        """
        return [(example.context, text) for example in self.examples for text in example.references]

    def rows(self, indices: Iterable[int]) -> "GenerationData":
        """The chosen inputs, in that order.

        >>> grouped("x", [("a", "One."), ("b", "Two.")]).rows([1]).contexts
        ['b']
        """
        return replace(self, examples=tuple(self.examples[i] for i in indices))

    def part(self, category: str) -> "GenerationData":
        """The inputs of a category. Raises `DataError` when there are none.

        >>> data = GenerationData("x", (Example("a", ("One.",), "seen"), Example("b", ("Two.",), "unseen")))
        >>> data.part("unseen").contexts
        ['b']
        """
        chosen = tuple(example for example in self.examples if example.category == category)
        if not chosen:
            present = sorted({example.category for example in self.examples if example.category is not None})
            raise DataError(f"{self.source} has no inputs of the category {category!r}; it has {listed(present)}.")
        return GenerationData(f"{self.source} ({category})", chosen)

    def merged(self) -> "GenerationData":
        """The data with equal inputs made one, which has the texts of all of them in order; it stands where the first stood.

        The scripts of the LoRA paper score so. Inputs of different categories stay apart.

        >>> GenerationData("x", (Example("a", ("One.",)), Example("b", ("Two.",)), Example("a", ("1.",)))).merged().examples[0]
        Example(context='a', references=('One.', '1.'), category=None)
        """
        found: dict[tuple[str, str | None], list[str]] = {}
        for example in self.examples:
            found.setdefault((example.context, example.category), []).extend(example.references)
        merged = (Example(context, tuple(texts), category) for (context, category), texts in found.items())
        return replace(self, examples=tuple(merged))

    def sample(self, n: int | None, seed: int) -> "GenerationData":
        """`n` inputs drawn without replacement (all, as they are, when `n` is None or not smaller)."""
        return self if n is None or n >= len(self) else self.rows(random.Random(seed).sample(range(len(self)), n))

    def split(self, fraction: float, seed: int) -> tuple["GenerationData", "GenerationData"]:
        """Two parts, the second with about `fraction` of the different inputs, drawn at random; no input is in both.

        Raises `DataError` when one would be empty.
        """
        inputs = list(dict.fromkeys(self.contexts))
        random.Random(seed).shuffle(inputs)
        n = round(fraction * len(inputs))
        if not 0 < n < len(inputs):
            effect, change = ("holds nothing out", "larger") if n <= 0 else ("leaves nothing to train on", "smaller")
            raise DataError(
                f"{self.source} ({len(inputs)} different inputs): --eval-fraction {fraction:g} {effect}; "
                f"give --eval-data or a {change} fraction."
            )
        held_out = set(inputs[:n])
        sides = [[i for i, context in enumerate(self.contexts) if (context in held_out) == side] for side in (False, True)]
        return self.rows(sides[0]), replace(self.rows(sides[1]), source=f"{self.source} (held out)")


def grouped(source: str, rows: Iterable[tuple[str, str]]) -> GenerationData:
    """Rows of (input, text) as inputs with all their texts, in the order in which each input first appears.

    Rows of an input need not be neighbours. Raises `DataError` when there are no rows.

    >>> grouped("x", [("a", "One."), ("b", "Two."), ("a", "1.")]).references
    [('One.', '1.'), ('Two.',)]
    """
    return collected(source, [Example(context, (text,)) for context, text in rows]).merged()


def collected(source: str, examples: Sequence[Example]) -> GenerationData:
    """The examples as data. Raises `DataError` when there are none.

    >>> len(collected("x", [Example("a", ("One.",))]))
    1
    """
    if not examples:
        raise DataError(f"{source} has no input with a text; give data with at least one.")
    return GenerationData(source, tuple(examples))
