"""A task's score has the paper's metrics in the paper's units, and says what does not fit."""

from pathlib import Path

import pytest

from loralib.errors import ConfigError, DataError
from loralib.recipes.nlg.metrics import meteor, paper
from loralib.recipes.nlg.scoring import TASKS, multi_bleus, prepared, score

SAID = ["The Mill is a cheap pub near Aromi.", "Aromi serves Italian food in the city centre."]
ASKED = [["The Mill is a pub near Aromi, and cheap."], ["Aromi serves Italian food in the city centre.", "Aromi is Italian."]]


@pytest.fixture(autouse=True)
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(meteor.VARIABLE, raising=False)
    monkeypatch.setattr(meteor, "find_spec", lambda name: None)


def test_the_metrics_of_each_task_are_the_papers(program: Path) -> None:
    for task in ("e2e", "dart"):
        assert list(score(task, SAID, ASKED, meteor_jar=program)) == list(paper.FIGURES[task])
    webnlg = score("webnlg", SAID, ASKED, ["seen", "unseen"], program)
    assert set(webnlg) == set(paper.FIGURES["webnlg"])
    assert set(score("any", SAID, ASKED)) == {"bleu", "chrf", "rouge_l", "ter"}
    assert set(TASKS) == set(paper.FIGURES)


def test_the_units_are_the_papers() -> None:
    perfect = [row[0] for row in ASKED]
    single = [[text] for text in perfect]
    assert score("e2e", perfect, single) == pytest.approx({"bleu": 100, "rouge_l": 100, "cider": 10, "nist": 3.9}, rel=0.2)
    assert score("dart", perfect, single) == pytest.approx({"bleu": 100, "ter": 0})
    assert score("dart", ["x"] * 2, single)["ter"] == 1
    assert score("any", perfect, single) == pytest.approx({"bleu": 100, "chrf": 100, "rouge_l": 100, "ter": 0})


def test_webnlg_is_scored_in_parts() -> None:
    parts = score("webnlg", SAID, ASKED, ["unseen", "seen"])
    assert parts["bleu_seen"] == pytest.approx(score("webnlg", SAID[1:], ASKED[1:])["bleu_all"])
    assert parts["ter_unseen"] == score("webnlg", SAID[:1], ASKED[:1])["ter_all"]
    assert parts["ter_all"] == pytest.approx((parts["ter_seen"] + parts["ter_unseen"]) / 2)
    assert set(score("webnlg", SAID, ASKED, ["seen", None])) == {"bleu_seen", "bleu_all", "ter_seen", "ter_all"}
    assert multi_bleus("webnlg", SAID, ASKED)["bleu_all"].score == parts["bleu_all"]


def test_case_and_spaces_do_not_matter_to_webnlg_and_dart() -> None:
    spaced = ["the mill is a cheap pub near aromi .", "aromi serves italian food in the city centre ."]
    for task in ("webnlg", "dart"):
        assert score(task, SAID, ASKED) == score(task, spaced, ASKED)
    assert prepared("dart", ["Málaga"], [["Málaga"]]) == (["málaga"], [["málaga"]])


def test_no_more_than_six_references_are_taken() -> None:
    seven = [["The Mill.", "b", "", "c", "d", "e", "f", SAID[0]], ASKED[1]]
    assert score("dart", SAID, seven) == score("dart", SAID, [seven[0][:2] + seven[0][3:7], ASKED[1]])


def test_meteor_is_left_out_where_it_is_not_and_refused_where_it_is_asked_for(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "meteor" not in score("e2e", SAID, ASKED)
    assert score("e2e", SAID, ASKED, meteor_jar=program)["meteor"] == 50
    monkeypatch.setenv(meteor.VARIABLE, str(program))
    assert score("dart", SAID, ASKED)["meteor"] == 0.5
    monkeypatch.setenv(meteor.VARIABLE, str(tmp_path / "nope"))
    with pytest.raises(ConfigError, match=r"METEOR_JAR names .*nope, which is not a file"):
        score("dart", SAID, ASKED)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="METEOR needs java"):
        score("dart", SAID, ASKED, meteor_jar=program)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="task 'xsum' is none of e2e, webnlg, dart, any"):
        score("xsum", SAID, ASKED)
    for task in TASKS:
        with pytest.raises(DataError, match="there are 1 predictions and 2 rows"):
            score(task, SAID[:1], ASKED)
    with pytest.raises(DataError, match="there are 1 categories and 2 predictions"):
        score("webnlg", SAID, ASKED, ["seen"])
    with pytest.raises(DataError, match="row 2 is of the category 'new'; expected unseen or seen"):
        score("webnlg", SAID, ASKED, ["seen", "new"])


@pytest.mark.parametrize("task", TASKS)
def test_empty_predictions_score_nothing(task: str) -> None:
    for name, value in score(task, ["", ""], [row[:1] for row in ASKED]).items():
        assert value == float(name.startswith("ter"))
