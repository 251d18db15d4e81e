"""`--json`: standard output is one JSON object, whatever the command says next to it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from loralib.cli import COMMANDS, completion, main

pytest_plugins = ["recipes.conftest"]

WRITERS = {"generate", "completion", "chat"}  # what they print is texts, scripts and answers


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def test_every_command_that_reports_has_the_option() -> None:
    assert {command for command in COMMANDS if "--json" not in completion.options_of(command)} == WRITERS


def test_training_and_scoring(encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", reviews / "test.tsv", "--num-train-epochs", "1", "--target-modules", "all-linear"]
    train = ["train", "--model", encoder, *data]
    planned = told(capsys, *train, "--dry-run")
    assert planned["would_train"][0]["options"]["method"] == "lora"
    result = told(capsys, *train, "-o", tmp_path / "run")
    assert result["folder"] == str(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["runs"] == [stored]
    scored = told(capsys, "evaluate", tmp_path / "run", "--data", reviews / "test.tsv")
    assert scored["rows"] == 48
    assert told(capsys, "predict", tmp_path / "run", "good")["text"] == "good"
    counted = told(capsys, "count", "--model", encoder, "--target-modules", "all-linear")
    assert counted["trained"] == stored["parameters"]["trained"]
    assert 0 < counted["share"] < 1


def test_commands_on_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = lora.Adapter(lora.LoRAConfig(), {"proj": lora.LoRAUpdate(torch.ones(2, 6), torch.ones(4, 2), 4)})
    lora.save(adapter, tmp_path / "one")
    for name, weight in (("base", torch.zeros(4, 6)), ("tuned", torch.eye(4, 6))):
        (tmp_path / name).mkdir()
        save_file({"proj.weight": weight}, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    assert told(capsys, "info", tmp_path / "one")["digest"] == adapter.digest()
    converted = told(capsys, "convert", tmp_path / "one", "-o", tmp_path / "a.safetensors", "--format", "safetensors")
    assert converted["digest"] == lora.load(tmp_path / "a.safetensors").digest() == adapter.digest()
    [file] = converted["files"]
    assert (file["path"], file["bytes"]) == (str(tmp_path / "a.safetensors"), (tmp_path / "a.safetensors").stat().st_size)
    both = told(capsys, "combine", tmp_path / "one", tmp_path / "one", "-o", tmp_path / "both")
    assert (both["ranks"], both["layers"]) == ([4], 1)
    assert told(capsys, "extract", tmp_path / "tuned", tmp_path / "base", "--r", "1", "-o", tmp_path / "diff")["layers"]
    merged = told(capsys, "merge", tmp_path / "base", tmp_path / "one", "-o", tmp_path / "merged", "--check")
    assert (merged["path"], merged["layers"]) == (str(tmp_path / "merged"), 1)
    assert (
        told(capsys, "analyze", tmp_path / "one", "-o", tmp_path / "learned")["adapters"]["one"]["digest"] == adapter.digest()
    )


@pytest.mark.slow
def test_a_comparison(encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", reviews / "test.tsv", "--num-train-epochs", "1", "--methods", "last-layers"]
    result = told(capsys, "compare", "--model", encoder, *data, "-o", tmp_path / "out")
    assert [row["method"] for row in result["runs"]] == ["last-layers"]


def test_a_sum_that_is_zero_keeps_no_percentage_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = lora.Adapter(lora.LoRAConfig(), {"proj": lora.LoRAUpdate(torch.randn(2, 6), torch.randn(4, 2), 4)})
    lora.save(adapter, tmp_path / "one")
    words = [str(tmp_path / "one")] * 2 + ["--weights", "1", "-1", "--method", "svd", "--r", "1", "-o", str(tmp_path / "none")]
    assert main(["combine", *words]) == 0
    shown = capsys.readouterr().out
    assert "the sum is zero up to rounding" in shown
    assert "%" not in shown
