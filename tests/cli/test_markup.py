"""Brackets, colons and escape sequences in paths, labels and names are shown as they are by every command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from loralib.cli import COMMANDS, main
from recipes.nlg.conftest import meal, write_jsonl

pytest_plugins = ["recipes.conftest", "recipes.nlg.conftest"]

STRANGE = "[bold]a[/x] :smile: [/red] $a$b_{"


@pytest.fixture(scope="module")
def place(encoder: Path, gpt2: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a strange name with models, data with strange labels, and adapters."""
    folder = tmp_path_factory.mktemp("markup") / STRANGE
    folder.mkdir(parents=True)
    shutil.copytree(encoder, folder / "encoder")
    shutil.copytree(gpt2, folder / "gpt2")
    rows = (reviews / "test.tsv").read_text().replace("blame", "[/red]").replace("praise", "[bold]b[/x]")
    (folder / "[i]data.tsv").write_text(rows)
    meals = [meal(name, food) for name in ("Aromi", "Clowns") for food in ("Thai", "French", "Indian")]
    write_jsonl(folder / "[i]meals.jsonl", meals)
    (folder / "base").mkdir()
    save_file({"[b].proj.weight": torch.ones(4, 6)}, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder / "base", folder / "tuned")
    save_file({"[b].proj.weight": torch.eye(4, 6)}, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    update = lora.LoRAUpdate(torch.ones(2, 6), torch.ones(4, 2), 4)
    lora.save(lora.Adapter(lora.LoRAConfig(), {"[b].proj": update}), folder / "adapter")
    return folder


TRAIN = ["--num-train-epochs", "1", "--target-modules", "all-linear"]
GENERATION = ["--problem", "generation", "--max-length", "64"]
WORDS = [
    ["train", "--model", "encoder", "--data", "[i]data.tsv", "--output", "run", *TRAIN],
    [
        "train",
        "--model",
        "gpt2",
        "--data",
        "[i]meals.jsonl",
        "--problem",
        "generation",
        "--max-length",
        "64",
        "--output",
        "text",
        *TRAIN,
    ],
    ["evaluate", "run", "--data", "[i]data.tsv"],
    ["predict", "run", "[/b] good"],
    ["generate", "text", "--data", "[i]meals.jsonl", "--max-new-tokens", "3", "--beams", "1", "--overwrite"],
    ["score", "dart", "text/generated/[i]meals.jsonl"],
    ["count", "--model", "encoder", "--target-modules", "all-linear"],
    ["info", "adapter"],
    ["convert", "adapter", "-o", "out/[b].safetensors", "--format", "safetensors"],
    ["combine", "adapter", "adapter", "-o", "out/both"],
    ["extract", "tuned", "base", "--r", "1", "-o", "out/[b]"],
    ["merge", "base", "adapter", "-o", "out/merged"],
    ["analyze", "adapter", "--base", "base", "-o", "out/learned"],
]


def test_every_command_shows_a_strange_path_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("loralib.recipes.nlg.metrics.meteor.find_spec", lambda name: None)
    assert {words[0] for words in WORDS} == COMMANDS.keys() - {"compare", "study", "completion", "chat"}
    files = {path.name for path in place.iterdir()}
    capsys.readouterr()
    for words in WORDS:
        given = [str(place / word) if word.split("/")[0] in files | {"run", "text", "out"} else word for word in words]
        assert main(given) == 0, (words, capsys.readouterr())
        shown = capsys.readouterr()
        told = {"predict": "[/b] good", "extract": "[b].proj", "info": "[b].proj"}.get(words[0], STRANGE)
        assert told.replace(" ", "") in "".join((shown.out + shown.err).split()), words


@pytest.mark.slow
def test_compare_shows_a_strange_path_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    data = ["--data", str(place / "[i]data.tsv"), "--num-train-epochs", "1"]
    assert main(["compare", "--model", str(place / "encoder"), *data, "--output", str(place / "compared")]) == 0
    shown = capsys.readouterr().out
    assert "[i]data, " in shown
    assert f"Wrote {place}/compared/comparison.csv" in shown


@pytest.mark.slow
def test_study_shows_a_strange_path_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    given = ["--model", str(place / "encoder"), "--data", str(place / "[i]data.tsv"), "--output", str(place / "studied")]
    assert main(["study", "matrices", *given, "--sets", "q", "v", "--num-train-epochs", "1", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "matrices: [i]data, 1 seed" in shown
    assert f"{place}/studied/runs/query/seed-" in shown
    assert f"Wrote {place}/studied/index.html" in shown
    assert "[i]data" in (place / "studied" / "index.html").read_text(encoding="utf-8")
