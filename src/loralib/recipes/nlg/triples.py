"""Sets of triples (subject, property, object), as WebNLG and DART describe an input, and the XML that both come in:

    <benchmark><entries><entry category="…">
        <modifiedtripleset><mtriple>subject | property | object</mtriple>…</modifiedtripleset>
        <lex comment="…">text</lex>…
    </entry>…</entries></benchmark>

Names stay as they are written: underscores, quotes and spaces at their ends included.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from ...errors import DataError
from .documents import read_xml
from .examples import Example, example


class Entry(NamedTuple):
    """One set of triples with its texts, of whatever file; `where` is its place, for messages.

    texts: pairs of what the data remark on a text and the text itself.
    """

    where: str
    category: str | None
    triples: Sequence[Sequence[str]]
    texts: Sequence[tuple[str, str]]


def examples(
    entries: Iterable[Entry],
    keep: Callable[[str], bool] = lambda remark: True,
    category: Callable[[str | None], str | None] = lambda category: None,
) -> Iterator[Example]:
    """Each entry with those of its texts whose remark is to be kept; empty texts and entries without a text are passed over.

    Raises `DataError` for an entry without triples, or with one that has not three parts.
    """
    for entry in entries:
        context = _linearised(entry)
        texts = [text for remark, text in entry.texts if text.strip() and keep(remark)]
        if texts:
            yield example(context, texts, category(entry.category))


def _linearised(entry: Entry) -> str:
    """The triples as one line, as the scripts of the LoRA paper write them."""
    if not entry.triples:
        raise DataError(f"{entry.where} has no triples; give it at least one.")
    for triple in entry.triples:
        if len(triple) != 3:
            written = " | ".join(triple)
            raise DataError(f"{entry.where}: {written!r:.80} is no triple; write it as subject | property | object.")
    return " | ".join(" : ".join(triple) for triple in entry.triples)


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
    triples = [(triple.text or "").split(" | ") for triple in sets[0].findall("mtriple")]
    texts = [(lex.get("comment", ""), lex.text or "") for lex in element.findall("lex")]
    return Entry(where, element.get("category"), triples, texts)
