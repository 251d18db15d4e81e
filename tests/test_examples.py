"""The demo's data is what its README says."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loralib.recipes.nlu.readers import read_file

REVIEWS = Path(__file__).parent.parent / "examples" / "reviews"


def reviews(part: str, label: str = "label") -> Any:
    return read_file(REVIEWS / f"{part}.tsv", "text", label)


@pytest.mark.parametrize(("part", "each"), [("train", 16), ("test", 4)])
def test_every_kind_has_as_much_praise_as_complaint(part: str, each: int) -> None:
    pairs = Counter(zip(reviews(part, "kind")["label"], reviews(part)["label"], strict=True))
    assert len(pairs) == 2 * 52
    assert set(pairs.values()) == {each // 2}
    assert {label for _, label in pairs} == {"negative", "positive"}


def test_no_review_stands_twice_and_all_are_short_plain_text() -> None:
    texts = [*reviews("train")["text"], *reviews("test")["text"]]
    assert len({text.lower() for text in texts}) == len(texts) == 1040
    assert all(text.isascii() and 4 <= len(text.split()) <= 40 for text in texts)
