"""YAML from a stranger's run: aliases cannot make it larger than options are, and what is wrong with it is one sentence."""

from pathlib import Path

import pytest
import yaml

from loralib.cli import MISUSED, main
from loralib.errors import RunError
from loralib.recipes import run_folder
from loralib.storage import plain_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
KEYED = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{k: *{old}, l: *{old}}}\n" for old, new in zip("abcdefghijklmnopqr", "bcdefghijklmnopqrs", strict=True)
)
BAD = {
    "lists": (BOMB, "aliases stand for more than 100,000 values"),
    "mappings": (KEYED, "aliases stand for more than 100,000 values"),
    "itself": ("a: &a [*a]\n", "aliases stand for more than 100,000 values"),
    "deep": ("a: " + "[" * 1000 + "]" * 1000, "nested too deeply"),
    "large": ("#" * (plain_yaml.MOST_BYTES + 1), "larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_run_folder_with_a_bomb_is_one_sentence(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, problem = BAD[kind]
    for name in (run_folder.CONFIG, run_folder.SEEDS):
        (tmp_path / name).write_text(text)
    (tmp_path / run_folder.LABELS).write_text("null")
    for read in (run_folder.read_options, run_folder.read_seeds):
        with pytest.raises(RunError, match=problem) as raised:
            read(tmp_path)
        assert len(str(raised.value)) < 1000
    assert main(["train", "--config", str(tmp_path / run_folder.CONFIG)]) == MISUSED
    said = capsys.readouterr().err
    assert problem in said
    assert len(said) < 1000
    assert said.count("\n") == 1


def test_a_few_aliases_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("a: &a [q, v]\nb: *a\nc: {<<: {x: 1}, y: 2}\n")
    assert plain_yaml.read_yaml(path) == yaml.safe_load(path.read_text())
    path.write_text("")
    assert plain_yaml.read_yaml(path) is None
