"""The words of the documentation: the field's terms, and none of those that only we would understand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob("*.md"),
    *(ROOT / "examples").rglob("*.[mp][dy]"),
]
INSTEAD = {
    r"\btold\b": "on_progress, or say which",
    r"\bbeside\b": "next to, with, in addition to; of tensors: extra",
    r"\banew\b": "again",
    r"\baside\b": "replace temporarily, move away",
    r"\btreatment\b": "LoRA class, handler",
    r"\bobstacle\b": "not eligible",
    r"\brows? of tokens\b": "token rows",
    r"\bone's own\b": "custom, your own",
    r"\bspeaks of\b": "the shape is wrong: expected, got",
    r"\bwhat training changed\b": "adapter, update",
    r"(?<!here )\bis no (?!longer\b|more\b|such\b|other\b|need\b|way\b|matter\b)": "is not a",
    r"(?<!here )\bare no (?!longer\b|more\b|such\b)": "are not",
}
QUOTED = ("tokens.py", "make.py")  # sentences of data


def found(text: str) -> list[str]:
    """The words of a text that have a better one."""
    return [f"{match[0]!r}: {better}" for word, better in INSTEAD.items() for match in re.finditer(word, text, re.I)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_the_fields(path: Path) -> None:
    assert path.name in QUOTED or found(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text", ["Told: hears of", "set aside", "an 'x' is no number", "tensors beside them", "layers of one's own", "drawn anew"]
)
def test_other_words_are_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize("text", ["there is no file", "is no longer there", "besides", "are not factors"])
def test_plain_words_are_not(text: str) -> None:
    assert not found(text)
