"""`loralib analyze`: what it writes and says, and what it refuses without writing anything."""

import csv
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import loralib as lora
from cli.conftest import complaint, said
from loralib.analysis import subspace_similarity
from loralib.cli import FAILED, INTERRUPTED, main
from loralib.recipes import run_folder
from loralib.recipes.learned import measured, report
from loralib.recipes.options import TrainOptions
from pages import Page
from reported import NAMES, random_adapter


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two adapters of other ranks and the weights that they are for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report.plots, "figures", lambda measured: ())  # tests/recipes/learned/test_plots.py draws them
    lora.save(random_adapter(2, 0), "small")
    lora.save(random_adapter(4, 1), "large")
    Path("base").mkdir()
    weights = {f"{name}.weight": torch.randn(24, 24, generator=torch.Generator().manual_seed(7)) for name in NAMES}
    save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
    return tmp_path


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_two_adapters_and_a_base(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "analyze", "small", "large", "--base", "base", "-o", "out")
    tables = {
        f"tables/{n}.csv" for n in ("adapters", "pairs", "spectra", "similarity", "overlap", "amplification", "intruders")
    }
    assert names_in(place / "out") == {"index.html", "report.json", ".loralib.json"} | tables
    page = (place / "out" / "index.html").read_text(encoding="utf-8")
    assert Page(page).problems == []
    for words in (
        "small and large",
        "Shared directions",
        "Overlap of updates",
        "Spectra",
        "Amplification",
        "Intruder dimensions",
    ):
        assert words in Page(page).text
    assert "The first direction of small lies in the first four of large by φ =" in " ".join(shown.split())
    assert "Wrote out/index.html" in shown
    assert any(bar in shown for bar in "▁▂▃▄▅▆▇█")


def test_the_tables_hold_what_the_library_computes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "analyze", "small", "large", "--of", "left", "-o", "out")
    found = subspace_similarity(random_adapter(2, 0), random_adapter(4, 1), "left")
    rows = rows_of(place / "out" / "tables" / "similarity.csv")
    assert {(row["i"], row["j"]) for row in rows} == {(i, j) for i in "12" for j in "124"}
    for row in rows:
        i, j = int(row["i"]), int(row["j"])
        assert float(row["φ"]) == pytest.approx(found[row["layer"]].at(i, j), abs=1e-6)
        assert float(row["chance"]) == pytest.approx(max(i, j) / 24)
    assert "output directions" in (place / "out" / "index.html").read_text(encoding="utf-8")


def test_one_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "analyze", "small", "-o", "out")
    assert names_in(place / "out") >= {"tables/spectra.csv"}
    assert "tables/similarity.csv" not in names_in(place / "out")
    assert Page((place / "out" / "index.html").read_text(encoding="utf-8")).problems == []


def test_json_is_what_the_file_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "analyze", "large", "small", "-o", "out", "--json")
    assert out.count("\n") == 1
    values = json.loads(out)
    assert values == json.loads((place / "out" / "report.json").read_text(encoding="utf-8"))
    assert values["adapters"]["small"]["digest"] == random_adapter(2, 0).digest()
    [pair] = values["pairs"]
    assert (pair["first"], pair["second"]) == ("small", "large")  # the lower rank first
    phi = pair["similarity"][NAMES[0]]["phi"]
    assert (len(phi), len(phi[0])) == (2, 4)


def a_run(folder: Path, **values: Any) -> Path:
    """A finished run, with an adapter where it trained one."""
    options = TrainOptions.of({"model": "org/model", "data": "rows.tsv"} | values)
    run_folder.write_options(folder, options, ["no", "yes"])
    if options.method == "lora":
        lora.save(random_adapter(options.lora.r, options.seed), folder / "adapter")
    history = [{"epoch": 1.0, "eval_loss": 0.5, "eval_accuracy": 0.7, "loss": 0.6, "step": 3}]
    run_folder.write_metrics(folder, {"metric": "accuracy", "value": 0.7, "history": history})
    return folder


def test_runs_are_named_by_their_options_and_shown_with_their_curves(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for r, seed in ((2, 1), (4, 1), (4, 2)):
        a_run(place / "runs" / f"r{r}-{seed}", r=r, seed=seed)
    shown = said(capsys, "analyze", *sorted(Path("runs").iterdir()), "-o", "out")
    text = Page((place / "out" / "index.html").read_text(encoding="utf-8")).text
    for name in ("r 2, seed 1", "r 4, seed 1", "r 4, seed 2"):
        assert f"Run: {name}" in text
    assert "All 3 pairs" in text
    assert "accuracy by epoch" in text
    assert "Both began with seed 1, so rows of their A may have been the same" in " ".join(shown.split())
    rows = rows_of(place / "out" / "tables" / "adapters.csv")
    assert [(row["seed"], row["metric"], row["value"]) for row in rows] == [(s, "accuracy", "0.7") for s in "112"]


def test_nothing_is_fetched_for_runs(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    seen = []

    def starting(subject: object) -> str:
        seen.append(os.environ["HF_HUB_OFFLINE"])
        return "gone"

    monkeypatch.setattr(measured, "starting", starting)
    for r in (2, 3):
        a_run(place / f"r{r}", r=r)
    said(capsys, "analyze", "r2", "r3", "-o", "out")
    assert seen == ["1", "1"]
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_run_of_a_whole_model_is_answered_with_extract(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names_in(place) | names_in(a_run(place / "full", method="full").parent)
    error = complaint(capsys, "analyze", "full", "-o", "out")
    assert "it has no adapter; make one of what changed: loralib extract full/model org/model --r 16 -o ADAPTER." in error
    assert names_in(place) == before


def test_what_an_earlier_analysis_wrote_is_replaced_as_a_whole(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "analyze", "small", "large", "-o", "out")
    assert "out exists; add --overwrite" in complaint(capsys, "analyze", "small", "-o", "out")
    said(capsys, "analyze", "small", "-o", "out", "--overwrite")
    assert "tables/similarity.csv" not in names_in(place / "out")
    (place / "out" / "mine.txt").write_text("x")
    assert "holds what loralib analyze did not write (mine.txt)" in complaint(
        capsys, "analyze", "small", "-o", "out", "--overwrite"
    )
    (place / "other").mkdir()
    (place / "other" / "mine.txt").write_text("x")
    assert "no mark" in complaint(capsys, "analyze", "small", "-o", "other", "--overwrite")


def dora() -> lora.Adapter:
    adapter = random_adapter(2, 5)
    layers = {name: dataclasses.replace(update, magnitude=torch.ones(24)) for name, update in adapter.layers.items()}
    return adapter.with_layers({**layers, NAMES[0]: adapter.layers[NAMES[0]]})


def test_dora_layers_have_no_amplification_and_the_rest_is_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora.save(dora(), "dora.safetensors", format="safetensors")
    shown = " ".join(said(capsys, "analyze", "dora.safetensors", "small", "--base", "base", "-o", "out").split())
    assert f"dora.safetensors: amplification and intruders are left out for its DoRA layers (5, such as {NAMES[1]})" in shown
    rows = rows_of(place / "out" / "tables" / "amplification.csv")
    assert [row["layer"] for row in rows if row["adapter"] == "dora.safetensors"] == [NAMES[0]]
    assert len([row for row in rows if row["adapter"] == "small"]) == len(NAMES)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["small", "other", "-o", "out"], r"small and other: .*share no layer.*[Nn]earest names.*Nothing was written"),
        (["small", "wide", "-o", "out"], r"small and wide: .*shapes, \(24, 24\) and \(8, 8\).*Nothing was written"),
        (
            ["small", "--base", "other-base", "-o", "out"],
            r"other-base lacks 5 of the 6 layers .* --rename .*Nothing was written",
        ),
        (["small", "--rename", "decoder=x", "-o", "out"], r"'decoder' fits nothing in the adapter"),
        (["small", "--base", "gone/model", "-o", "out"], r"hf download gone/model"),
        (["small", "./small", "-o", "out"], r"small is given twice; give each adapter once"),
        (["small", "copy", "-o", "out"], r"small and copy hold the same adapter; give each adapter once"),
        (["small", "-o", "small"], r"that is, or holds, what is read"),
        (["small", "-o", "base"], r"base exists"),
        (["nothing", "-o", "out"], r"nothing does not exist"),
        (["empty.safetensors", "-o", "out"], r"empty.safetensors has no layers with an update"),
        (["broken", "-o", "out"], r"broken: '.*' is unusable: .*Nothing was written"),
        (["small", "--of", "up", "-o", "out"], r"--of: 'up' is not one of A, right, left"),
        (["small"], r"--output is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    words: Sequence[str], sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora.save(random_adapter(2, 0, ["decoder.0.key"]), "other")
    lora.save(random_adapter(2, 0, size=8), "wide")
    shutil.copytree("small", "copy")
    lora.save(
        lora.Adapter(lora.LoRAConfig(modules_to_save=["head"]), {}, {"head.weight": torch.ones(2, 2)}),
        "empty.safetensors",
        format="safetensors",
    )
    nan = random_adapter(2, 0).layers[NAMES[0]].A * torch.nan
    save_broken(Path("broken"), nan)
    Path("other-base").mkdir()
    save_file({f"{NAMES[0]}.weight": torch.ones(3, 3)}, "other-base/model.safetensors", metadata={"format": "pt"})
    before = names_in(place)
    error = complaint(capsys, "analyze", *words)
    assert re.search(sentence, error), error
    assert names_in(place) == before


def save_broken(folder: Path, A: torch.Tensor) -> None:
    """An adapter with factors that are not numbers."""
    lora.save(random_adapter(2, 0), folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    save_file(tensors | {name: A}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, INTERRUPTED), (OSError(28, "No space left", "x"), FAILED)])
def test_what_is_stopped_leaves_nothing(
    error: Any, code: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = report.tables.tables

    def stopped(*words: object) -> Any:
        raise error

    before = names_in(place)
    monkeypatch.setattr(report.tables, "tables", stopped)
    assert main(["analyze", "small", "-o", "out"]) == code
    assert names_in(place) == before
    assert not (place / "out").exists()
    monkeypatch.setattr(report.tables, "tables", real)
    assert main(["analyze", "small", "-o", "out"]) == 0


def test_names_of_a_stranger_are_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a<script>alert(1)</script>.\"'&{{7*7}}<svg onload=x>"
    adapter = random_adapter(2, 0, [evil, f"{evil}.1"]).with_metadata({"base_model_name_or_path": evil})
    lora.save(adapter, "stranger.safetensors", format="safetensors")
    other = random_adapter(3, 1, [evil, f"{evil}.1"])
    lora.save(other, "other.safetensors", format="safetensors")
    said(capsys, "analyze", "stranger.safetensors", "other.safetensors", "-o", "out")
    page = Page((place / "out" / "index.html").read_text(encoding="utf-8"))
    assert page.problems == []
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert evil in page.text


def test_an_adapter_of_other_names_is_renamed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = random_adapter(3, 1).rename({"encoder": "bert.encoder"})
    lora.save(other, "other")
    words = ["analyze", "small", "other", "--base", "base", "-o", "out", "--json"]
    assert "share no layer" in complaint(capsys, *words)
    values = json.loads(said(capsys, *words, "--rename", "bert="))
    assert set(values["pairs"][0]["similarity"]) == set(values["adapters"]["other"]["amplification"]) == set(NAMES)


@pytest.mark.slow
def test_a_page_of_200_layers_is_small_and_valid(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"model.layers.{i}.self_attn.{kind}" for i in range(100) for kind in ("q_proj", "v_proj")]
    for seed, path in enumerate(("one", "two")):
        lora.save(random_adapter(64, seed, names, size=256), path)
    said(capsys, "analyze", "one", "two", "-o", "out")
    page = place / "out" / "index.html"
    assert page.stat().st_size < 5_000_000
    assert Page(page.read_text(encoding="utf-8")).problems == []
    assert page.read_text(encoding="utf-8").count("<image") >= 200
