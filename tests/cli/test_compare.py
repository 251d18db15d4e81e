"""`loralib compare`: what it prints, writes and refuses."""

import csv
from pathlib import Path

import pytest
import yaml

from loralib.cli import main
from loralib.recipes import comparison, resolved, run_folder

pytestmark = pytest.mark.slow

pytest_plugins = ["recipes.conftest"]


def words(encoder: Path, reviews: Path, output: Path, *more: str) -> list[str]:
    data = ["--data", str(reviews / "train.tsv"), "--eval-data", str(reviews / "test.tsv")]
    return [
        "compare",
        "--model",
        str(encoder),
        *data,
        "--output",
        str(output),
        "--num-train-epochs",
        "1",
        "--batch-size",
        "16",
        *more,
    ]


def test_a_search_and_a_comparison_end_to_end(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with real processes; what is resumed starts none."""
    space = ["--search", "2", "--eta", "2", "--search-layers", "query,key", "--search-r", "4", "--search-train-head", "all"]
    given = words(encoder, reviews, tmp_path / "out", "--methods", "lora,last-layers", "--learning-rate-lora", "1e-2", *space)
    assert main(given) == 0
    shown = capfd.readouterr().out
    assert "search" in shown
    assert "last-layers" in shown
    assert f"loralib train --config {tmp_path}/out/best.yaml" in shown.replace("\n", " ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("lora", "lora.yaml", "last-layers", "last-layers.yaml", "search"),
        *("search.csv", "comparison.csv", "comparison.png", "best.yaml", ".loralib.json"),
    }
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["lora", "last-layers"]
    with (tmp_path / "out" / "search.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 2
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert float(trials[0]["learning_rate"]) == best["learning_rate"] == float(rows[0]["learning_rate"])
    assert trials[0]["layers"] == best["layers"]
    run = resolved.resolved(run_folder.read_options(tmp_path / "out" / "lora")[0])
    assert best["onednn"] == "auto"  # for whichever processor trains it next
    assert {name: value for name, value in run.items() if name != "output"} == best | {"onednn": run["onednn"]}

    assert main(given) == 2
    assert "add --resume to go on with it, or --overwrite" in capfd.readouterr().err
    monkeypatch.setattr(comparison, "wait_for", lambda words: pytest.fail("nothing is left to train"))
    assert main([*given, "--resume"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "lora,half"], "give some of lora,last-layers,full,bitfit,prefix"),
        (["--methods", "full", "--search", "4"], "lora is not among --methods"),
        (["--search", "1"], "two candidates at least"),
        (["--search", "4", "--search-layers", "quary"], "'quary' is none of query, key"),
        (["--seeds", "0"], "--seeds 0: must be positive"),
        (["--overwrite", "--resume"], "contradict"),
        (["--r", "0"], "r=0"),
        (["--method", "lora"], "no option --method; nearest: --methods"),
        (["--layers", "query", "--target-modules", "query"], "layers='query' has no effect with target_modules"),
    ],
)
def test_wrong_words_end_with_code_2_and_one_sentence(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(encoder, reviews, tmp_path / "out", *more)) == 2
    shown = capfd.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_no_comparison_wrote_is_never_replaced(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main(words(encoder, reviews, tmp_path, "--overwrite")) == 2
    assert "holds what no comparison wrote (thesis.tex)" in capfd.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupt_says_how_to_go_on(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "wait_for", lambda words: comparison.INTERRUPTED)
    assert main(words(encoder, reviews, tmp_path / "out")) == 130
    assert "Go on with the same words and --resume" in capfd.readouterr().err
