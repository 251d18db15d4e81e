"""Text from elsewhere stays on its line, and the terminal obeys nobody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.printing import printable, short


@given(st.text())
def test_all_that_is_shown_is_printable_and_nothing_printable_is_changed(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert "".join(char for char in text if char.isprintable()) in shown if text.isprintable() else shown != text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb\tc", "a\\nb\\tc"), ("\x1b[31m", "\\x1b[31m"), ("ä 漢", "ä 漢"), ("\u202e", "\\u202e")],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(), st.integers(3, 20))
def test_a_short_value_is_one_line_of_at_most_that_length(text: str, longest: int) -> None:
    found = short(text, longest)
    assert len(found) <= longest + 1
    assert "\n" not in found
    if len(" ".join(repr(text).split())) > longest:
        assert found.endswith("…")


def test_a_value_that_fits_is_its_repr_with_single_spaces() -> None:
    assert short({"a": [1, 2]}) == "{'a': [1, 2]}"
    assert short("a   b") == "'a b'"
    assert short("a" * 78) == repr("a" * 78)
    assert short("a" * 79) == "'" + "a" * 79 + "…"
