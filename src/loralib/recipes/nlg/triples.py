"""Sets of triples (subject, property, object), as WebNLG and DART describe an input, and the XML that both come in:

    <benchmark><entries><entry category="…">
        <modifiedtripleset><mtriple>subject | property | object</mtriple>…</modifiedtripleset>
        <lex comment="…">text</lex>…
    </entry>…</entries></benchmark>

Names stay as they are written: underscores, quotes and spaces at their ends included.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from ...errors import DataError
from .documents import read_xml
from .examples import Example

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Entry:
    """One set of triples with its texts, of whatever file.

    where: its place, for messages. texts: pairs of what the data remark on a text and the text itself.
    """

    where: str
    category: str | None
    triples: tuple[Triple, ...]
    texts: tuple[tuple[str, str], ...]


def linearised(triples: Iterable[Triple]) -> str:
    """Triples as one line, as the scripts of the LoRA paper write them.

    >>> linearised([("Aarhus", "leaderName", "Jacob_Bundsgaard"), ("Aarhus", "country", '"Denmark"')])
    'Aarhus : leaderName : Jacob_Bundsgaard | Aarhus : country : "Denmark"'
    """
    return " | ".join(" : ".join(triple) for triple in triples)


def examples(
    entries: Iterable[Entry],
    keep: Callable[[str], bool] = lambda remark: True,
    category: Callable[[Entry], str | None] = lambda entry: None,
) -> list[Example]:
    """Each entry with those of its texts whose remark is to be kept; empty texts and entries without a text are passed over."""
    found = []
    for entry in entries:
        texts = tuple(text for remark, text in entry.texts if text.strip() and keep(remark))
        if texts:
            found.append(Example(linearised(entry.triples), texts, category(entry)))
    return found


def parsed_triple(where: str, text: str) -> Triple:
    """The parts of `subject | property | object`. Raises `DataError` when there are not three.

    >>> parsed_triple("a.xml, entry 1", "Aarhus | country | Denmark")
    ('Aarhus', 'country', 'Denmark')
    """
    parts = text.split(" | ")
    if len(parts) != 3:
        raise DataError(f"{where}: {text!r:.80} is no triple; write it as subject | property | object.")
    return parts[0], parts[1], parts[2]


def checked(entry: Entry) -> Entry:
    """The entry. Raises `DataError` when it has no triples."""
    if not entry.triples:
        raise DataError(f"{entry.where} has no triples; give it at least one.")
    return entry


def xml_entries(path: Path) -> Iterator[Entry]:
    """The entries of a benchmark in XML. Raises `DataError` for one that has not the parts shown above."""
    root = read_xml(path)
    entries = root.find("entries")
    if root.tag != "benchmark" or entries is None:
        raise DataError(f"{path} begins with <{root.tag:.40}>; expected <benchmark> with <entries>, as WebNLG has it.")
    for number, element in enumerate(entries.findall("entry"), 1):
        yield _xml_entry(f"{path}, entry {number}", element)


def _xml_entry(where: str, element: Element) -> Entry:
    sets = element.findall("modifiedtripleset")
    if len(sets) != 1:
        raise DataError(f"{where} has {len(sets)} elements <modifiedtripleset>, expected one.")
    triples = tuple(parsed_triple(where, triple.text or "") for triple in sets[0].findall("mtriple"))
    texts = tuple((lex.get("comment", ""), lex.text or "") for lex in element.findall("lex"))
    return checked(Entry(where, element.get("category"), triples, texts))
