"""`loralib study`: what it trains, prints, writes and refuses, and that it goes on where it was."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import main
from loralib.recipes import comparison, run_folder
from loralib.storage.lock import locks_below

pytestmark = pytest.mark.slow

pytest_plugins = ["recipes.conftest"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of each process that would have been started; its work is done in this one."""
    words: list[list[str]] = []

    def train(given: Sequence[str]) -> int:
        words.append(list(given))
        return main(list(given))

    monkeypatch.setattr(comparison, "wait_for", train)
    return words


def words(study: str, encoder: Path, reviews: Path, output: Path, *more: str) -> list[str]:
    data = ["--data", str(reviews / "train.tsv"), "--eval-data", str(reviews / "test.tsv")]
    budget = ["--num-train-epochs", "1", "--batch-size", "16", "--max-train-rows", "48", "--seeds", "2"]
    return ["study", study, "--model", str(encoder), *data, "--output", str(output), *budget, *more]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_budget_on_several_matrices_and_going_on(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with real processes; what is resumed starts none."""
    out = tmp_path / "out"
    given = words("matrices", encoder, reviews, out, "--sets", "q", "q,v", "--learning-rate-lora", "1e-2", "--r", "2")
    assert main(given) == 0
    shown = capfd.readouterr().out
    assert f"run 1 of 4: {out}/runs/query/seed-0" in shown.replace("\n", "")
    assert "is best by accuracy" in shown
    assert {path.name for path in out.iterdir()} == {
        "runs",
        "index.html",
        "study.csv",
        "study.png",
        "study.svg",
        ".loralib.json",
    }
    found = rows(out)
    assert [(row["matrices"], row["r"], row["seed"]) for row in found] == [
        *(("query", "4", str(seed)) for seed in (0, 1)),
        *(("query,value", "2", str(seed)) for seed in (0, 1)),
    ]
    assert len({row["lora"] for row in found}) == 1
    for row in found:
        run = out / "runs" / row["folder"]
        options, _ = run_folder.read_options(run)
        assert (options.lora.r, options.learning_rate, options.seed) == (int(row["r"]), 1e-2, int(row["seed"]))
        assert (run / run_folder.ADAPTER).is_dir()
        assert not (run / run_folder.CHECKPOINTS).exists()
    assert main(given) == 2
    assert "add --resume to go on with it, or --overwrite" in capfd.readouterr().err
    monkeypatch.setattr(comparison, "wait_for", lambda words: pytest.fail("nothing is left to train"))
    assert main([*given, "--resume"]) == 0
    assert rows(out) == found


def test_ranks_under_both_rules(
    encoder: Path, reviews: Path, tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*words("rank", encoder, reviews, out, "--ranks", "4", "1", "--lora-alpha", "8"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["study"] == "rank"
    assert len(report["findings"]) == 1
    found = [(row["rule"], row["r"], row["seed"]) for row in report["runs"]]
    assert found == [(alpha, r, seed) for alpha, r in (("both", 1), ("paper", 4), ("rslora", 4)) for seed in (0, 1)]
    assert len(started) == 6
    used = {}
    for row in report["runs"]:
        options, _ = run_folder.read_options(out / "runs" / row["folder"])
        assert options.lora.lora_alpha == 8
        used[row["rule"]] = options.lora.use_rslora
    assert used == {"both": False, "paper": False, "rslora": True}
    assert all(0 < row["eval_loss"] < 5 for row in report["runs"])


def test_rows_by_several_methods_and_a_grid_that_was_stopped(
    encoder: Path, reviews: Path, tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    more = ["--rows", "16", "1000", "--methods", "lora,bitfit,prefix,full", "--min-steps", "4", "--prefix-length", "3"]
    given = words("rows", encoder, reviews, out, *more, "--learning-rate-full", "1e-3", "--r", "2")
    train = comparison.wait_for

    def stop(given: Sequence[str]) -> int:
        return comparison.INTERRUPTED if len(started) == 3 else train(given)

    monkeypatch.setattr(comparison, "wait_for", stop)
    assert main(given) == 130
    assert "finished runs are kept. Go on with the same words and --resume" in capsys.readouterr().err
    assert not (out / "study.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    assert len(kept) == 3
    monkeypatch.setattr(comparison, "wait_for", train)
    assert main([*given, "--resume"]) == 0
    assert len(started) == 16
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    found = rows(out)
    methods = ("lora", "bitfit", "prefix", "full")
    assert [(row["rows"], row["method"]) for row in found[::2]] == [(n, method) for n in ("16", "all") for method in methods]
    for row in found:
        options, _ = run_folder.read_options(out / "runs" / row["folder"])
        few = row["rows"] == "16"
        assert (int(row["train_rows"]), options.num_train_epochs) == ((16, 4) if few else (48, 2))
        assert options.peak_learning_rate == {"lora": 5e-4, "bitfit": 1e-3, "prefix": 1e-2, "full": 1e-3}[row["method"]]
        assert options.prefix == (3 if row["method"] == "prefix" else 0)
    assert not list(out.glob("runs/*/*/model"))


WRONG: list[tuple[str, list[str], str]] = [
    ("matrix", [], "'matrix' is not one of matrices, rank, rows; nearest: matrices"),
    ("matrices", ["--layers", "query"], "--layers is chosen by loralib study matrices; leave it out, or give --sets"),
    ("rank", ["--r", "4"], "--r is chosen by loralib study rank; leave it out, or give --ranks"),
    ("rank", ["--use-rslora"], "--use-rslora is chosen by loralib study rank; leave it out, or give --rules"),
    ("rank", ["--rows", "5"], "--rows belongs to loralib study rows"),
    ("rows", ["--sets", "q"], "--sets belongs to loralib study matrices and rank"),
    ("matrices", ["--sets", "q,w"], "'w' is none of query, key, value, output, mlp"),
    ("rank", ["--ranks", "0"], "--ranks 0: must be positive"),
    ("rank", ["--rules", "none"], "--rules none: give some of paper, rslora"),
    ("rows", ["--methods", "lora,half"], "give some of lora,last-layers,full,bitfit,prefix"),
    ("rows", ["--methods", "lora", "--prefix-length", "3"], "--prefix-length has no effect with method=lora"),
    ("rows", ["--min-steps", "-1"], "--min-steps -1: must not be negative"),
    ("rank", ["--learning-rate-full", "1"], "--learning-rate-full has no effect with the methods lora; leave it out"),
    ("matrices", ["--seeds", "0"], "--seeds 0: must be positive"),
    ("matrices", ["--overwrite", "--resume"], "contradict"),
    ("matrices", ["--method", "lora"], "no option --method; nearest: --methods"),
    ("rows", ["--methods", "prefix", "--gradient-checkpointing"], "cannot be used with method=prefix"),
]


@pytest.mark.parametrize(("study", "more", "message"), WRONG)
def test_wrong_words_end_with_code_2_and_one_sentence(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], study: str, more: list[str], message: str
) -> None:
    assert main(words(study, encoder, reviews, tmp_path / "out", *more)) == 2
    shown = capfd.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_no_study_wrote_is_never_replaced(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main(words("rank", encoder, reviews, tmp_path, "--overwrite")) == 2
    assert "holds what no study wrote (thesis.tex)" in capfd.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_a_study_that_is_killed_goes_on_where_it_was(
    encoder: Path, reviews: Path, tmp_path: Path, started: list[list[str]]
) -> None:
    out = tmp_path / "out"
    given = words("matrices", encoder, reviews, out, "--sets", "q", "v")
    program, until = [sys.executable, "-m", "loralib", *given], time.monotonic() + 120
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(out.rglob("metrics.json")) and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    assert 1 <= len(kept) < 4
    while list(locks_below(out)) and time.monotonic() < until:  # the run in progress ends, as its parent is gone
        time.sleep(0.05)
    assert main([*given, "--resume"]) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert len(started) <= 4 - len(kept)
    assert len(rows(out)) == 4
