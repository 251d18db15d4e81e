"""E2E is read with the counts of its publishers, and its two forms give the same inputs."""

import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes.nlg.e2e import ATTRIBUTES, from_table, linearised, read_e2e
from loralib.recipes.records import dataset
from peers import data
from recipes.nlg.conftest import pairs_of, texts_of

ROWS = {"train": (42061, 4862), "valid": (4672, 547), "test": (4693, 630)}


@pytest.mark.parametrize("split", ROWS)
def test_rows_and_inputs(split: str) -> None:
    path = data("e2e", f"lora_nlg_{split}.txt")
    read = read_e2e(path)
    assert (len(texts_of(read)), len(read)) == ROWS[split]
    rows = [line.split("||") for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(pairs_of(read)) == sorted((context, text.strip()) for context, text in rows)
    assert list(dict.fromkeys(context for context, _ in rows)) == read["context"]


@pytest.mark.parametrize("split", ROWS)
def test_attributes_come_in_the_published_order(split: str) -> None:
    names = list(ATTRIBUTES.values())
    for context in read_e2e(data("e2e", f"lora_nlg_{split}.txt"))["context"]:
        order = [names.index(attribute.partition(" : ")[0]) for attribute in context.split(" | ")]
        assert order == sorted(set(order))


def test_the_published_test_set_gives_the_inputs_of_the_papers_file_row_by_row() -> None:
    published, paper = data("e2e", "testset_w_refs.csv"), data("e2e", "lora_nlg_test.txt")
    with published.open(encoding="utf-8", newline="") as file:
        meanings = [row["mr"] for row in csv.DictReader(file)]
    lines = paper.read_text(encoding="utf-8").splitlines()
    assert [linearised(meaning) for meaning in meanings] == [line.partition("||")[0] for line in lines]
    ours, theirs = read_e2e(published), read_e2e(paper)
    assert ours["context"][:] == theirs["context"][:]
    assert len(ours) == 630
    assert [len(texts) for texts in ours["references"]] == [len(texts) for texts in theirs["references"]]


def test_texts_of_the_two_forms_differ_in_spaces_alone() -> None:
    names = ("testset_w_refs.csv", "lora_nlg_test.txt")
    ours, theirs = (texts_of(read_e2e(data("e2e", name))) for name in names)
    assert [text.replace(" ", "") for text in ours] == [text.replace(" ", "") for text in theirs]
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) == 4554


VALUE = st.text(st.characters(exclude_characters="[]\r\n", exclude_categories=["C"]), min_size=1).map(str.strip).filter(bool)


@given(values=st.lists(st.tuples(st.sampled_from(sorted(set(ATTRIBUTES) - {"priceRange"})), VALUE), min_size=1, max_size=4))
def test_any_value_but_a_price_is_kept_as_it_is(values: list[tuple[str, str]]) -> None:
    meaning = ", ".join(f"{name}[{value}]" for name, value in values)
    assert linearised(meaning) == " | ".join(f"{ATTRIBUTES[name]} : {value}" for name, value in values)


@pytest.mark.parametrize(
    ("published", "paper"),
    [
        ("£20-25", "£ 20 - 25"),
        ("less than £20", "less than £ 20"),
        ("more than £30", "more than £ 30"),
        ("cheap", "cheap"),
        ("£ 20 - 25", "£ 20 - 25"),
    ],
)
def test_a_price_is_tokenised(published: str, paper: str) -> None:
    assert linearised(f"priceRange[{published}]") == f"price : {paper}"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_lines_of_an_input_need_not_be_neighbours_and_may_be_zipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"name : A||One . \r\n\r\nname : B||Two || 2\r\nname : A|| Uno\r\n"))
    assert pairs_of(read_e2e(path)) == [("name : A", "One ."), ("name : A", "Uno"), ("name : B", "Two || 2")]


def test_a_published_file_may_have_other_columns_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffid,ref,mr\r\n1,"A ""pub"",\nhere.",name[A]\r\n')
    assert pairs_of(read_e2e(path)) == [("name : A", 'A "pub",\nhere.')]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "name : A|text\n", r"a.txt, line 1 has no two vertical bars; write input\|\|text"),
        ("a.txt", "\nname : A||\n", "line 2 has no text; give it one, or remove the row"),
        ("a.txt", "||text\n", "line 1 has no input"),
        ("a.txt", "\n", "a.txt has no input with a text"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "mr,ref\n", "a.csv has no input with a text"),
        ("a.csv", "mr,text\nname[A],b\n", "a.csv has no column 'ref'; it has 'mr', 'text'.* Expected mr and ref"),
        ("a.csv", "mr,ref\nname[A]\n", "line 2 has 1 field, expected 2"),
        ("a.csv", "mr,ref\nname[A],\n", "line 2 has no text"),
        ("a.csv", "mr,ref\nname,b\n", "line 2: 'name' is not a meaning representation; write name"),
        ("a.csv", 'mr,ref\n"name[A], ",b\n', "line 2: 'name\\[A\\],' is not a meaning representation"),
        ("a.csv", 'mr,ref\n"name[A] area[B]",b\n', "line 2: .* is not a meaning representation"),
        ("a.csv", "mr,ref\nnam[A],b\n", "line 2: 'nam' is not an attribute of E2E; it has name, eatType"),
        ("a.tsv", "mr\tref\n", r"a.tsv is not a .txt or .csv file \(or .gz of one\)"),
    ],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_e2e(write(tmp_path / name, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.txt does not exist; give the path of a .txt or .csv file"):
        read_e2e(tmp_path / "none.txt")


def test_a_column_of_no_texts_is_refused() -> None:
    columns = ("meaning_representation", "human_reference")
    for message, *rows in [
        ("x, row 2: 'human_reference' is None, not text", ("name[A]", "b"), ("name[B]", None)),
        ("x, row 1: 'meaning_representation' is 5, not text", (5, "b")),
    ]:
        table = dataset("x", [dict(zip(columns, row, strict=True)) for row in rows], "rows")
        with pytest.raises(DataError, match=message):
            from_table(table)
