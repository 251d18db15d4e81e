"""What the pages claim: each row of a comparison names a test that exists, and README's rows are among them."""

import re
from pathlib import Path

from pages import Page

ROOT = Path(__file__).parents[2]
WHY = (ROOT / "docs" / "start" / "why.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[str]:
    """The rows of the comparing tables in a text, without their numbers."""
    lines = [line for line in text.splitlines() if re.match(r"\| [^|\s]", line) and line.count("|") == 5]
    return [re.sub(r"^\| \d+\. ", "| ", line) for line in lines]


def named_by_row() -> dict[int, list[str]]:
    """The tests that the page names, by the number of their row."""
    listed = WHY[WHY.index("## The tests") :]
    items = re.split(r"^(\d+)\. ", listed, flags=re.MULTILINE)[1:]
    return {int(n): re.findall(r"`(\S+\.py::\w+)`", text) for n, text in zip(items[::2], items[1::2], strict=True)}


def exists(test: str) -> bool:
    """Whether a file of tests defines a function of that name."""
    path, _, name = test.partition("::")
    file = ROOT / "tests" / path
    return file.is_file() and f"\ndef {name}(" in file.read_text(encoding="utf-8")


def test_each_row_of_the_comparison_names_tests_that_exist() -> None:
    numbers = [int(n) for n in re.findall(r"^\| (\d+)\. ", WHY, re.MULTILINE)]
    tests = named_by_row()
    assert numbers == list(tests) == list(range(1, len(numbers) + 1))
    assert all(tests.values())
    assert [test for named in tests.values() for test in named if not exists(test)] == []


def test_a_test_that_does_not_exist_is_found() -> None:
    assert exists("docs/test_claims.py::test_a_test_that_does_not_exist_is_found")
    assert not exists("docs/test_claims.py::test_it")
    assert not exists("docs/nowhere.py::test_it")


def test_the_rows_of_the_readme_are_rows_of_the_comparison() -> None:
    known = rows(WHY)
    shown = rows(README[README.index("## Why trust it") : README.index("## Any model")])
    assert len(shown) >= 8
    assert [row for row in shown if row not in known] == []


def figures(page: str) -> list[tuple[str, str]]:
    """The text alternative of each image of a page, and what stands in the two lines after it."""
    lines = page.splitlines()
    found = [(i, re.match(r"!\[([^\]]*)\]\(", line)) for i, line in enumerate(lines)]
    return [(image[1], "\n".join(lines[i + 1 : i + 3])) for i, image in found if image]


def named(caption: str) -> bool:
    """Whether a caption names the command that draws its figure."""
    return re.search(r"`(?:make|loralib|python) [^`]+`", caption) is not None


def test_each_figure_has_a_text_alternative_and_names_its_command() -> None:
    pages = [ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = {page.name: figures(page.read_text(encoding="utf-8")) for page in pages}
    assert sum(map(len, found.values())) >= 5
    assert [
        (name, text) for name, images in found.items() for text, caption in images if len(text) < 40 or not named(caption)
    ] == []


def test_a_figure_without_its_command_is_found() -> None:
    ((text, caption),) = figures("![](a.png)\n\nOf two runs.\n\n`make demo`")
    assert text == ""
    assert not named(caption)
    assert named("*`make demo` draws it.*")


def test_the_commands_that_draw_figures_exist() -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    captions = [caption for page in (ROOT / "docs").rglob("*.md") for _, caption in figures(page.read_text(encoding="utf-8"))]
    assert {name for caption in captions for name in re.findall(r"`make ([\w-]+)`", caption)} <= {*targets}
    modules = {name for caption in captions for name in re.findall(r"`python -m ([\w.]+)", caption)}
    assert all((ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or (ROOT / name).is_dir() for name in modules)


def test_each_drawing_has_a_title_and_a_description() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.html")]
    drawings = [text for text in texts if not text.startswith("<!doctype")]  # pages of their own are read as pages are
    assert drawings
    assert all(Page(text).problems == [] for text in texts if text not in drawings)
    assert all(re.search(r'<svg[^>]* role="img"', text) and "<title" in text and "<desc" in text for text in drawings)
