"""One self-contained HTML page from sections: no network, light and dark, sortable tables, printable.

Whatever stands in it may come from a stranger's file. Jinja escapes every text, and a policy in the page lets no script run but
its own.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ...printing import printable
from .drawings import number
from .findings import Findings
from .tables import Cell, Table

_HERE = files(__package__)
_FEW = 3  # sections of one kind, to each of which there is a link
_NEXT_TO_IT = "The numbers are in tables/ and report.json next to this page, the figures in figures/."


@dataclass(frozen=True)
class Picture:
    """A drawing and what is written under it. legend: colours with what they stand for."""

    drawing: Markup
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures of one kind next to each other. title: above them; folded: shown when it is clicked."""

    title: str
    pictures: Sequence[Picture]
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """A text with its line breaks, such as a configuration."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page. lead: a paragraph that says what is shown."""

    title: str
    lead: str = ""
    galleries: Sequence[Gallery] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[Text] = ()


def rendered(title: str, findings: Sequence[Findings], sections: Sequence[Section], note: str = _NEXT_TO_IT) -> str:
    """The page. findings: its summary. note: a sentence on what is next to it."""
    script = _read("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": shown, "plain": _plain}
    return environment.from_string(_read("page.html")).render(
        title=title,
        findings=findings,
        sections=sections,
        links=_links([section.title for section in sections]),
        version=__version__,
        note=note,
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _links(titles: Sequence[str]) -> list[tuple[int, str]]:
    """The links to sections, by their places from 1: of several of one kind, such as "Run: a" and "Run: b", one to the first.

    >>> _links(["Spectra", "Run: a", "Run: b", "Run: c", "Run: d"])
    [(1, 'Spectra'), (2, 'Run (4)')]
    """
    kinds = [title.partition(": ")[0] for title in titles]
    links = []
    for at, (title, kind) in enumerate(zip(titles, kinds, strict=True), 1):
        count = kinds.count(kind)
        if count <= _FEW:
            links.append((at, title))
        elif kinds.index(kind) == at - 1:
            links.append((at, f"{kind} ({count})"))
    return links


def shown(value: Cell) -> str:
    """A cell of a table.

    >>> shown(0.12), shown(None), shown(18432), shown("query")
    ('0.120', '', '18,432', 'query')
    """
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return _plain(value)
    return number(value) if abs(value) >= 1000 or value == 0 else f"{value:#.3g}".rstrip(".")


def _plain(text: str) -> str:
    """The text without control characters, but for line breaks."""
    return "\n".join(map(printable, text.splitlines()))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
