"""`loralib train` on a file of preference pairs, which it knows by its columns."""

import json
from pathlib import Path

import pytest

from cli.conftest import complaint, said

pytest_plugins = ["recipes.chat.conftest"]


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n}?", "chosen": "It is a France.", "rejected": "It"} for n in range(8)]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(chatter: Path, choices: Path, folder: Path, *more: str) -> list[str]:
    given = ["--model", chatter, "--data", choices, "--output", folder, "--max-length", "64", "--batch-size", "4"]
    return ["train", *map(str, given), "--learning-rate", "1e-3", *more]


def test_a_file_of_pairs(chatter: Path, choices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    found = json.loads(said(capsys, *words(chatter, choices, folder, "--beta", "0.2", "--dpo-loss", "hinge", "--json")))
    assert [result["metric"] for result in found["runs"]] == ["reward_accuracy"]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "problem: preference" in (folder / "config.yaml").read_text()


def test_what_cannot_serve(chatter: Path, choices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert "problem=preference has method=lora alone" in complaint(capsys, *words(chatter, choices, folder, "--method", "full"))
    with choices.open("a") as file:
        file.write('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    assert "line 9: chosen and rejected are the same answer" in complaint(capsys, *words(chatter, choices, folder))
    assert not folder.exists()
