"""Which references belong to which predictions: by their inputs, where both sides name them.

Inputs are the same when their attributes are, in any order: `name[Aromi], eatType[pub]` of E2E's own files is
`Type : pub | name : Aromi` of the LoRA paper's. Other texts are compared without regard to case and spaces.
"""

import re
from collections.abc import Mapping, Sequence

from ....errors import DataError

_IN_BRACKETS = re.compile(r"([^\[\],]+)\[([^\]]*)\]")
_BEHIND_COLON = re.compile(r"([^:|]+):([^|]*)")
_NAMES = {"eattype": "type", "pricerange": "price"}  # of E2E, in the paper's files

Input = tuple[str, ...]


def normal(context: str) -> Input:
    """An input in a form that does not depend on who wrote it.

    >>> normal("name[The Mill], eatType[pub]") == normal("Type : pub | name : The Mill")
    True
    """
    pairs = _IN_BRACKETS.findall(context) or (_BEHIND_COLON.findall(context) if context.count(":") > context.count("|") else [])
    if not pairs:
        return (_plain(context),)
    named = [(_plain(name), _plain(value)) for name, value in pairs]
    return tuple(sorted(f"{_NAMES.get(name, name)}: {value}" for name, value in named))


def _plain(text: str) -> str:
    return "".join(text.casefold().split())


def looks_like_input(text: str) -> bool:
    """Whether a text is a meaning representation, as E2E's own files have it.

    >>> looks_like_input("name[Aromi], area[riverside]"), looks_like_input("MR")
    (True, False)
    """
    return _IN_BRACKETS.match(text) is not None


def in_order_of(asked: Sequence[str | None], known: Sequence[str | None], of: Mapping[str, str]) -> list[int]:
    """Which of the `known` inputs each of those `asked` is, by their numbers.

    of: what the two sides are called in messages, `asked` and `known`. Raises `DataError` when they are not the same inputs.
    """
    mine, its = ([normal(context or "") for context in side] for side in (asked, known))
    if mine == its:
        return list(range(len(its)))
    by_input = {context: i for i, context in enumerate(its)}
    if len(by_input) == len(its) and sorted(mine) == sorted(its):
        return [by_input[context] for context in mine]
    row = next(i for i, pair in enumerate(zip(mine, its, strict=True)) if len({*pair}) > 1)
    raise DataError(
        f"{of['asked']}, row {row + 1}, answers {asked[row]!r:.80}, but the references are those of {known[row]!r:.80} "
        f"({of['known']}); give the predictions of these inputs, or pair them by their order (--by-order)."
    )
