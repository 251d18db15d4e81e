"""The page: valid, one file, nothing from the network, and nothing that a stranger's names could run."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
from markupsafe import Markup

from loralib.recipes.learned import page
from loralib.recipes.learned.findings import Findings
from loralib.recipes.learned.page import Gallery, Picture, Section, Text, rendered, shown
from loralib.recipes.learned.tables import Table
from pages import Page

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>\x1b[31m{{ 7*7 }}</title></style>"


def a_page(word: str = "query") -> str:
    picture = Picture(Markup('<svg viewBox="0 0 1 1" role="img" aria-label="a dot"></svg>'), word, [("#0072B2", word)])
    table = Table("t", word, [word, "n"], [[word, 1.5], [None, 2], [word, None]])
    section = Section(
        word, word, [Gallery(word, [picture]), Gallery(word, [picture], folded=True)], [table], [Text(word, word)]
    )
    return rendered(word, [Findings(word, [word]), Findings(word, [word], folded=True)], [section, Section("empty")])


@pytest.mark.parametrize("word", ["query", EVIL])
def test_the_page_is_valid_and_loads_nothing(word: str) -> None:
    page = Page(a_page(word))
    assert page.problems == []
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]


def test_texts_are_shown_as_they_are() -> None:
    page = Page(a_page(EVIL))
    assert page.tags.count("img") == 0
    assert page.text.count("{{ 7*7 }}") >= 8
    assert "\x1b" not in page.text
    assert "\\x1b[31m" in page.text


def test_only_the_pages_own_script_may_run() -> None:
    text = a_page()
    [script] = Page(text).scripts
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("<p>", "not closed"),
        ("<p></div>", "closes something else"),
        ('<p id="a"></p><p id="a"></p>', "there twice"),
        ('<a href="#b"></a>', "leads nowhere"),
        ("<svg></svg>", "no text alternative"),
        ('<img alt="x" src="https://a.example/b.png">', "loads something"),
        ("<style>p { background: url(x) }</style>", "loads url("),
        ('<p onclick="x()"></p>', "runs or loads"),
    ],
)
def test_the_check_of_a_page_can_fail(wrong: str, problem: str) -> None:
    assert problem in "\n".join(Page(wrong).problems)


def test_numbers_have_a_value_to_sort_by_and_empty_cells_have_none() -> None:
    text = a_page()
    assert '<td data-value="1.5">1.50</td>' in text
    assert "<td></td>" in text
    assert (shown(None), shown(0.0), shown(3), shown("a\x00b")) == ("", "0", "3", "a\\x00b")


def test_themes_print_and_narrow_screens_have_their_rules() -> None:
    text = a_page()
    for rule in ("prefers-color-scheme: dark", ':root[data-theme="dark"]', "@media print", "width=device-width", "aria-sort"):
        assert rule in text
    assert len(Page(text).scripts[0].splitlines()) <= 50


def test_the_example_in_the_docs_is_a_page_of_today() -> None:
    """It was written by `loralib analyze r8 r64 --base minilm`; write it again after a change of the page."""
    text = (Path(__file__).parents[3] / "docs" / "reproduction" / "learned-example.html").read_text(encoding="utf-8")
    [script] = Page(text).scripts
    assert [text.partition("<style>")[2].partition("</style>")[0], script] == [page._read("page.css"), page._read("page.js")]
