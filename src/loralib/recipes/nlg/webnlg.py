"""WebNLG 2017: facts of DBpedia as triples (Gardent et al. 2017), in the challenge's XML and in the LoRA paper's JSON.

The paper's `format_converting_webnlg.py` fixes how an input reads, and so it does here: `subject : property : object`, triples
joined by ` | `, everything as the data have it (underscores and quotes included, nothing lower-cased). It takes the *modified*
triples, keeps only texts that the data remark on as "good", and so leaves out entries that have none. An input is "seen" when
its category is one of the training data's ten, else "unseen".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError
from .documents import KINDS, ending, field, of_kind, read_json, records
from .examples import GenerationData, collected
from .triples import Entry, checked, examples, parsed_triple, xml_entries

SEEN_CATEGORIES = frozenset(
    {
        "Airport",
        "Astronaut",
        "Building",
        "City",
        "ComicsCharacter",
        "Food",
        "Monument",
        "SportsTeam",
        "University",
        "WrittenWork",
    }
)


def read_webnlg(path: str | Path, *, only_good: bool = True) -> GenerationData:
    """The entries of a `.json` or `.xml` file (or `.gz` of one), or of all `.xml` files below a folder in order of their paths.

    only_good: whether to leave out texts that the data do not call good, as the paper does. Equal inputs of several entries
    stay apart; `GenerationData.merged` makes them one. Raises `DataError` when the file does not exist, is not JSON or XML, or
    has an entry that lacks a part.
    """
    path = Path(path)
    return _data(str(path), _folder(path) if path.is_dir() else _entries(path), only_good)


def from_table(source: str, table: Any, *, only_good: bool = True) -> GenerationData:
    """The entries of a table of the hub, with columns `modified_triple_sets`, `lex` and `category`.

    The hub's test split holds the whole test set twice over, without texts and with them, and its unseen part once more; the
    whole set with texts is taken, by the column `test_category`. Raises `DataError` for a row that lacks a part.
    """
    return _data(source, _table_entries(source, table), only_good)


def _data(source: str, entries: Iterator[Entry], only_good: bool) -> GenerationData:
    return collected(source, examples(entries, lambda remark: remark == "good" or not only_good, _part))


def _part(entry: Entry) -> str:
    return "seen" if entry.category in SEEN_CATEGORIES else "unseen"


def _folder(path: Path) -> Iterator[Entry]:
    files = sorted(file for file in path.rglob("*") if file.name.lower().removesuffix(".gz").endswith(".xml"))
    if not files:
        raise DataError(f"{path} has no .xml file in it; give the folder of the challenge's files, or a .json or .xml file.")
    for file in files:
        yield from _entries(file)


def _entries(path: Path) -> Iterator[Entry]:
    return _categorised(xml_entries(path)) if ending(path, ("json", "xml"), KINDS) == "xml" else _json_entries(path)


def _categorised(entries: Iterator[Entry]) -> Iterator[Entry]:
    for entry in entries:
        if entry.category is None:
            raise DataError(f"{entry.where} has no attribute 'category', which says whether it is seen; give it one.")
        yield entry


def _json_entries(path: Path) -> Iterator[Entry]:
    for number, item in enumerate(field(str(path), read_json(path), "entries", list), 1):
        where = f"{path}, entry {number}"
        numbered = of_kind(where, item, dict)
        if len(numbered) != 1:
            raise DataError(f"{where} has {len(numbered)} fields, expected one: its number, with the entry as its value.")
        yield _json_entry(where, next(iter(numbered.values())))


def _json_entry(where: str, entry: object) -> Entry:
    triples = []
    for triple in field(where, entry, "modifiedtripleset", list):
        parts = [field(f"{where}, modifiedtripleset", triple, part, str) for part in ("subject", "property", "object")]
        triples.append((parts[0], parts[1], parts[2]))
    texts = [
        (field(f"{where}, lexicalisations", text, "comment", str), field(f"{where}, lexicalisations", text, "lex", str))
        for text in field(where, entry, "lexicalisations", list)
    ]
    return checked(Entry(where, field(where, entry, "category", str), tuple(triples), tuple(texts)))


def _table_entries(source: str, table: Any) -> Iterator[Entry]:
    for number, row in enumerate(table, 1):
        if row.get("test_category") not in (None, "", "testdata_with_lex"):
            continue
        where = f"{source}, row {number}"
        sets = records(f"{where}: 'modified_triple_sets'", field(where, row, "modified_triple_sets", object))
        if len(sets) != 1:
            raise DataError(f"{where} has {len(sets)} modified_triple_sets, expected one.")
        written = field(where, sets[0], "mtriple_set", list)
        triples = tuple(parsed_triple(where, of_kind(where, triple, str)) for triple in written)
        lex = records(f"{where}: 'lex'", field(where, row, "lex", object))
        texts = tuple((field(where, text, "comment", str), field(where, text, "text", str)) for text in lex)
        yield checked(Entry(where, field(where, row, "category", str), triples, texts))
