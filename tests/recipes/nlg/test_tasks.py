"""Each task finds its files by their usual names, or its tables on the hub, or says what it needs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg import tasks
from loralib.recipes.nlg.e2e import read_e2e
from loralib.recipes.nlg.examples import example
from loralib.recipes.nlg.tasks import TASKS, read_split
from loralib.recipes.nlg.triples import read_dart, read_webnlg
from peers import data
from recipes.conftest import same
from recipes.nlg.conftest import texts_of

INPUTS = {
    ("e2e", "train"): 4862,
    ("e2e", "dev"): 547,
    ("e2e", "test"): 630,
    ("webnlg", "train"): 6935,
    ("webnlg", "dev"): 871,
    ("webnlg", "test"): 1862,
    ("dart", "dev"): 2768,
    ("dart", "test"): 5097,
}


@pytest.mark.parametrize(("name", "split"), INPUTS)
def test_the_real_data_are_found_in_the_tasks_folder_and_in_itself(name: str, split: str) -> None:
    read = read_split(name, split, data())
    assert len(read) == INPUTS[name, split]
    assert same(read, read_split(name, split, data(name)))


def test_dart_has_no_training_set_among_the_data() -> None:
    message = (
        "has no train set of DART 1.1.1; --data-dir must be a folder that holds, itself or in a folder dart, "
        r"dart-v1.1.1-full-train.json or dart-v1.1.1-full-train.xml \(from github.com/Yale-LILY/dart, folder data/v1.1.1\)\.$"
    )
    with pytest.raises(DataError, match=message):
        read_split("dart", "train", data())


E2E_TXT, E2E_CSV = "name : A||B .\n", "mr,ref\nname[A],B.\n"
WEBNLG_XML = (
    '<benchmark><entries><entry category="City"><modifiedtripleset><mtriple>a | B | c</mtriple></modifiedtripleset>'
    '<lex comment="good">B.</lex></entry></entries></benchmark>'
)
WEBNLG_JSON = json.dumps(
    {
        "entries": [
            {
                "1": {
                    "category": "City",
                    "modifiedtripleset": [{"subject": "a", "property": "B", "object": "c"}],
                    "lexicalisations": [{"comment": "good", "lex": "B."}],
                }
            }
        ]
    }
)
DART_JSON = json.dumps([{"tripleset": [["a", "B", "c"]], "annotations": [{"source": "x", "text": "B."}]}])


@pytest.mark.parametrize(
    ("name", "split", "file", "content"),
    [
        ("e2e", "train", "e2e/train.txt", E2E_TXT),
        ("e2e", "dev", "valid.txt", E2E_TXT),
        ("e2e", "train", "e2e-dataset/trainset.csv", E2E_CSV),
        ("e2e", "dev", "devset.csv.gz", E2E_CSV),
        ("e2e", "test", "e2e/testset_w_refs.csv", E2E_CSV),
        ("webnlg", "train", "webnlg/train.json", WEBNLG_JSON),
        ("webnlg", "dev", "webnlg_challenge_2017/dev.json", WEBNLG_JSON),
        ("webnlg", "train", "webnlg_challenge_2017/train/1triples/City.xml", WEBNLG_XML),
        ("webnlg", "dev", "dev/2triples/City.xml", WEBNLG_XML),
        ("webnlg", "test", "webnlg/testdata_with_lex.xml", WEBNLG_XML),
        ("webnlg", "test", "webnlg_challenge_2017/test/testdata_with_lex.xml", WEBNLG_XML),
        ("dart", "train", "dart/dart-v1.1.1-full-train.json", DART_JSON),
        ("dart", "train", "dart-v1.1.1-full-train.xml", WEBNLG_XML),
        ("dart", "dev", "dart/data/v1.1.1/dart-v1.1.1-full-dev.json.gz", DART_JSON),
    ],
)
def test_files_are_found_by_their_usual_names(tmp_path: Path, name: str, split: str, file: str, content: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if file.endswith(".gz") else content.encode())
    assert len(read_split(name, split, tmp_path)) == len(read_split(name, split, str(tmp_path))) == 1


def test_the_papers_file_goes_before_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "trainset.csv").write_text(E2E_CSV)
    (tmp_path / "train.txt").write_text(E2E_TXT)
    assert texts_of(read_split("e2e", "train", tmp_path)) == ["B ."]


def test_a_folder_of_other_things_is_not_taken_for_webnlgs(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no train set of WebNLG 2017; .* or a folder train of .xml files"):
        read_split("webnlg", "train", tmp_path)


def test_an_unknown_task_or_split_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task 'e3e' is none of the data-to-text tasks: e2e, webnlg, dart"):
        read_split("e3e", "train", tmp_path)
    with pytest.raises(DataError, match="e2e has no split 'valid'; it has train, dev, test"):
        read_split("e2e", "valid", tmp_path)
    with pytest.raises(DataError, match="none does not exist; give --data-dir, a folder"):
        read_split("e2e", "dev", tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; give --data-dir, a folder"):
        read_split("e2e", "dev", tmp_path / "file")


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the hub: gives tables that `datasets` made, and remembers what was asked for."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.asked: list[tuple[str, str | None, str]] = []

    def load_dataset(self, name: str, config: str | None, *, split: str, revision: str) -> Any:
        assert revision == tasks.TABLES
        self.asked.append((name, config, split))
        return self.tables[name]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    import datasets

    stand_in = Hub()
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load_dataset)
    return stand_in


def table(rows: list[dict[str, Any]], features: Any = None) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows, features=features)


def test_e2e_from_the_hub(hub: Hub) -> None:
    hub.tables["tuetschek/e2e_nlg"] = table(
        [
            {"meaning_representation": "name[A], familyFriendly[no]", "human_reference": "Not A."},
            {"meaning_representation": "name[A], familyFriendly[no]", "human_reference": "A, no."},
        ]
    )
    assert read_split("e2e", "dev").to_list() == [example("name : A | family friendly : no", ("Not A.", "A, no."))]
    read_split("e2e", "train")
    assert hub.asked == [("tuetschek/e2e_nlg", None, "validation"), ("tuetschek/e2e_nlg", None, "train")]


def webnlg_row(category: str, triples: list[str], texts: dict[str, str], file: str = "") -> dict[str, Any]:
    return {
        "category": category,
        "modified_triple_sets": {"mtriple_set": [triples]},
        "lex": {"comment": list(texts.values()), "text": list(texts)},
        "test_category": file,
    }


def test_webnlg_from_the_hub_takes_the_test_set_once(hub: Hub) -> None:
    rows = [
        webnlg_row("City", ["A_b | isIn | C"], {}, "testdata_no_lex"),
        webnlg_row("Artist", ["D | isIn | E"], {"D.": "good"}, "testdata_unseen_with_lex"),
        webnlg_row("City", ["A_b | isIn | C"], {"A.": "good", "Oh.": "toFix", "B.": "good"}, "testdata_with_lex"),
        webnlg_row("Artist", ["D | isIn | E", "E | is | F"], {"D.": "good"}, "testdata_with_lex"),
    ]
    hub.tables["webnlg-challenge/web_nlg"] = table(rows)
    expected = [
        example("A_b : isIn : C", ("A.", "B."), "seen"),
        example("D : isIn : E | E : is : F", ("D.",), "unseen"),
    ]
    assert read_split("webnlg", "test").to_list() == expected
    assert hub.asked == [("webnlg-challenge/web_nlg", "webnlg_challenge_2017", "test")]
    nested = [row | {"lex": [dict(comment="good", text="A.")], "test_category": ""} for row in rows[:1]]
    nested[0]["modified_triple_sets"] = [{"mtriple_set": ["A_b | isIn | C"]}]
    hub.tables["webnlg-challenge/web_nlg"] = table(nested)
    assert read_split("webnlg", "train").to_list() == [example("A_b : isIn : C", ("A.",), "seen")]


def test_dart_from_the_hub(hub: Hub) -> None:
    from datasets import Features, Sequence, Value

    features = Features(
        tripleset=Sequence(Sequence(Value("string"))),
        subtree_was_extended=Value("bool"),
        annotations=Sequence({"source": Value("string"), "text": Value("string")}),
    )
    rows = [
        {
            "tripleset": [["A b", "IS_A", "C"], ["C", "d", "e"]],
            "subtree_was_extended": None,
            "annotations": {"source": ["x", "y"], "text": ["One.", "Two."]},
        }
    ]
    hub.tables["Yale-LILY/dart"] = table(rows, features)
    assert read_split("dart", "dev").to_list() == [example("A b : is_a : C | C : d : e", ("One.", "Two."))]
    assert hub.asked == [("Yale-LILY/dart", None, "validation")]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "e2e",
            [{"meaning_representation": "name[A]"}],
            "split 'test', row 1 has no field 'human_reference'; it has 'meaning_rep",
        ),
        ("e2e", [{"meaning_representation": "A", "human_reference": "b"}], "split 'test', row 1: 'A' is not a meaning"),
        ("dart", [{"tripleset": [["a", "b"]], "annotations": []}], r"split 'test', row 1: 'a \| b' is not a triple"),
        (
            "webnlg",
            [{"category": "City", "modified_triple_sets": [], "lex": []}],
            r"\(webnlg_challenge_2017\), split 'test', row 1 has 0 modified_triple_sets, expected one",
        ),
    ],
)
def test_a_hub_data_set_that_cannot_serve_is_refused(hub: Hub, name: str, rows: list[Any], message: str) -> None:
    hub.tables[TASKS[name].hub] = table(rows)
    with pytest.raises(DataError, match=message):
        read_split(name, "test")


def test_without_the_hub_the_error_says_which_data_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    expected = (
        r"^hub data set 'webnlg-challenge/web_nlg' \(webnlg_challenge_2017\), split 'dev' cannot be loaded \(no network\); "
        "get a network, or give --data-dir, a folder that holds, itself or in a folder webnlg, dev.json or dev.xml or "
        r"a folder dev of .xml files \(from gitlab.com/shimorina/webnlg-dataset, folder webnlg_challenge_2017\)\.$"
    )
    with pytest.raises(DataError, match=expected):
        read_split("webnlg", "dev")
    with pytest.raises(DataError, match=r"'tuetschek/e2e_nlg', split 'validation'.*lora_nlg_valid.txt or valid.txt or dev"):
        read_split("e2e", "dev")


def test_the_readers_of_the_tasks_are_the_public_ones() -> None:
    assert [task.read for task in TASKS.values()] == [read_e2e, read_webnlg, read_dart]
