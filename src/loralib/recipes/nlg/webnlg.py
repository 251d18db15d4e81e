"""WebNLG 2017: facts of DBpedia as triples (Gardent et al. 2017), in the challenge's XML and in the LoRA paper's JSON.

The paper's `format_converting_webnlg.py` fixes how an input reads, and so it does here: `subject : property : object`, triples
joined by ` | `, everything as the data have it (underscores and quotes included, nothing lower-cased). It takes the *modified*
triples, keeps only texts that the data remark on as "good", and so leaves out entries that have none. An input is "seen" when
its category is one of the training data's ten, else "unseen".
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError
from ..records import ending, source
from .documents import KINDS, SUFFIXES, checked, read_json
from .examples import collected
from .triples import Entry, examples, xml_entries

if TYPE_CHECKING:
    from datasets import Dataset

SEEN_CATEGORIES = frozenset(
    [
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
    ]
)
ENTRY = {
    "category": str,
    "modifiedtripleset": [{"subject": str, "property": str, "object": str}],
    "lexicalisations": [{"comment": str, "lex": str}],
}
ROW = {"category": str, "modified_triple_sets": [{"mtriple_set": [str]}], "lex": [{"comment": str, "text": str}]}


def read_webnlg(path: str | Path, *, only_good: bool = True) -> "Dataset":
    """The entries of a `.json` or `.xml` file (or `.gz` of one), or of all `.xml` files below a folder in order of their paths.

    only_good: whether to leave out texts that the data do not call good, as the paper does. Equal inputs of several entries
    stay apart; `examples.grouped` makes them one. Raises `DataError` when the file does not exist, is not JSON or XML, or has an
    entry that lacks a part.
    """
    path = Path(path)
    return _data(str(path), _folder(path) if path.is_dir() else _entries(path), only_good)


def from_table(table: "Dataset") -> "Dataset":
    """The entries of a table of the hub, with columns `modified_triple_sets`, `lex` and `category`.

    The hub's test split holds the whole test set twice over, without texts and with them, and its unseen part once more; the
    whole set with texts is taken, by the column `test_category`. Raises `DataError` for a row that lacks a part.
    """
    return _data(source(table), _table_entries(table))


def _data(source: str, entries: Iterable[Entry], only_good: bool = True) -> "Dataset":
    return collected(source, examples(entries, lambda remark: remark == "good" or not only_good, _part))


def _part(category: str | None) -> str:
    return "seen" if category in SEEN_CATEGORIES else "unseen"


def _folder(path: Path) -> Iterator[Entry]:
    files = sorted(file for file in path.rglob("*") if file.name.lower().removesuffix(".gz").endswith(".xml"))
    if not files:
        raise DataError(f"{path} has no .xml file in it; give the folder of the challenge's files, or a .json or .xml file.")
    for file in files:
        yield from _entries(file)


def _entries(path: Path) -> Iterator[Entry]:
    if ending(path, SUFFIXES, KINDS) == ".json":
        yield from _json_entries(path)
        return
    for entry in xml_entries(path):
        if entry.category is None:
            raise DataError(f"{entry.where} has no attribute 'category', which says whether it is seen; give it one.")
        yield entry


def _json_entries(path: Path) -> Iterator[Entry]:
    for number, item in enumerate(checked(str(path), read_json(path), {"entries": list})["entries"], 1):
        where = f"{path}, entry {number}"
        numbered = checked(where, item, dict)
        if len(numbered) != 1:
            raise DataError(f"{where} has {len(numbered)} fields, expected one: its number, with the entry as its value.")
        entry = checked(where, next(iter(numbered.values())), ENTRY)
        triples = [tuple(triple.values()) for triple in entry["modifiedtripleset"]]
        yield Entry(where, entry["category"], triples, [(text["comment"], text["lex"]) for text in entry["lexicalisations"]])


def _table_entries(table: "Dataset") -> Iterator[Entry]:
    for number, item in enumerate(table, 1):
        if item.get("test_category") not in (None, "", "testdata_with_lex"):
            continue
        where = f"{source(table)}, row {number}"
        row = checked(where, item, ROW)
        sets = row["modified_triple_sets"]
        if len(sets) != 1:
            raise DataError(f"{where} has {len(sets)} modified_triple_sets, expected one.")
        triples = [triple.split(" | ") for triple in sets[0]["mtriple_set"]]
        yield Entry(where, row["category"], triples, [(text["comment"], text["text"]) for text in row["lex"]])
