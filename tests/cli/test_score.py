"""`loralib score` shows the metrics beside the paper's, and tells wrong input in one sentence."""

import json
import statistics
from pathlib import Path

import pytest

from loralib.cli import guarded, main, score
from loralib.recipes.nlg.metrics import meteor


@pytest.fixture(autouse=True)
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(meteor.VARIABLE, raising=False)
    monkeypatch.setattr(meteor, "find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder as a run leaves it, with generated text and its references."""
    rows = [
        {"prediction": "The Mill is a cheap pub .", "references": ["The Mill is a pub .", "A cheap pub ."], "category": "seen"},
        {"prediction": "It is in Málaga.", "references": ["It is in Malaga."], "category": "unseen"},
    ]
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def ran(*words: object) -> int:
    return guarded(lambda: score.run([str(word) for word in words]))


def test_a_folder_needs_nothing_else(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("webnlg", outputs) == 0
    shown = capsys.readouterr().out
    for part in ("BLEU (unseen)", "TER (all)", "paper: LoRA,", "GPT-2 medium", "55.3 ± .2", "METEOR is left out"):
        assert part in shown
    line = "BLEU = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000"
    assert f"BLEU (unseen) of {outputs}/generated/test.jsonl, as multi-bleu.perl: {line}" in shown


def test_json_and_a_file(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = outputs / "scores" / "dart.json"
    assert ran("dart", outputs / "generated" / "test.jsonl", "--json", "-o", target) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(target.read_text(encoding="utf-8"))
    assert set(printed) == {"task", "predictions", "references", "rows", "metrics"}
    assert set(printed["metrics"]) == {"bleu", "ter"}
    assert ran("any", outputs, "-o", target) == 0
    shown = capsys.readouterr().out
    assert f"Wrote {target}." in shown
    assert "paper" not in shown


def test_seeds_are_scored_together(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "seeds"
    scores = []
    for seed, prediction in enumerate(["The Mill is a pub.", "The Mill is an inn.", "A mill."]):
        run = folder / f"seed-{seed}"
        (run / "generated").mkdir(parents=True)
        (run / "metrics.json").write_text("{}")
        row = {"context": "a", "prediction": prediction, "references": ["The Mill is a pub."]}
        (run / "generated" / "test.jsonl").write_text(json.dumps(row) + "\n")
        assert ran("any", run, "--json") == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"]["rouge_l"])
    (folder / "seeds.yaml").write_text("")
    assert ran("any", folder, "--json") == 0
    together = json.loads(capsys.readouterr().out)
    assert together["metrics"]["rouge_l"] == pytest.approx(statistics.fmean(scores))
    assert together["deviations"]["rouge_l"] == pytest.approx(statistics.stdev(scores))
    assert [seed["metrics"]["rouge_l"] for seed in together["seeds"]] == scores
    assert ran("any", folder) == 0
    assert f"{statistics.fmean(scores):.2f} ± {statistics.stdev(scores):.2f}" in capsys.readouterr().out


def test_text_files_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"p": "a pub .\nan inn .\n", "r0": "a pub .\nan inn here .\n", "r1": "\nan inn .\n"}.items():
        (tmp_path / name).write_text(text)
    assert ran("any", tmp_path / "p", "--json", "--references", tmp_path / "r0", tmp_path / "r1") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["ter"] == 0


def test_a_folder_of_data_of_which_the_published_file_is_preferred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e2e").mkdir()
    (tmp_path / "e2e" / "lora_nlg_test.txt").write_text("name : Aromi||Another text .\n")
    published = 'mr,ref\n"name[Aromi]","Aromi is a pub in town."\n"name[The Mill]","The Mill is a cheap pub."\n'
    (tmp_path / "e2e" / "testset_w_refs.csv").write_text(published)
    outputs = tmp_path / "outputs.tsv"
    outputs.write_text("MR\toutput\nname[The Mill]\tThe Mill is a cheap pub.\nname[Aromi]\tAromi is a pub in town.\n")
    assert ran("e2e", outputs, "--data-dir", tmp_path) == 0
    shown = capsys.readouterr().out
    for part in ("2 predictions of", "100.00", "10.0000", "70.4 ± .1", "2.47 ± .02"):
        assert part in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["e2e"], "PREDICTIONS is missing"),
        (["xsum", "p"], "'xsum' is not one of"),
        (["e2e", "nope.txt", "--data-dir", "."], "nope.txt does not exist"),
        (["e2e", "."], "generated/test.jsonl does not exist; first: loralib generate . --split test"),
        (["e2e", "p.txt"], "has no references in it; give --references, or --data-dir"),
        (["e2e", "p.txt", "--references", "r.txt", "--data-dir", "."], "give one of them"),
        (["e2e", "p.txt", "--references", "r.txt"], "p.txt has 2 predictions, but r.txt has references for 1 inputs"),
        (["any", "p.txt", "--data-dir", "."], "has no test set of its own"),
        (["dart", "p.txt", "--data-dir", "."], "has no test set of DART"),
        (["e2e", "p.txt", "--references", "p.txt", "--meteor-jar", "no.jar"], "--meteor-jar names no.jar, which is no file"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a\nb\n")
    Path("r.txt").write_text("a\n")
    assert ran(*words) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_metrics_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a pub\n")
    (tmp_path / "r.txt").write_text("a pub\n")
    words = ["score", "webnlg", str(tmp_path / "p.txt"), "--references", str(tmp_path / "r.txt"), "--json"]
    assert main([*words, "--without", "ter", "--without", "meteor"]) == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == ["bleu_all"]


def test_inputs_that_no_reference_answers_are_paired_by_order_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.tsv").write_text("mr\toutput\nfirst\ta pub\n")
    (tmp_path / "r.csv").write_text("mr,ref\nname[A],a pub\n")
    words = ["score", "any", str(tmp_path / "p.tsv"), "--references", str(tmp_path / "r.csv")]
    assert main(words) != 0
    assert "--by-order" in capsys.readouterr().err
    assert main([*words, "--by-order"]) == 0
