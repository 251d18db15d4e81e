"""WebNLG 2017 and DART 1.1.1: inputs that are sets of triples (subject, property, object), as JSON, as XML and on the hub.

The `format_converting_*.py` of the LoRA paper fix how an input reads, and so it does here: `subject : property : object`,
triples joined by ` | `, names as they are written, underscores, quotes and spaces at their ends included.

- WebNLG (Gardent et al. 2017): the *modified* triples, and only texts that the data remark on as "good"; entries that have none
  are left out. An input is "seen" when its category is one of the training data's ten, else "unseen".
- DART (Nan et al. 2021, 2007.02871): properties in lower case; texts whatever their source, but for empty ones: the test set
  has one, for which the scripts made an empty row. Inputs have no categories.

Equal inputs stay apart, as in the published references; `examples.grouped` makes them one. The XML of both is

    <benchmark><entries><entry category="…">
        <modifiedtripleset><mtriple>subject | property | object</mtriple>…</modifiedtripleset>
        <lex comment="…">text</lex>…
    </entry>…</entries></benchmark>

Every reader raises `DataError` for a file that cannot be read, and for an entry that lacks a part.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import DataError
from ..records import ending, numbered, source
from .documents import KINDS, SUFFIXES, checked, read_json, read_xml
from .examples import Example, collected, example

if TYPE_CHECKING:
    from datasets import Dataset

SEEN_CATEGORIES = {
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
WEBNLG_ENTRY = {
    "category": str,
    "modifiedtripleset": [{"subject": str, "property": str, "object": str}],
    "lexicalisations": [{"comment": str, "lex": str}],
}
WEBNLG_ROW = {"category": str, "modified_triple_sets": [{"mtriple_set": [str]}], "lex": [{"comment": str, "text": str}]}
DART_ENTRY = {"tripleset": [[str]], "annotations": [{"source": str, "text": str}]}


class Entry(NamedTuple):
    """One set of triples with its texts, each after what the data remark on it; `where` is its place, for messages."""

    where: str
    category: str | None
    triples: Sequence[Sequence[str]]
    texts: Sequence[Sequence[str]]


def read_webnlg(path: str | Path, *, only_good: bool = True) -> "Dataset":
    """The entries of a `.json` or `.xml` file (or `.gz` of one), or of all `.xml` files below a folder in order of their paths.

    only_good: whether to leave out texts that the data do not call good.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.lower().removesuffix(".gz").endswith(".xml"))
    if not files:
        raise DataError(f"{path} has no .xml file in it; give the folder of the challenge's files, or a .json or .xml file.")
    return _webnlg(str(path), (entry for file in files for entry in _entries(file, _webnlg_entries)), only_good)


def read_dart(path: str | Path) -> "Dataset":
    """The triplesets of a `.json` or `.xml` file (or `.gz` of one), in order."""
    return _dart(str(path), _entries(Path(path), _dart_entries))


def webnlg_from_table(table: "Dataset") -> "Dataset":
    """The entries of a table of the hub, whose test split holds the whole test set twice over, without texts and with them,
    and its unseen part once more; the whole set with texts is taken, by the column `test_category`."""
    return _webnlg(source(table), _table_entries(table))


def dart_from_table(table: "Dataset") -> "Dataset":
    """The triplesets of a table of the hub."""
    return _dart(source(table), _dart_entries(source(table), table.to_list(), "row"))


def _webnlg(source: str, entries: Iterable[Entry], only_good: bool = True) -> "Dataset":
    def kept(entry: Entry) -> Example:
        if entry.category is None:
            raise DataError(f"{entry.where} has no attribute 'category', which says whether it is seen; give it one.")
        texts = [text for remark, text in entry.texts if remark == "good" or not only_good]
        return _example(entry, texts, "seen" if entry.category in SEEN_CATEGORIES else "unseen")

    return collected(source, (row for row in map(kept, entries) if row["references"]))


def _dart(source: str, entries: Iterable[Entry]) -> "Dataset":
    def lower_cased(entry: Entry) -> Example:
        triples = [[part.lower() if i == 1 else part for i, part in enumerate(triple)] for triple in entry.triples]
        return _example(entry._replace(triples=triples), [text for _, text in entry.texts])

    return collected(source, (row for row in map(lower_cased, entries) if row["references"]))


def _example(entry: Entry, texts: Iterable[str], category: str | None = None) -> Example:
    if not entry.triples:
        raise DataError(f"{entry.where} has no triples; give it at least one.")
    for written in (" | ".join(triple) for triple in entry.triples if len(triple) != 3):
        raise DataError(f"{entry.where}: {written!r:.80} is not a triple; write it as subject | property | object.")
    return example(" | ".join(map(" : ".join, entry.triples)), filter(str.strip, texts), category)


def _entries(path: Path, of_json: Callable[[str, Any], Iterable[Entry]]) -> Iterable[Entry]:
    xml = ending(path, SUFFIXES, KINDS) == ".xml"
    return _xml_entries(path) if xml else of_json(str(path), read_json(path))


def _xml_entries(path: Path) -> Iterator[Entry]:
    root = read_xml(path)
    entries = root.find("entries")
    if root.tag != "benchmark" or entries is None:
        raise DataError(f"{path} begins with <{root.tag:.40}>; expected <benchmark> with <entries>, as WebNLG has it.")
    for where, element in numbered(f"{path}, entry", entries.findall("entry")):
        sets = element.findall("modifiedtripleset")
        if len(sets) != 1:
            raise DataError(f"{where} has {len(sets)} elements <modifiedtripleset>, expected one.")
        triples = [(triple.text or "").split(" | ") for triple in sets[0].findall("mtriple")]
        texts = [(lex.get("comment", ""), lex.text or "") for lex in element.findall("lex")]
        yield Entry(where, element.get("category"), triples, texts)


def _webnlg_entries(source: str, document: Any) -> Iterator[Entry]:
    for where, item in numbered(f"{source}, entry", checked(source, document, {"entries": list})["entries"]):
        fields = checked(where, item, dict)
        if len(fields) != 1:
            raise DataError(f"{where} has {len(fields)} fields, expected one: its number, with the entry as its value.")
        category, triples, texts = checked(where, next(iter(fields.values())), WEBNLG_ENTRY).values()
        yield Entry(where, category, [[*triple.values()] for triple in triples], [[*text.values()] for text in texts])


def _table_entries(table: "Dataset") -> Iterator[Entry]:
    for where, item in numbered(f"{source(table)}, row", table.to_list()):
        if item.get("test_category") not in (None, "", "testdata_with_lex"):
            continue
        category, sets, texts = checked(where, item, WEBNLG_ROW).values()
        if len(sets) != 1:
            raise DataError(f"{where} has {len(sets)} modified_triple_sets, expected one.")
        triples = [triple.split(" | ") for triple in sets[0]["mtriple_set"]]
        yield Entry(where, category, triples, [[*text.values()] for text in texts])


def _dart_entries(source: str, items: Any, what: str = "entry") -> Iterator[Entry]:
    for where, item in numbered(f"{source}, {what}", checked(source, items, list)):
        triples, texts = checked(where, item, DART_ENTRY).values()
        yield Entry(where, None, triples, [[*text.values()] for text in texts])
