"""How each evaluation cuts text into words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.recipes.nlg.metrics.tokens import mteval_words, tokenised, treebank_words


@given(st.text(max_size=40))
def test_tokenising_twice_is_tokenising_once(text: str) -> None:
    for plain in (False, True):
        assert tokenised(tokenised(text, plain), plain) == tokenised(text, plain)


@given(st.text(max_size=60))
def test_no_text_breaks_a_tokeniser(text: str) -> None:
    for words in (mteval_words(text), treebank_words(text)):
        assert all(word and not word.isspace() for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It isn't (really) cheap.", "it is n't -lrb- really -rrb- cheap"),
        ("A 5-star café; £20-25, or 1,000 in all!", "a 5-star café # 20-25 or 1,000 in all"),
        ('She said: "Aromi\'s is best."', "she said aromi 's is best"),
        ("They'll take cards & cash...", "they 'll take cards & cash"),
        ("in the U.S. it can't", "in the u.s. it ca n't"),
    ],
)
def test_treebank_words(text: str, words: str) -> None:
    assert treebank_words(text) == words.split()


@pytest.mark.parametrize(
    ("text", "plain", "expected"),
    [
        ("Madrid\N{EN DASH}Barajas, San Sebastián.", True, "madrid - barajas , san sebastian ."),
        ("Madrid\N{EN DASH}Barajas, San Sebastián.", False, "madrid \N{EN DASH} barajas , san sebastián ."),
        ("Øl, Łódź & Straße", True, "ol , lodz & strasse"),
        ("snake_case 1,000", False, "snake_case 1 , 000"),
        ("a\u0301b  c\n", False, "a\u0301b c"),
        ("", True, ""),
    ],
)
def test_tokenised_text_has_its_signs_apart(text: str, plain: bool, expected: str) -> None:
    assert tokenised(text, plain) == expected


def test_mtevals_words_are_in_lower_case_and_keep_numbers_whole() -> None:
    assert mteval_words("The Mill: £1,000, isn't 4.5?") == ["the", "mill", ":", "£1,000", ",", "isn't", "4.5", "?"]
