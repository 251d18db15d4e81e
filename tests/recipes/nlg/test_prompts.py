"""Inputs and texts as tokens: the paper's rule, written out with the tokenizer's own encoding."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from loralib.errors import DataError
from loralib.recipes.nlg import prompts
from loralib.recipes.nlg.prompts import IGNORED, PaperForm
from recipes.nlg.conftest import END, meal

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: END not in text)


@pytest.fixture(scope="module")
def bytewise(gpt2: Path) -> Any:
    return AutoTokenizer.from_pretrained(gpt2)


@pytest.fixture(scope="module")
def beginning(llama: Path) -> Any:
    """A tokenizer that begins every text with `<s>`, and has an end of another name."""
    return AutoTokenizer.from_pretrained(llama)


@given(context=TEXTS, completion=TEXTS)
def test_a_row_is_the_context_an_end_a_space_the_completion_and_an_end(bytewise: Any, context: str, completion: str) -> None:
    (row,) = prompts.encode(PaperForm(bytewise), [(context, completion)], 999, "x")
    before, after = bytewise.encode(context), bytewise.encode(" " + completion)
    assert row["input_ids"] == [*before, 0, *after, 0]
    assert row["labels"] == [IGNORED] * (len(before) + 1) + [*after, 0]
    assert bytewise.convert_ids_to_tokens(0) == END
    assert bytewise.decode(row["input_ids"]) == f"{context}{END} {completion}{END}"


@given(context=TEXTS, completion=TEXTS)
def test_a_tokenizer_that_begins_texts_begins_the_context(beginning: Any, context: str, completion: str) -> None:
    (row,) = prompts.encode(PaperForm(beginning), [(context, completion)], 999, "x")
    before, after = (beginning.encode(text, add_special_tokens=False) for text in (context, " " + completion))
    assert row["input_ids"] == [1, *before, 2, *after, 2]
    assert row["labels"] == [IGNORED] * (len(before) + 2) + [*after, 2]
    assert beginning.convert_ids_to_tokens([1, 2]) == ["<s>", "</s>"]


def test_a_tokenizer_that_ends_texts_does_not_end_them_twice(gpt2: Path) -> None:
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    context, completion = meal("Aromi", "Thai")
    expected = prompts.encode(PaperForm(tokenizer), [(context, completion)], 99, "x")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    assert tokenizer.encode("a")[-1] == 0
    assert prompts.encode(PaperForm(tokenizer), [(context, completion)], 99, "x") == expected


@given(length=st.integers(1, 40), context=TEXTS, completion=TEXTS)
def test_a_row_is_cut_at_its_end_and_a_context_never(bytewise: Any, length: int, context: str, completion: str) -> None:
    (whole,) = prompts.encode(PaperForm(bytewise), [(context, completion)], 999, "x")
    if len(bytewise.encode(context)) + 1 >= length:
        with pytest.raises(
            DataError, match=rf"(?s)^x: the input .* alone has \d+ tokens of {length}, .* a larger --max-length"
        ):
            prompts.encode(PaperForm(bytewise), [(context, completion)], length, "x")
    else:
        (row,) = prompts.encode(PaperForm(bytewise), [(context, completion)], length, "x")
        assert row == {name: ids[:length] for name, ids in whole.items()}
        assert any(label != IGNORED for label in row["labels"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Aromi serves Thai .", "Aromi serves Thai ."),
        ("  a  b \n", "a  b"),
        ("a\n\nb", "a"),
        ("\n\na", "a"),
        (f" a{END}", "a"),
        (" £ 20 , Café ?", "£ 20 , Café ?"),
        ("a\rb", "a"),
        ("", ""),
    ],
)
def test_what_was_generated_is_one_line_of_text(bytewise: Any, text: str, expected: str) -> None:
    assert PaperForm(bytewise).text_of(bytewise.encode(text)) == expected


def test_the_tokens_that_end_a_text(bytewise: Any, beginning: Any) -> None:
    assert [bytewise.decode([i]) for i in PaperForm(bytewise).end_ids()] == [END, "\n", "\n\n"]
    assert PaperForm(beginning).end_ids()[0] == 2
    assert all(not beginning.decode([i], skip_special_tokens=True).strip() for i in PaperForm(beginning).end_ids())


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.integers(0, 339))
def test_rows_are_padded_on_the_right(bytewise: Any, pairs: list[tuple[str, str]], pad: int) -> None:
    rows = prompts.encode(PaperForm(bytewise), pairs, 999, "x")
    tokenizer = copy.deepcopy(bytewise)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    batch = prompts.collator(tokenizer)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    assert {(tuple(tensor.shape), tensor.dtype) for tensor in batch.values()} == {((len(rows), longest), torch.int64)}
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        assert batch["input_ids"][i].tolist() == row["input_ids"] + [pad] * (longest - n)
        assert batch["labels"][i].tolist() == row["labels"] + [IGNORED] * (longest - n)
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (longest - n)
