"""Predictions and references are read from the forms in which people have them, and what is wrong is said."""

import gzip
import json
import random
from pathlib import Path

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg.metrics.files import Rows, matched, of_task, read_predictions, read_references
from peers import data


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "one\n\nthree\n", ["one", "", "three"]),
        ("a.lex", "one\r\ntwo", ["one", "two"]),
        ("a", "a\u2028b\ntwo\n", ["a\u2028b", "two"]),
        ("a.txt.gz", "one\ntwo\n", ["one", "two"]),
        (
            "a.tsv",
            'MR\toutput\n"name[x], b[y]"\tIt costs £20.\n"z"\t"The Mill" is a pub.\n',
            ["It costs £20.", '"The Mill" is a pub.'],
        ),
        ("a.tsv", 'MR\tsystem\na\t"said ""so"""\n', ['said "so"']),
        ("a.csv", 'prediction,note\n"a, b",1\nc,2\n', ["a, b", "c"]),
        ("a.csv", "text\na\n\nc\n", ["a", "", "c"]),
        ("a.jsonl", lines({"prediction": "a"}, {"prediction": ""}), ["a", ""]),
    ],
)
def test_predictions(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    assert read_predictions(written(tmp_path, name, text)).column("prediction") == expected


def test_predictions_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    rows = [
        {"context": "x", "prediction": "a", "references": ["b", "c"], "category": "seen"},
        {"context": "y", "prediction": "d", "references": "e", "category": None},
    ]
    found = read_predictions(written(tmp_path, "a.jsonl", lines(*rows)))
    assert found.column("context") == ["x", "y"]
    assert found.column("references") == [["b", "c"], ["e"]]
    assert found.column("category") == ["seen", None]


def test_inputs_that_are_messages_pair_as_texts_do(tmp_path: Path) -> None:
    asked = [[{"role": "user", "content": text}] for text in ("a", "b")]
    found = read_predictions(written(tmp_path, "p.jsonl", lines(*({"context": m, "prediction": "x"} for m in asked))))
    others = lines(*({"references": [m[0]["content"]], "context": m} for m in reversed(asked)))
    known = read_references([written(tmp_path, "r.jsonl", others)])
    assert matched(found, [known]).column("references") == [["a"], ["b"]]


def test_references_side_by_side(tmp_path: Path) -> None:
    files = [written(tmp_path, "a.lex", "a\nb\n"), written(tmp_path, "b.lex", "c\n\n")]
    assert read_references(files).column("references") == [("a", "c"), ("b", "")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'mr,ref\n"x, 1",a\ny,b\n"x, 1",c\n'),
        ("a.txt", "x, 1||a\ny||b \nx, 1 ||c\n"),
        ("a.jsonl", lines({"context": "x, 1", "references": ["a", "c"]}, {"context": "y", "references": ["b"]})),
    ],
)
def test_references_by_input(tmp_path: Path, name: str, text: str) -> None:
    found = read_references([written(tmp_path, name, text)])
    assert (found.column("references"), found.column("context")) == ([["a", "c"], ["b"]], ["x, 1", "y"])


def test_the_papers_e2e_file_and_the_published_one_have_the_same_rows() -> None:
    ours, published = (read_references([data("e2e", name)]) for name in ("lora_nlg_test.txt", "testset_w_refs.csv"))
    assert [len(row) for row in ours.column("references") or ()] == [len(row) for row in published.column("references") or ()]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.pdf", "a", "is not a file of predictions"),
        ("a.txt", "", "is empty"),
        ("a.csv", "output\n", "has no row below"),
        ("a.tsv", "a\tb\nc\n", "has 1 field, expected 2"),
        ("a.jsonl", "\n", "is empty"),
        ("a.jsonl", "[]\n", "is not a JSON object"),
        ("a.jsonl", lines({"text": "a"}), "has no field 'prediction'; it has 'text'"),
        ("a.jsonl", lines({"prediction": 1}), "line 1: 'prediction' is 1, not text"),
        ("a.jsonl", lines({"prediction": "a", "references": ["b"]}, {"prediction": "a"}), "line 2 has no field 'references'"),
        ("a.jsonl", lines({"prediction": "a", "references": [1]}), "line 1: 'references', item 1 is 1, not text"),
    ],
)
def test_wrong_predictions_are_told_in_a_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_predictions(written(tmp_path, name, text))


def test_wrong_references_are_told_in_a_sentence(tmp_path: Path) -> None:
    two, three = written(tmp_path, "2.txt", "a\nb\n"), written(tmp_path, "3.txt", "a\nb\nc\n")
    table, bars = written(tmp_path, "a.csv", "x,y\n1,2\n"), written(tmp_path, "b.txt", "x||a\nb\n")
    for files, message in [
        ([two, three], "has 3 lines and .* 2"),
        ([two, table], "is not a text file; give it alone"),
        ([written(tmp_path, "a.pdf", "a")], "is not a file of references"),
        ([table], "has no column 'mr'; it has 'x', 'y'.* Expected mr and ref"),
        ([bars], "line 2 has no two vertical bars"),
        ([tmp_path / "nope.txt"], "does not exist"),
    ]:
        with pytest.raises(DataError, match=message):
            read_references(files)


def test_predictions_and_references_are_paired_by_input_where_both_say_it() -> None:
    rows = Rows("r", [{"context": "x", "references": ["a"]}, {"context": "y", "references": ["b"], "category": "unseen"}])

    def said(*inputs: str | None) -> Rows:
        return Rows("p", [{"prediction": "A", "context": context} for context in inputs])

    assert matched(said("y", "x"), [rows]).rows == rows.rows[::-1]
    for contexts in ((None, None), ("x", "y"), ("X ", " y")):
        assert matched(said(*contexts), [rows]).rows == rows.rows
    with pytest.raises(DataError, match=r"row 1, answers 'in another', .* pair them by their order \(--by-order\)"):
        matched(said("in another", "form"), [rows])
    assert matched(said("in another", "form"), [rows], by_order=True) == rows
    with pytest.raises(DataError, match="row 2, answers 'z', but the references are those of 'y'"):
        matched(said("x", "z"), [rows])
    with pytest.raises(DataError, match="p has 1 predictions, but r has references for 2 inputs"):
        matched(said(None), [rows])


@pytest.mark.parametrize("seed", range(3))
def test_e2es_inputs_are_known_in_any_order_and_in_the_papers_form(seed: int) -> None:
    """One published system's attributes are in another order; paired by the order of rows it lost 6 points of BLEU."""
    official = read_references([data("e2e", "testset_w_refs.csv")])
    paper = read_references([data("e2e", "lora_nlg_test.txt")])
    rng = random.Random(seed)
    rows = [dict(row) for row in official.rows]
    rng.shuffle(rows)
    for row in rows:
        attributes = row["context"].split(", ")
        rng.shuffle(attributes)
        row["context"] = ", ".join(attributes)
    found = matched(Rows("p", rows), [official])
    assert [sorted(row["references"]) for row in found.rows] == [sorted(row["references"]) for row in rows]
    names = [row["context"].split("[")[1].split("]")[0] for row in official.rows]
    assert [row["context"].split(" | ")[0].removeprefix("name : ") for row in matched(official, [paper]).rows] == names


@pytest.mark.parametrize(
    ("name", "text", "contexts", "texts"),
    [
        ("a.tsv", "name[A], food[B]\tA serves B.\nname[C]\tC.\n", ["name[A], food[B]", "name[C]"], ["A serves B.", "C."]),
        ("a.tsv", '"name[A], food[B]"\t"A serves B."\n"name[C]"\tC.\n', ["name[A], food[B]", "name[C]"], ["A serves B.", "C."]),
        ("a.csv", "The Mill is a pub.\nIt is cheap.\n", None, ["The Mill is a pub.", "It is cheap."]),
        ("a.tsv", "MR\toutput of the system\nname[A]\tA.\n", ["name[A]"], ["A."]),
        ("a.csv", "text\nThe Mill is a pub.\n", None, ["The Mill is a pub."]),
    ],
)
def test_a_table_without_names_of_columns_keeps_its_first_row(name, text, contexts, texts, tmp_path: Path) -> None:
    found = read_predictions(written(tmp_path, name, text))
    assert (found.column("context"), found.column("prediction")) == (contexts, texts)


def test_a_tasks_own_test_set_is_found() -> None:
    folder = data()
    (e2e,) = of_task("e2e", folder)
    assert e2e.source.endswith("testset_w_refs.csv")
    webnlg, _ = of_task("webnlg", folder)
    categories = webnlg.column("category")
    assert categories is not None
    assert (len(webnlg.rows), categories.count("seen")) == (1862, 971)
    with pytest.raises(DataError, match="the task 'any' has no test set of its own"):
        of_task("any", folder)
