"""The site builds strictly, loads nothing from the network, and leads everywhere it links to."""

import posixpath
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import loralib as lora
from loralib import star_0_1
from peers import library

ROOT = Path(__file__).parents[2]
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "video": "src"}
SOURCES = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page of the site loads, links to and can be linked at."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.images_without_text: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values.get("id", ""), values.get("name", "")}
        self.classes |= set(values.get("class", "").split())
        if tag in LOADED and LOADED[tag] in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values[LOADED[tag]])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img" and not values.get("alt") and values.get("role") != "presentation":
            self.images_without_text.append(values.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> Mapping[str, Page]:
    """All pages by their path in the site."""
    return {page.relative_to(site).as_posix(): Page(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}


def test_no_page_loads_anything_from_the_network(site: Path, pages: Mapping[str, Page]) -> None:
    loaded = {(name, url) for name, page in pages.items() for url in page.loads if urlsplit(url).netloc}
    styled = {(css.name, url) for css in site.rglob("*.css") for url in SOURCES.findall(css.read_text(encoding="utf-8"))}
    assert not loaded | styled
    assert not any("mermaid" in page.classes for page in pages.values())  # the theme fetches its script where one is used


def test_the_check_of_what_is_loaded_can_fail() -> None:
    page = Page(
        '<link rel="stylesheet" href="https://fonts.example/a.css"><script src="//cdn.example/a.js"></script><img src="a.png">'
    )
    assert [url for url in page.loads if urlsplit(url).netloc] == ["https://fonts.example/a.css", "//cdn.example/a.js"]
    assert page.images_without_text == ["a.png"]
    assert SOURCES.findall("@import '//cdn.example/a.css'; b { background: url(https://x.example/y.png) }") == [
        "//cdn.example/a.css",
        "https://x.example/y.png",
    ]


def test_links_lead_to_pages_and_places_that_are_there(site: Path, pages: Mapping[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc or name == "404.html":
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(target.path))) if target.path else name
            path = path if (site / path).is_file() else posixpath.normpath(posixpath.join(path, "index.html"))
            known = pages[path].anchors if path in pages else {""}
            if not (site / path).is_file() or unquote(target.fragment) not in known:
                broken.append(f"{name}: {link}")
    assert not broken


def test_images_have_a_text_alternative(pages: Mapping[str, Page]) -> None:
    assert not {name: page.images_without_text for name, page in pages.items() if page.images_without_text}


def test_every_exported_name_is_in_the_reference(pages: Mapping[str, Page]) -> None:
    documented = {anchor for name, page in pages.items() if name.startswith("reference/") for anchor in page.anchors}
    not_ours = {*dir(star_0_1), "layers", "name", "utils"}
    names = {name for name in lora.__all__ if name not in not_ours}
    assert len(names) > 40
    assert {name for name in names if not {f"loralib.{name}", name} & documented} == set()


@pytest.mark.parametrize(
    "path",
    [
        ("index.html", "howto/merge-and-share/index.html#i-have-a-peft-adapter-and-want-it-merged"),
        ("index.html", "howto/which-layers/index.html#what-layers-are-called-by-family"),
        ("index.html", "howto/loss/index.html#no-gradient-arrives"),
    ],
    ids=["a PEFT adapter merged", "which layers of Qwen3", "my loss does not move"],
)
def test_three_questions_are_answered_one_click_from_the_start(pages: Mapping[str, Page], path: tuple[str, str]) -> None:
    start, place = path
    answer, _, anchor = place.partition("#")
    assert posixpath.dirname(answer) + "/" in {link.partition("#")[0] for link in pages[start].links}
    assert anchor in pages[answer].anchors


@pytest.mark.parametrize(
    "page",
    ["start/tutorial/", "howto/from-peft/", "howto/from-0.1/", "reproduction/", "howto/command-line/", "start/why/"],
    ids=["newcomer", "PEFT user", "0.1 user", "researcher", "no code", "doubtful"],
)
def test_every_reader_has_a_path_from_the_start(pages: Mapping[str, Page], page: str) -> None:
    assert page in pages["index.html"].links


def test_signatures_of_the_reference_say_what_users_write(site: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (site / "reference").rglob("*.html")]
    assert any("all-linear" in page for page in pages)
    assert not any(
        word in page for page in pages for word in ("ConfigField", "ALL_LINEAR", ">Given<", "CombineMethod", "KeyMap")
    )
