"""E2E NLG: restaurants described by attributes (Novikova et al. 2017, 1706.09254).

Two forms are read, and give the same inputs:

- `.txt`, as the LoRA paper has it, a row a line: `name : Blue Spice | Type : coffee shop | area : city centre||text`.
- `.csv`, as published: columns `mr` and `ref`, the first as `name[Blue Spice], eatType[coffee shop], area[city centre]`.

Texts stay as they are, but for space at their ends, and so differ between the two: in `.txt` they are tokenised, with spaces
around punctuation (`At the riverside , there is a pub .`), in `.csv` they are as people wrote them. Without their spaces they
are equal. A model should be trained on and scored with one form. Rows of equal inputs need not be neighbours.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError
from ..records import Record, ending, numbered, numbered_lines, read_records, read_text, source
from .documents import checked
from .examples import Example, collected, example, grouped

if TYPE_CHECKING:
    from datasets import Dataset

# The attributes as published, in their order there, by the names that the LoRA paper's files give them.
_PUBLISHED = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
_RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
ATTRIBUTES = {name: _RENAMED.get(name, name) for name in _PUBLISHED}
KINDS = ".txt or .csv file (or .gz of one)"

_ATTRIBUTE = re.compile(r"([^\[\],]+)\[([^\[\]]*)\](?:, *(?!$)|$)")


def read_e2e(path: str | Path) -> "Dataset":
    """The inputs of a file with all their texts. Raises `DataError` when it does not exist or has a row of another form."""
    path = Path(path)
    if ending(path, (".txt", ".csv"), KINDS) == ".txt":
        rows = (_whole(*row) for row in bar_rows(path, KINDS))
    else:
        rows = (_row(where, row["mr"], row["ref"]) for where, row in published_rows(path, KINDS))
    return collected(str(path), grouped(rows))


def from_table(table: "Dataset") -> "Dataset":
    """The published form as a table of the hub. Raises `DataError` for a row of another form."""
    shape = {"meaning_representation": str, "human_reference": str}
    places = numbered(f"{source(table)}, row", table.to_list())
    rows = (_row(where, *checked(where, row, shape).values()) for where, row in places)
    return collected(source(table), grouped(rows))


def bar_rows(path: Path, kinds: str) -> Iterator[tuple[str, str, str]]:
    """The place, the input and the text of each line `input||text`. Raises `DataError` for a line of another form."""
    for where, line in numbered_lines(path, read_text(path, kinds)):
        context, bars, text = line.partition("||")
        if not bars:
            raise DataError(f"{where} has no two vertical bars; write input||text, one text a line.")
        yield where, context.strip(), text.strip()


def published_rows(path: Path, kinds: str) -> list[Record]:
    """The rows of a `.csv` file as published."""
    return read_records(path, ("mr", "ref"), kinds=kinds, remedy="Expected mr and ref, as in the published files.")


def linearised(meaning: str) -> str:
    """A meaning representation as published in the form of the LoRA paper's files, where prices are tokenised.

    Raises `DataError` when it is not as published or has another attribute.

    >>> linearised("name[The Mill], eatType[pub], priceRange[less than £20], familyFriendly[yes]")
    'name : The Mill | Type : pub | price : less than £ 20 | family friendly : yes'
    """
    found = list(_ATTRIBUTE.finditer(meaning))
    if not found or "".join(match[0] for match in found) != meaning:
        raise DataError(f"{meaning!r:.100} is not a meaning representation; write name[…], eatType[…] and so on.")
    return " | ".join(_named(match[1], match[2]) for match in found)


def _named(attribute: str, value: str) -> str:
    if attribute not in ATTRIBUTES:
        raise DataError(f"{attribute!r:.60} is not an attribute of E2E; it has {', '.join(ATTRIBUTES)}.")
    value = re.sub(r" *([£-]) *", r" \1 ", value).strip() if attribute == "priceRange" else value
    return f"{ATTRIBUTES[attribute]} : {value}"


def _row(where: str, meaning: str, text: str) -> Example:
    try:
        context = linearised(meaning.strip())
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return _whole(where, context, text.strip())


def _whole(where: str, context: str, text: str) -> Example:
    if not context or not text:
        raise DataError(f"{where} has no {'text' if context else 'input'}; give it one, or remove the row.")
    return example(context, [text])
