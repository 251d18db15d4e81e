"""E2E NLG: restaurants described by attributes (Novikova et al. 2017, 1706.09254).

Two forms are read, and give the same inputs:

- `.txt`, as the LoRA paper has it, a row a line: `name : Blue Spice | Type : coffee shop | area : city centre||text`.
- `.csv`, as published: columns `mr` and `ref`, the first as `name[Blue Spice], eatType[coffee shop], area[city centre]`.

Texts stay as they are, but for space at their ends, and so differ between the two: in `.txt` they are tokenised, with spaces
around punctuation (`At the riverside , there is a pub .`), in `.csv` they are as people wrote them. Without their spaces they
are equal. A model should be trained on and scored with one form.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from ...errors import DataError
from ..records import delimited_records, opened
from .documents import ending, of_kind
from .examples import GenerationData, grouped

# The attributes as published, in their order there, by the names that the LoRA paper's files give them.
ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        "name": "name",
        "eatType": "Type",
        "food": "food",
        "priceRange": "price",
        "customer rating": "customer rating",
        "area": "area",
        "familyFriendly": "family friendly",
        "near": "near",
    }
)

KINDS = ".txt or .csv file (or .gz of one)"

_ATTRIBUTE = re.compile(r"([^\[\],]+)\[([^\[\]]*)\](?:, *(?!$)|$)")


def read_e2e(path: str | Path) -> GenerationData:
    """The inputs of a file with all their texts, in order of first appearance; rows of equal inputs need not be neighbours.

    Raises `DataError` when it does not exist, is neither `.txt` nor `.csv` (nor `.gz` of one), or has a row of another form.
    """
    path = Path(path)
    kind = ending(path, ("txt", "csv"), KINDS)
    with opened(path, KINDS) as file:
        return grouped(str(path), _bar_rows(path, file) if kind == "txt" else _csv_rows(path, file))


def from_columns(source: str, meanings: Iterable[object], texts: Iterable[object]) -> GenerationData:
    """The published form as columns, which the hub has. Raises `DataError` for a row that is not as above.

    >>> from_columns("x", ["name[Aromi], priceRange[£20-25]"], ["Aromi costs £20-25."]).contexts
    ['name : Aromi | price : £ 20 - 25']
    """
    rows = enumerate(zip(meanings, texts, strict=True), 1)
    return grouped(source, (_row(f"{source}, row {i}", meaning, text) for i, (meaning, text) in rows))


def linearised(meaning: str) -> str:
    """A meaning representation as published, in the form of the LoRA paper's files.

    Attributes keep their order and take their names there; prices are tokenised as there, other values are equal. Raises
    `DataError` when it is not as published or has another attribute.

    >>> linearised("name[The Mill], eatType[pub], priceRange[less than £20], familyFriendly[yes]")
    'name : The Mill | Type : pub | price : less than £ 20 | family friendly : yes'
    """
    found = list(_ATTRIBUTE.finditer(meaning))
    if not found or "".join(match[0] for match in found) != meaning:
        raise DataError(f"{meaning!r:.100} is no meaning representation; write name[…], eatType[…] and so on.")
    return " | ".join(f"{_named(match[1])} : {_valued(match[1], match[2])}" for match in found)


def _named(attribute: str) -> str:
    if attribute not in ATTRIBUTES:
        raise DataError(f"{attribute!r:.60} is no attribute of E2E; it has {', '.join(ATTRIBUTES)}.")
    return ATTRIBUTES[attribute]


def _valued(attribute: str, value: str) -> str:
    return re.sub(r" *([£-]) *", r" \1 ", value).strip() if attribute == "priceRange" else value


def _bar_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        context, bars, text = line.partition("||")
        if not bars:
            raise DataError(f"{path}, line {number} has no two vertical bars; write input||text, one text a line.")
        yield _whole(f"{path}, line {number}", context, text)


def _csv_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    for where, row in delimited_records(path, file, (), raw=False):
        for column in ("mr", "ref"):
            if column not in row:
                raise DataError(f"{where} has no column {column!r}; expected mr and ref, as in the published files.")
        yield _row(where, row["mr"], row["ref"])


def _row(where: str, meaning: object, text: object) -> tuple[str, str]:
    try:
        context = linearised(of_kind("its meaning representation", meaning, str).strip())
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return _whole(where, context, of_kind(f"{where}: its text", text, str))


def _whole(where: str, context: str, text: str) -> tuple[str, str]:
    context, text = context.strip(), text.strip()
    if not context or not text:
        raise DataError(f"{where} has no {'text' if context else 'input'}; give it one, or remove the row.")
    return context, text
